"""`email.send_many` and `sms.send_many`: up to 500 messages in one job, charged together or not at all.

The bulk worker only charges. The messages then wait for the workers of their kind, like a job that is tried again. If
those workers could not be told, the sweeper tells them.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import cast

from celery import shared_task
from sqlalchemy import Connection

from models.errors import Refused
from models.messages.base import Json
from models.messages.bulk import SendMany, SendManyEmails, SendManySms, characters_at_most
from models.messages.sends import Content
from models.sends.answers import answer_to, bulk_answer
from models.sends.charges import Charge, SendJob, State, bulk_message_id
from models.sends.charging import charge_bulk_job
from tasks.base import Parsed, PostageTask
from tasks.context import Context
from tasks.sending import REDISPATCH_AFTER, RESUME_BATCH, conflict, enqueue_resume

RESUME_CHARACTERS = 1_000_000
"""Characters of the messages that one worker takes at a time, which are in memory several times while they are sent."""
LARGE = 2_000_000
"""Characters of a bulk job from which on a process makes ready one such job at a time: until its messages are stored,
they are in memory several times."""


def send_many(context: Context, bulk: SendMany, refusal: Refused | None = None) -> Json:
    """Charge every message of a bulk job in one transaction, and have them sent; or refuse it, if there is a `refusal`.

    Raises
    ------
    Refused
        `invalid_job` or `conflicting_job`.

    """
    messages = list(bulk.each())
    job = as_bulk_job(bulk, messages, refusal)
    bulk_id = job.job_id

    def charge_together(connection: Connection) -> Charge:
        now = context.now(connection)
        return charge_bulk_job(connection, job, messages, now=now, due_at=now + REDISPATCH_AFTER)

    begun_at = context.monotonic()
    charge = context.database.write(charge_together)
    context.metrics.note_charging(job, len(messages), [charge], context.monotonic() - begun_at)
    refusal = conflict(charge, bulk, job.digest)
    if refusal is not None:
        raise refusal
    if not (charge.is_new and charge.state is State.BULK):
        return context.database.read(lambda connection: answer_to(connection, charge))
    context.organizations.note({charge.sender: charge.org_id})
    never_begun = {bulk_message_id(bulk_id, place): 0 for place in range(len(messages))}
    enqueue_resume(context, job.kind, charge.org_id, never_begun, _batch(bulk))
    return bulk_answer(charge, {State.WAITING: len(messages)}, payer=charge.payer, credits_now=charge.credits)


def _batch(bulk: SendMany) -> int:
    """Return how many messages of a bulk job one worker takes at a time: fewer if they are long."""
    each = characters_at_most(bulk) // len(bulk.recipients)
    return max(1, min(RESUME_BATCH, RESUME_CHARACTERS // max(1, each)))


def as_bulk_job(bulk: SendMany, messages: Sequence[Content], refusal: Refused | None) -> SendJob:
    """Return a bulk job with these messages as one that is to be charged, or to be refused for a known reason."""
    return SendJob(
        job_id=bulk.job_id or "",
        task=bulk.task,
        kind=bulk.kind,
        sender=bulk.sender,
        credits=sum(message.cost for message in messages),
        digest=bulk.digest(),
        content={},
        refusal=refusal,
    )


class BulkTask(PostageTask):
    """The base of tasks that send many messages each."""

    abstract = True
    refusal_takes_key = True

    def _run(self, context: Context, job: Parsed) -> Json:
        bulk = cast("SendMany", job.message)
        with context.large_bulk if characters_at_most(bulk) > LARGE else nullcontext():
            return send_many(context, bulk, job.refusal)


@shared_task(name="email.send_many", base=BulkTask, ignore_result=True)
def email_send_many(context: Context, message: SendManyEmails) -> None:
    """Up to 500 emails, which `send_many` charges together."""


@shared_task(name="sms.send_many", base=BulkTask, ignore_result=True)
def sms_send_many(context: Context, message: SendManySms) -> None:
    """Up to 500 text messages, which `send_many` charges together."""
