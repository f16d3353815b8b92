"""`email.send` and `sms.send`: charge, hand over, settle.

The charge is committed before the carrier is called, and no database connection is held meanwhile. What the carrier
answered is settled in a second short transaction. A worker that crashes in between leaves a lease that expires.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import chain
from typing import cast

from celery import shared_task
from sqlalchemy import Connection

from models.errors import Reason, Refused
from models.ids import new_id
from models.messages.base import Json
from models.messages.bulk import SendMany
from models.messages.digests import digest
from models.messages.internal import ResumeJobs
from models.messages.sends import SendEmail, SendOne, SendSms
from models.sends.answers import send_answer
from models.sends.charges import Charge, JobKey, SendJob, State
from models.sends.charging import charge_jobs
from models.sends.leases import claim_jobs
from tasks.base import InternalTask, Parsed, PostageTask, Result
from tasks.context import Context
from tasks.delivery import deliver

REDISPATCH_AFTER = timedelta(seconds=60)
"""A job that was put on its queue is put there again if no worker has taken it up by then."""
RESUME_BATCH = 100
"""Jobs that one resume message names: few enough for one lease, many enough to spare the broker."""


def send(context: Context, jobs: Sequence[SendJob]) -> Iterator[list[tuple[int, Charge]]]:
    """Charge each job to its sender's credit owner and deliver it, once for each job id, however often it comes.

    Yields the places of the jobs and their charges as they stand for now, first those that are not to be sent (any
    more). The jobs are of one task; those that share an id are yielded together.
    """
    begun_at, lease_id = context.monotonic(), new_id()

    def charge_all(connection: Connection) -> tuple[list[Charge], datetime]:
        now = context.now(connection)
        lease_until = now + context.retry_policy.lease
        return charge_jobs(connection, jobs, lease_id=lease_id, now=now, lease_until=lease_until), now

    charges, now = context.database.write(charge_all)
    if jobs:
        context.metrics.note_charging(jobs[0], len(jobs), charges, context.monotonic() - begun_at)
    new = {charge.key: charge for charge in charges if charge.is_new}
    places: defaultdict[JobKey, list[int]] = defaultdict(list)
    for place, charge in enumerate(charges):
        places[charge.key].append(place)
    yield [(place, charge) for place, charge in enumerate(charges) if charge.key not in new]
    for delivered in deliver(context, list(new.values()), begun_at, now):
        yield [(place, charge) for charge in delivered for place in places[charge.key]]
    context.organizations.note({charge.sender: charge.org_id for charge in new.values()})  # nothing waits for it


def resume(context: Context, org_id: int, attempts: Mapping[str, int]) -> list[Charge]:
    """Make the next attempt of an organization's waiting jobs, given how many each has had; others are left alone."""
    begun_at, lease_id = context.monotonic(), new_id()

    def claim(connection: Connection) -> tuple[list[Charge], datetime]:
        now = context.now(connection)
        lease_until = now + context.retry_policy.lease
        return claim_jobs(connection, org_id, attempts, lease_id=lease_id, lease_until=lease_until), now

    held, now = context.database.write(claim)
    return list(chain.from_iterable(deliver(context, held, begun_at, now)))


def as_send_job(message: SendOne, refusal: Refused | None = None) -> SendJob:
    """Return a message as a job that is to be charged, or to be refused for a reason that is known already."""
    given = message.given()
    content = message.content(given)
    return SendJob(
        job_id=message.job_id or "",
        task=message.task,
        kind=message.kind,
        sender=message.sender,
        credits=content.cost,
        digest=digest(message.task, given),
        content=content.fields,
        refusal=refusal,
    )


def conflict(charge: Charge, message: SendOne | SendMany, known_digest: str) -> Refused | None:
    """Return the refusal of a message whose id was used for another one, or None if the charge is of this message.

    `known_digest` is the message's: nearly always it is the charge's too, and no other has to be computed.
    """
    if charge.digest == known_digest or message.has_digest(charge.digest):
        return None
    sentence = f"The job_id {charge.job_id} was used for another message: give this one an id of its own."
    return Refused(Reason.CONFLICTING_JOB, sentence)


class SendTask(PostageTask):
    """The base of tasks that send one message each. Jobs that arrive together are charged and settled together."""

    abstract = True
    refusal_takes_key = True

    def handle(self, context: Context, parsed: Sequence[Parsed]) -> Iterator[list[tuple[int, Result]]]:
        """Charge and deliver the messages of a batch; yields the places and answers of those that were settled."""
        messages = [cast("SendOne", job.message) for job in parsed]
        jobs = [as_send_job(message, job.refusal) for message, job in zip(messages, parsed, strict=True)]
        for group in send(context, jobs):
            yield [
                (parsed[number].place, conflict(charge, messages[number], jobs[number].digest) or send_answer(charge))
                for number, charge in group
            ]


@shared_task(name="email.send", base=SendTask, ignore_result=True)
def email_send(context: Context, message: SendEmail) -> None:
    """One email, which `SendTask.handle` sends together with those that arrived beside it."""


@shared_task(name="sms.send", base=SendTask, ignore_result=True)
def sms_send(context: Context, message: SendSms) -> None:
    """One text message, which `SendTask.handle` sends together with those that arrived beside it."""


def enqueue_resume(
    context: Context, kind: str, org_id: int, attempts: Mapping[str, int], batch: int = RESUME_BATCH
) -> None:
    """Ask the workers of `kind` for the next attempt of an organization's jobs, given how many each has had."""
    jobs = list(attempts.items())
    batches = (dict(jobs[start : start + batch]) for start in range(0, len(jobs), batch))
    context.enqueue(f"{kind}.resume", [{"org_id": org_id, "attempts": some} for some in batches])


def _resume(context: Context, asked: ResumeJobs) -> Json:
    if asked.org_id is None:  # from a worker of an earlier release; the sweeper asks again
        return {"status": "done"}
    charges = resume(context, asked.org_id, asked.attempts)
    states = [charge.state for charge in charges]
    return {"status": "done", **{str(state): states.count(state) for state in State if state in states}}


@shared_task(name="email.resume", base=InternalTask, ignore_result=True)
def email_resume(context: Context, asked: ResumeJobs) -> Json:
    """The next attempt of emails that wait."""
    return _resume(context, asked)


@shared_task(name="sms.resume", base=InternalTask, ignore_result=True)
def sms_resume(context: Context, asked: ResumeJobs) -> Json:
    """The next attempt of text messages that wait."""
    return _resume(context, asked)
