"""email.send and sms.send: charge, hand over, settle.

The charge is committed before the carrier is called, and no database connection is held while it is. What the carrier
said is settled in a second short transaction. Whoever dies in between leaves a lease that ends.
"""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import chain
from typing import cast

import structlog
from celery import shared_task

from models import dead, holding, ledger
from models.answers import Answer, brief_answer, message_answer
from models.charges import Charge, Job, State
from models.errors import Reason, Refused
from models.messages import SendEmail, SendOne, SendSms, digest_of, read
from tasks.context import Context, Json
from tasks.delivery import deliver
from tasks.door import Door, InnerDoor

log = structlog.get_logger(__name__)

LOOK_AGAIN = timedelta(seconds=60)
"""A job that was put on its queue is put there again if nobody has taken it up by then."""
CHUNK = 100
"""Jobs that one resume message names: few enough for one lease, many enough to spare the broker."""


def send(context: Context, jobs: Sequence[Job]) -> Iterator[list[Charge]]:
    """Charge each job to its sender's credit owner and deliver it, once for ever for each job id.

    Gives the charges as they come to stand for now: first those that are not to be sent (any more). The jobs are of one
    kind; one whose id comes twice is given once.
    """
    now = context.now()
    holder, lease_until = uuid.uuid4().hex, now + context.patience.lease
    charges = context.database.transact(
        lambda connection: ledger.charge(connection, jobs, holder=holder, now=now, lease_until=lease_until)
    )
    fresh = {charge.job_id: charge for charge in charges if charge.fresh}
    yield list({charge.job_id: charge for charge in charges if charge.job_id not in fresh}.values())
    yield from deliver(context, list(fresh.values()))


def resume(context: Context, attempts: Mapping[str, int]) -> list[Charge]:
    """Make the next attempt of jobs that wait for one, given how many each has had; the others are left alone."""
    holder, lease_until = uuid.uuid4().hex, context.now() + context.patience.lease
    held = context.database.transact(
        lambda connection: holding.claim(connection, attempts, holder=holder, lease_until=lease_until)
    )
    return list(chain.from_iterable(deliver(context, held)))


def job_of(task: str, message: SendOne) -> Job:
    """What the ledger needs of a message."""
    given = message.given()
    content = message.content(given)
    return Job(
        job_id=message.job_id or "",
        task=task,
        kind=message.kind,
        sender=message.sender,
        credits=content.cost,
        digest=digest_of(task, given),
        content=content.fields,
    )


def require_same_job(charge: Charge, digest: str) -> None:
    """Make sure that a charge found under a known id is of the same job.

    Raises
    ------
    Refused
        `conflicting_job`.

    """
    if charge.digest != digest:
        sentence = f"The job_id {charge.job_id} was used for another message: give this one an id of its own."
        raise Refused(Reason.CONFLICTING_JOB, sentence)


class SendDoor(Door):
    """The door of jobs that send one message each, where many can be answered together."""

    abstract = True

    def answer_many(self, arrived: Sequence[tuple[str, object]]) -> Iterator[list[tuple[int, Answer]]]:
        """Answer jobs, each given as its task id and what was on the wire; gives places and answers as they come.

        A job that must come through alone gets none: it cannot be read, or its id was used for another message.
        """
        context: Context = self.app.context  # type: ignore[attr-defined]
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(task=self.name)
        jobs = [self._job(given, task_id) for task_id, given in arrived]
        places: dict[str, list[int]] = {}
        for place, job in enumerate(jobs):
            if job is not None:
                places.setdefault(job.job_id, []).append(place)
        for charges in send(context, [job for job in jobs if job is not None]):
            answers = {charge.job_id: brief_answer(charge) for charge in charges}
            self._keep_refused(context, [arrived[places[job_id][0]] for job_id in answers], answers.values())
            yield [
                (place, self._say_answered(charge, answers[charge.job_id]))
                for charge in charges
                for place in places[charge.job_id]
                if cast("Job", jobs[place]).digest == charge.digest
            ]

    def _job(self, given: object, task_id: str) -> Job | None:
        try:
            return job_of(self.name, cast("SendOne", read(self.name, given, job_id=task_id)))
        except Refused:
            return None

    @staticmethod
    def _say_answered(charge: Charge, fields: Json) -> Answer:
        log.info("answered", job=charge.job_id, sender=charge.sender, payer=charge.payer, status=fields["status"],
                 reason=fields["reason"])  # fmt: skip
        return Answer(fields)

    def _keep_refused(self, context: Context, arrived: Iterable[tuple[str, object]], answers: Iterable[Json]) -> None:
        letters = [
            letter
            for (task_id, given), fields in zip(arrived, answers, strict=True)
            if fields["status"] == "refused"
            for letter in self._letters(context, given, task_id, "refused", fields["reason"], fields["detail"])
        ]
        if letters:
            context.database.transact(lambda connection: dead.keep(connection, letters, context.now()))


def _send_one(context: Context, task: str, message: SendOne) -> Json:
    job = job_of(task, message)
    [charge] = chain.from_iterable(send(context, [job]))
    require_same_job(charge, job.digest)
    structlog.contextvars.bind_contextvars(payer=charge.payer)
    return message_answer(charge)


@shared_task(name="email.send", base=SendDoor, ignore_result=True)
def email_send(context: Context, message: SendEmail) -> Json:
    """One email."""
    return _send_one(context, "email.send", message)


@shared_task(name="sms.send", base=SendDoor, ignore_result=True)
def sms_send(context: Context, message: SendSms) -> Json:
    """One text message."""
    return _send_one(context, "sms.send", message)


def enqueue_resume(context: Context, kind: str, attempts: Mapping[str, int]) -> None:
    """Ask the workers of `kind` for the next attempt of jobs, given how many attempts each has had."""
    jobs = list(attempts.items())
    for start in range(0, len(jobs), CHUNK):
        context.enqueue(f"{kind}.resume", {"attempts": dict(jobs[start : start + CHUNK])})


def _resume(context: Context, given: Json) -> Json:
    charges = resume(context, given["attempts"])
    states = [charge.state for charge in charges]
    return {"status": "done", **{str(state): states.count(state) for state in State if state in states}}


@shared_task(name="email.resume", base=InnerDoor, ignore_result=True)
def email_resume(context: Context, given: Json) -> Json:
    """The next attempt of emails that wait."""
    return _resume(context, given)


@shared_task(name="sms.resume", base=InnerDoor, ignore_result=True)
def sms_resume(context: Context, given: Json) -> Json:
    """The next attempt of text messages that wait."""
    return _resume(context, given)
