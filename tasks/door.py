"""The one door every job comes through: read the message, run the use case, answer with an object, record refusals.

A command answers, it never raises: a refusal is an outcome of the trade. Whatever else is raised is a fault (the
database is gone) or a bug; it is loud, and the job is tried again, which every use case here bears.
"""

import logging
import random
from typing import Any, cast

import structlog
from celery import Task
from celery.exceptions import Reject
from celery.worker.request import Request
from sqlalchemy import Connection

from models import dead, refusals
from models.answers import Answer, refused_answer
from models.dead import Letter, Status
from models.errors import Refused
from models.messages import MESSAGES, Message, printable, read
from tasks.context import Context, Json
from tasks.naming import KEYS, PEOPLE, named, summary

log = structlog.get_logger(__name__)

FAULT_RETRIES = 20
FAULT_WAIT_S = 2.0
FAULT_WAIT_MAX_S = 60.0
"""After a fault a job comes back after 2, 4, 8 … 60 seconds, with jitter: for about a quarter of an hour in all."""

TASK_ID_MAX = 255


class DiscreetRequest(Request):
    """A task request that shows ids where Celery would show the arguments, whatever the producer said of them."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401  Celery's
        super().__init__(*args, **options)
        self._argsrepr = summary(self._args)  # type: ignore[attr-defined]
        self._kwargsrepr = "{}"
        # Whether an answer is kept is the task's affair; a producer that says nothing of it sends "yes".
        self._ignore_result = self._request_dict["ignore_result"] = self.task.ignore_result  # type: ignore[attr-defined]

    def info(self, safe: bool = False) -> Any:  # noqa: ANN401, ARG002, FBT001, FBT002  Celery's
        """What remote control (so Flower) may know of this request."""
        return super().info(safe=True)


class Door(Task):  # type: ignore[type-arg]
    """The base of every task. Its `run` is called with the context and the message that was read."""

    abstract = True
    typing = False  # any arguments at all must get as far as the refusal
    Request = "tasks.door:DiscreetRequest"
    max_retries = FAULT_RETRIES
    log_level = logging.INFO

    def __call__(self, *args: Any, **kwargs: Any) -> Answer:  # noqa: ANN401  whatever came off the wire
        """Answer one job."""
        context: Context = self.app.context  # type: ignore[attr-defined]
        given = args[0] if len(args) == 1 and not kwargs else None
        task_id = printable(self.request.id, TASK_ID_MAX)
        key = named(given, KEYS) or (task_id if self.name in MESSAGES else None)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(task=self.name, job=key, sender=named(given, PEOPLE))
        try:
            fields = self._answer(context, given, task_id)
        except Exception as fault:
            log.exception("fault", retries=self.request.retries)
            raise self._try_again(context, given, task_id, fault) from fault
        log.log(self.log_level, "answered", status=fields.get("status"), reason=fields.get("reason"))
        return Answer(fields)

    def _answer(self, context: Context, given: object, task_id: str) -> Json:
        try:
            fields = cast("Json", self.run(context, self._read(given, task_id)))
        except Refused as why:
            return self._refuse(context, given, task_id, why)
        if fields.get("status") == "refused":
            letters = self._letters(context, given, task_id, "refused", fields["reason"], fields["detail"])
            if letters:
                context.database.transact(lambda connection: dead.keep(connection, letters, context.now()))
        return fields

    def _read(self, given: object, task_id: str) -> Message:
        return read(self.name, given, job_id=task_id)

    def _refuse(self, context: Context, given: object, task_id: str, why: Refused) -> Json:
        key, person = named(given, KEYS), named(given, PEOPLE)
        letters = self._letters(context, given, task_id, "refused", why.reason, why.detail)

        def write(connection: Connection) -> None:
            refusals.record(
                connection, task=self.name, task_id=task_id, key=key, person=person, why=why, now=context.now()
            )
            dead.keep(connection, letters, context.now())

        context.database.transact(write)
        return self._naming_its_job(given, task_id) | refused_answer(why.reason, why.detail)

    def _try_again(self, context: Context, given: object, task_id: str, fault: Exception) -> Exception:
        """What to raise after a fault: Celery's retry, or, when the retries are used up, the fault itself.

        A job that is given up is a dead letter first. If that cannot be written, the job is not given up.
        """
        retries = self.request.retries or 0
        if retries < FAULT_RETRIES or self.request.called_directly:
            return self._come_back(fault, retries, FAULT_RETRIES)
        detail = f"{type(fault).__name__}, {retries + 1} times: the log says more."
        letters = self._letters(context, given, task_id, "fault", None, detail)
        try:
            context.database.transact(lambda connection: dead.keep(connection, letters, context.now()))
        except Exception:
            log.exception("a job that should be given up could not be kept", retries=retries)
            return self._come_back(fault, retries, retries + 1)
        log.error("given up after too many faults", kept=bool(letters), retries=retries)
        return fault

    def _come_back(self, fault: Exception, retries: int, most: int) -> Exception:
        """Enqueue the job once more; if the broker does not take it, leave it where it is."""
        try:
            return self.retry(exc=fault, countdown=_wait_s(retries), max_retries=most)
        except Reject:  # without this Celery would drop it
            raise Reject(type(fault).__name__, requeue=True) from fault

    def _letters(  # noqa: PLR0917
        self, context: Context, given: object, task_id: str, status: Status, reason: str | None, detail: str
    ) -> list[Letter]:
        """The dead letter of this job, or none where nothing is kept of it."""
        if not context.keeps_dead or not isinstance(given, dict) or not dead.can_be_kept(self.name, given):
            return []
        return [
            Letter(
                task=self.name,
                task_id=task_id,
                key=named(given, KEYS) or task_id,
                person=named(given, PEOPLE),
                status=status,
                reason=reason,
                detail=detail,
                job=given,
            )
        ]

    def _naming_its_job(self, given: object, task_id: str) -> Json:
        """The id under which the producer knows the job."""
        field = MESSAGES[self.name].key if self.name in MESSAGES else None
        if field is None:
            return {}
        return {field: named(given, (field,)) or (task_id if field == "job_id" else None)}


def _wait_s(retries: int) -> float:
    return float(min(FAULT_WAIT_MAX_S, FAULT_WAIT_S * 2**retries) * random.uniform(0.5, 1.0))  # noqa: S311  jitter


class InnerDoor(Door):
    """The door of Postage's own tasks, whose objects no producer makes."""

    abstract = True
    log_level = logging.DEBUG  # beat asks all the time

    def _read(self, given: object, task_id: str) -> Message:  # noqa: ARG002
        return cast("Message", given)
