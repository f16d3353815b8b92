"""How every job is answered: parse the message, run the use case, answer with an object, record what was refused.

There is one path, for many jobs at once; a single job is a batch of one. A task answers and never raises for a refusal,
which is a normal outcome. Any other exception is a fault (the database is away) or a bug. It is logged as an error, and
the job is tried again, which every use case bears.
"""

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from typing import Any, NamedTuple, cast

import structlog
from celery import Task
from celery.exceptions import Reject, Retry
from sqlalchemy import Connection

from models.errors import PostageError, Reason, Refused
from models.messages.acceptance import check_acceptable
from models.messages.answer import Answer, iso_time, refused_answer
from models.messages.answers import refusal
from models.messages.base import Json, TaskMessage
from models.messages.wire import MESSAGES, parse
from models.sends.dead_letters import DeadLetter, Status, is_keepable, keep_letters
from models.sends.postponed import PostponedJob, postpone_jobs, postponed_answer
from models.sends.refusals import Refusal, record_refusals
from models.text import sanitize
from tasks.context import Context
from tasks.job_ids import ID_FIELDS, USER_FIELDS, first_id
from tasks.producers import BoundJob, refusals_of_strangers

log = structlog.get_logger(__name__)

FAULT_RETRIES = 20
FAULT_WAIT_S = 2.0
FAULT_WAIT_MAX_S = 60.0
"""After a fault a job comes back after 2, 4, 8 … 60 seconds, with jitter: waits of about a quarter of an hour in all,
beside the time that each try waits for the database itself."""

UNACCEPTED = (Reason.INVALID_JOB, Reason.TOO_LARGE, Reason.NOT_PERMITTED)
"""The reasons for which the broker's side refuses a message, whatever job it holds: the job's id is not taken."""
TASK_ID_MAX = 255
"""Characters of a Celery task id that are kept."""
REFUSED, POSTPONED, ORGANIZATION = "postage_refused", "postage_postponed", "postage_organization"
"""The fields of a request in which the broker's side says why the job is refused, until when it is postponed, and for
which organization alone its producer may ask."""


class Postponement(NamedTuple):
    """When a job is due, and the options with which Celery is to send it then."""

    due_at: datetime
    options: Json


@dataclass(slots=True)
class Arrival:
    """A job as it arrived: the object that was on the wire, which may be anything, and its Celery task id.

    `refusal` is why it is refused whatever it asks for: it has expired, or was revoked. `postponement` is when it is
    due, if that is not soon. `organization` is the only one for whose people its producer may ask, if there is one.
    """

    given: object
    task_id: str
    refusal: Refused | None = None
    postponement: Postponement | None = None
    organization: str | None = None
    job_id: str | None = field(init=False)
    user: str | None = field(init=False)

    def __post_init__(self) -> None:
        self.task_id = sanitize(self.task_id, TASK_ID_MAX)
        self.job_id = first_id(self.given, ID_FIELDS)
        self.user = first_id(self.given, USER_FIELDS)


Result = Json | Refused
"""What a use case makes of a job: the fields of its answer, or the refusal."""


class Parsed(NamedTuple):
    """A job that could be read: its place among the arrivals, and why it is refused all the same, if it is."""

    place: int
    message: TaskMessage
    refusal: Refused | None = None


class FaultError(PostageError):
    """A fault as Celery shows it, by its type: its own text may repeat what was given, and is in no event or result."""

    def __init__(self, fault: Exception) -> None:
        super().__init__(f"{type(fault).__name__}: the log says more.")


class PostageTask(Task):  # type: ignore[type-arg]
    """The base of every task. Its `run` is called with the context and the parsed message."""

    abstract = True
    typing = False  # a job with any arguments at all must get as far as its refusal
    max_retries = FAULT_RETRIES
    log_level = logging.INFO
    records_refusals = True
    ends_on_record = True
    """Whether a job that has expired or was revoked is refused. Otherwise Celery drops it."""
    refusal_takes_key = False
    """Whether a refusal is stored under the job's key, so that it is found out if the job was done before."""

    def __call__(self, *args: Any, **kwargs: Any) -> Answer:  # noqa: ANN401  whatever was on the wire
        """Answer one job. After a fault it is tried again."""
        given = args[0] if len(args) == 1 and not kwargs else None
        arrival = self._arrival(given)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(task=self.name, job=self._job_id(arrival), sender=arrival.user)
        try:
            [(_, answer)] = chain.from_iterable(self.answer([arrival]))
        except Exception as fault:
            log.exception("fault", retries=self.request.retries)
            raise self._retry_or_give_up(arrival, fault) from None
        if arrival.postponement is not None and answer.fields["status"] != "refused":
            due_at = arrival.postponement.due_at  # its result and its callbacks come then
            raise Retry("postponed", exc=PostageError(f"It is not due before {iso_time(due_at)}."), when=due_at)
        return answer

    def answer(self, arrivals: Sequence[Arrival]) -> Iterator[list[tuple[int, Answer]]]:
        """Answer jobs; yields their places in `arrivals` and their answers, in groups as they come.

        A fault is raised, and leaves the jobs unanswered that no group has named before it.
        """
        context: Context = self.app.context  # type: ignore[attr-defined]
        parsed: list[Parsed] = []
        refused: list[tuple[int, Result]] = []
        for place, arrival in enumerate(arrivals):
            try:
                job = self._parsed(place, arrival)
                check_acceptable(job.message, context.email_headers)
                parsed.append(job)
            except Refused as why:
                refused.append((place, why))
        parsed, strangers = self._without_strangers(context, parsed, arrivals)
        due, postponed = self._partition(parsed, arrivals)
        for results in chain([refused + strangers], self._postpone(context, postponed), self.handle(context, due)):
            if results:
                yield self._close(context, arrivals, results)

    def handle(self, context: Context, parsed: Sequence[Parsed]) -> Iterator[list[tuple[int, Result]]]:
        """Run the use case for each parsed message; yields their places and results, in groups as they come."""
        for job in parsed:
            try:
                result: Result = self._run(context, job)
            except Refused as why:
                result = why
            yield [(job.place, result)]

    def _without_strangers(
        self, context: Context, parsed: list[Parsed], arrivals: Sequence[Arrival]
    ) -> tuple[list[Parsed], list[tuple[int, Result]]]:
        """Divide jobs into those that their producers may ask for, and those of other organizations, with refusals."""
        bound = [(job.place, arrivals[job.place]) for job in parsed if arrivals[job.place].organization is not None]
        if not bound:
            return parsed, []
        jobs = [BoundJob(cast("str", arrival.organization), cast("Json", arrival.given)) for _, arrival in bound]
        refusals = context.database.read(lambda connection: refusals_of_strangers(connection, jobs))
        strangers = {place: why for (place, _), why in zip(bound, refusals, strict=True) if why is not None}
        for place, why in strangers.items():
            arrivals[place].refusal = why
        return [job for job in parsed if job.place not in strangers], list(strangers.items())

    def _run(self, context: Context, job: Parsed) -> Json:
        if job.refusal is not None:
            raise job.refusal
        return cast("Json", self.run(context, job.message))

    def _postpone(
        self, context: Context, postponed: Sequence[tuple[Parsed, PostponedJob]]
    ) -> Iterator[list[tuple[int, Result]]]:
        """Store jobs that are not due; yields their places and answers. What an erased user asks is refused now."""
        if not postponed:
            return
        jobs = [job for _, job in postponed]
        erased = context.database.write(lambda connection: postpone_jobs(connection, jobs, context.now(connection)))
        yield [(parsed.place, postponed_answer(job)) for parsed, job in postponed if job.person not in erased]
        if erased:
            yield from self.handle(context, [parsed for parsed, job in postponed if job.person in erased])

    def _partition(
        self, parsed: Sequence[Parsed], arrivals: Sequence[Arrival]
    ) -> tuple[list[Parsed], list[tuple[Parsed, PostponedJob]]]:
        """Divide jobs into those that are due, and those that are not; what is refused is due."""
        due: list[Parsed] = []
        postponed: list[tuple[Parsed, PostponedJob]] = []
        for job in parsed:
            arrival = arrivals[job.place]
            if job.refusal is None and arrival.postponement is not None:
                postponed.append((job, self._postponed_job(arrival, arrival.postponement)))
            else:
                due.append(job)
        return due, postponed

    def _postponed_job(self, arrival: Arrival, postponement: Postponement) -> PostponedJob:
        return PostponedJob(
            task=self.name,
            task_id=arrival.task_id,
            key=arrival.job_id or arrival.task_id,
            person=arrival.user,
            job=cast("Json", arrival.given),
            options=postponement.options,
            due_at=postponement.due_at,
        )

    def _arrival(self, given: object) -> Arrival:
        """Return the job of this task's request."""
        request = self.request
        refused, postponed = request.get(REFUSED), request.get(POSTPONED)
        return Arrival(
            given,
            str(request.id),
            refusal=refused and Refused(Reason(refused[0]), refused[1]),
            postponement=postponed and Postponement(datetime.fromisoformat(postponed[0]), postponed[1]),
            organization=request.get(ORGANIZATION),
        )

    def _parsed(self, place: int, arrival: Arrival) -> Parsed:
        if arrival.refusal is not None and arrival.refusal.reason in UNACCEPTED:
            raise arrival.refusal
        message = self._parse(arrival)
        return Parsed(place, message, arrival.refusal)

    def _parse(self, arrival: Arrival) -> TaskMessage:
        return parse(self.name, arrival.given, job_id=arrival.task_id)

    def _close(
        self, context: Context, arrivals: Sequence[Arrival], results: Sequence[tuple[int, Result]]
    ) -> list[tuple[int, Answer]]:
        """Record the refusals among the results, and return the answers."""
        self._record_refused(context, [(arrivals[place], result) for place, result in results])
        answers = [(place, self._answer(arrivals[place], result)) for place, result in results]
        self._log([(arrivals[place], answer) for place, answer in answers])
        return answers

    def _answer(self, arrival: Arrival, result: Result) -> Answer:
        if isinstance(result, Refused):
            return Answer(self._refused(arrival, result))
        return Answer(result)

    def _log(self, answered: Sequence[tuple[Arrival, Answer]]) -> None:
        """Log each answer, at DEBUG; above it, one line says of all messages that were simply sent together."""
        together = [answer for _, answer in answered if answer.fields.get("status") == "sent"]
        if len(together) > 1 and not log.is_enabled_for(logging.DEBUG):
            log.log(
                self.log_level,
                "answered",
                status="sent",
                jobs=[answer["job_id"] for answer in together],
                senders=sorted({answer["sender"] for answer in together}),
                payers=sorted({answer["paid_by"] for answer in together}),
            )
            answered = [one for one in answered if one[1].fields.get("status") != "sent"]
        for arrival, answer in answered:
            log.log(
                self.log_level,
                "answered",
                job=self._job_id(arrival),
                sender=arrival.user,
                payer=answer.fields.get("paid_by"),
                status=answer.fields.get("status"),
                reason=answer.fields.get("reason"),
            )

    def _record_refused(self, context: Context, results: Sequence[tuple[Arrival, Result]]) -> None:
        """Store what was refused, in one transaction: a dead letter, and the refusal if no charge records it."""
        if not self.records_refusals:
            return
        refused = [(arrival, result) for arrival, result in results if _is_refused(result)]
        letters = [
            letter
            for arrival, result in refused
            if not _is_unproven(arrival, result)
            for letter in self._letter(context, arrival, "refused", *_reason_of(result))
        ]
        unrecorded = [self._refusal(arrival, result) for arrival, result in refused if isinstance(result, Refused)]
        if not letters and not unrecorded:
            return

        def store(connection: Connection) -> None:
            now = context.now(connection)
            record_refusals(connection, unrecorded, now)
            keep_letters(connection, letters, now)

        context.database.write(store)

    def _refusal(self, arrival: Arrival, why: Refused) -> Refusal:
        return Refusal(
            task=self.name,
            task_id=arrival.task_id,
            key=arrival.job_id,
            person=arrival.user,
            reason=why.reason,
            detail=why.detail,
        )

    def _letter(
        self, context: Context, arrival: Arrival, status: Status, reason: str | None, detail: str
    ) -> list[DeadLetter]:
        """Return the dead letter of a job, or none if it is not to be kept.

        What has expired or was cancelled is not to be done any more, so a replay of all letters must not do it. What
        was too large was not read.
        """
        given = arrival.given
        if reason in (Reason.EXPIRED, Reason.CANCELLED, Reason.TOO_LARGE):
            return []
        if not context.keeps_dead or not isinstance(given, dict) or not is_keepable(self.name, given):
            return []
        return [
            DeadLetter(
                task=self.name,
                task_id=arrival.task_id,
                key=arrival.job_id or arrival.task_id,
                person=arrival.user,
                status=status,
                reason=reason,
                detail=detail,
                job=given,
            )
        ]

    def _retry_or_give_up(self, arrival: Arrival, fault: Exception) -> Exception:
        """Return what to raise after a fault: Celery's retry, or the fault itself once the retries are used up.

        A job that is given up becomes a dead letter first. If that cannot be stored, the job is not given up.
        """
        context: Context = self.app.context  # type: ignore[attr-defined]
        retries = self.request.retries or 0
        if retries < FAULT_RETRIES or self.request.called_directly:
            return self._retry(arrival, fault, retries, FAULT_RETRIES)
        detail = f"{type(fault).__name__}, {retries + 1} times: the log says more."
        letters = self._letter(context, arrival, "fault", None, detail)
        try:
            context.database.write(lambda connection: keep_letters(connection, letters, context.now(connection)))
        except Exception:
            log.exception("job not given up: its dead letter could not be stored", retries=retries)
            return self._retry(arrival, fault, retries, retries + 1)
        log.error("job given up after too many faults", kept=bool(letters), retries=retries)
        return FaultError(fault)

    def _retry(self, arrival: Arrival, fault: Exception, retries: int, most: int) -> Exception:
        """Enqueue the job once more. If the broker does not take it, leave it where it is.

        One that could not be postponed must not be done at once instead: it keeps the time at which it is due.
        """
        postponed = arrival.postponement
        when = {"countdown": _wait_s(retries)} if postponed is None else {"eta": postponed.due_at}
        shown = fault if self.request.called_directly else FaultError(fault)  # whoever called gets it as it is
        try:
            return cast("Exception", self.retry(exc=shown, max_retries=most, throw=False, **when))
        except Reject:  # without this Celery would drop the job
            raise Reject(type(fault).__name__, requeue=True) from fault

    def _job_id(self, arrival: Arrival) -> str | None:
        return arrival.job_id or (arrival.task_id if self.name in MESSAGES else None)

    def _refused(self, arrival: Arrival, why: Refused) -> Json:
        """Return the answer to a refused job, with every field that its answer has."""
        if self.name not in MESSAGES:
            return refused_answer(why.reason, why.detail)
        fields = refusal(self.name, arrival.given, why.reason, why.detail)
        if MESSAGES[self.name].key == "job_id":
            fields["job_id"] = fields["job_id"] or arrival.task_id
        return fields


def _is_refused(result: Result) -> bool:
    return isinstance(result, Refused) or result.get("status") == "refused"


def _reason_of(result: Result) -> tuple[str | None, str]:
    if isinstance(result, Refused):
        return result.reason, result.detail
    return result.get("reason"), result.get("detail") or ""


def _wait_s(retries: int) -> float:
    return float(min(FAULT_WAIT_MAX_S, FAULT_WAIT_S * 2 ** min(retries, FAULT_RETRIES)) * random.uniform(0.5, 1.0))  # noqa: S311  jitter


def _is_unproven(arrival: Arrival, result: Result) -> bool:
    """Whether a job was refused because of its key. Its replay would be signed by Postage, so there is none."""
    return result is arrival.refusal and arrival.refusal.reason is Reason.NOT_PERMITTED


class InternalTask(PostageTask):
    """The base of Postage's own tasks, whose objects no producer makes (models/messages/internal.py)."""

    abstract = True
    log_level = logging.DEBUG  # beat sends them all the time
    ends_on_record = False
