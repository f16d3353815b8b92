"""email.send_many and sms.send_many: up to 500 messages in one job, charged together or not at all.

The bulk worker only charges; the messages then wait for the workers of their kind, like a retry does. If telling those
workers fails, the sweeper does it.
"""

import structlog
from celery import shared_task

from models import charges as charging
from models import ledger
from models.answers import bulk_answer
from models.charges import Job, State
from models.messages import SendMany, SendManyEmails, SendManySms
from tasks.context import Context, Json
from tasks.door import Door
from tasks.sending import LOOK_AGAIN, enqueue_resume, require_same_job


def send_many(context: Context, task: str, bulk: SendMany) -> Json:
    """Charge every message of a bulk job in one transaction, and have them sent."""
    digest = bulk.digest(task)
    bulk_id = bulk.job_id or ""
    messages = list(bulk.each())
    whole = Job(
        job_id=bulk_id,
        task=task,
        kind=bulk.kind,
        sender=bulk.sender,
        credits=sum(message.cost for message in messages),
        digest=digest,
        content={},
    )
    now = context.now()
    charge = context.database.transact(
        lambda connection: ledger.charge_bulk(connection, whole, messages, now=now, due_at=now + LOOK_AGAIN)
    )
    require_same_job(charge, digest)
    structlog.contextvars.bind_contextvars(payer=charge.payer)
    if charge.fresh and charge.state is State.BULK:
        enqueue_resume(context, whole.kind, {ledger.message_id(bulk_id, place): 0 for place in range(len(messages))})
        return bulk_answer(charge, {State.WAITING: len(messages)}, charge.payer, charge.credits)
    return context.database.look(
        lambda connection: bulk_answer(
            charge,
            charging.count_states(connection, bulk_id),
            charging.bulk_payer(connection, bulk_id),
            charging.charged_now(connection, bulk_id),
        )
    )


@shared_task(name="email.send_many", base=Door, ignore_result=True)
def email_send_many(context: Context, message: SendManyEmails) -> Json:
    """Up to 500 emails."""
    return send_many(context, "email.send_many", message)


@shared_task(name="sms.send_many", base=Door, ignore_result=True)
def sms_send_many(context: Context, message: SendManySms) -> Json:
    """Up to 500 text messages."""
    return send_many(context, "sms.send_many", message)
