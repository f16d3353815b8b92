"""email.send and sms.send: charge, hand over, settle.

The charge is committed before the carrier is called, and no database connection is held while it is. What the carrier
said is settled in a second short transaction. Whoever dies in between leaves a lease that ends.
"""

import functools
import uuid
from collections.abc import Mapping, Sequence

import structlog
from celery import shared_task

from models import charges as charging
from models import dead, ledger
from models.answers import message_answer
from models.carriers import Carrier, Email, Parcel, Sms
from models.charges import Charge, Job, State
from models.errors import Reason, Refused
from models.judging import judge
from models.messages import SendEmail, SendOne, SendSms
from tasks.context import Context, Json
from tasks.door import Door, InnerDoor

log = structlog.get_logger(__name__)

CHUNK = 20
"""Jobs that one resume message names: few enough for one lease, many enough to spare the broker."""


def send(context: Context, task: str, messages: Sequence[SendOne]) -> list[Charge]:
    """Charge each message to its sender's credit owner and deliver it, once for ever for each job id.

    Returns the charges as they stand then, in the order of `messages`.
    """
    jobs = [job_of(task, message) for message in messages]
    now = context.now()
    holder, lease_until = uuid.uuid4().hex, now + context.patience.lease
    charges = context.database.transact(
        lambda connection: ledger.charge(connection, jobs, holder=holder, now=now, lease_until=lease_until)
    )
    settled = deliver(context, [charge for charge in charges if charge.fresh])
    return [settled.get(charge.job_id, charge) for charge in charges]


def resume(context: Context, attempts: Mapping[str, int]) -> list[Charge]:
    """Make the next attempt of jobs that wait for one, given how many each has had; the others are left alone."""
    holder, lease_until = uuid.uuid4().hex, context.now() + context.patience.lease
    held = context.database.transact(
        lambda connection: charging.claim(connection, attempts, holder=holder, lease_until=lease_until)
    )
    return list(deliver(context, held).values())


def deliver(context: Context, held: Sequence[Charge]) -> dict[str, Charge]:
    """Make one attempt for each charge that the caller holds, and settle it. Returns the charges as they stand then.

    Jobs for which the lease gives no time any more are handed back.
    """
    until = context.now() + context.patience.time_to_begin
    settled: dict[str, Charge] = {}
    for place, charge in enumerate(held):
        if place and context.now() > until:
            _hand_back(context, held[place:])
            break
        try:
            settled[charge.job_id] = _deliver_one(context, charge)
        except Exception:
            _hand_back(context, held[place + 1 :])  # the bug was in this one: those behind it are none the worse
            raise
    return settled


def _hand_back(context: Context, held: Sequence[Charge]) -> None:
    context.database.transact(lambda connection: charging.hand_back(connection, held, context.now()))


def _deliver_one(context: Context, charge: Charge) -> Charge:
    structlog.contextvars.bind_contextvars(job=charge.job_id, sender=charge.sender, payer=charge.payer)
    carrier: Carrier = context.carriers[charge.kind]
    try:
        receipt = carrier.deliver(parcel_of(charge), functools.partial(_note_handing_over, context, charge)).tidied()
    except LeaseLostError:
        log.warning("the lease of this attempt ended before anything was handed over")
        return _as_it_stands(context, charge)
    now = context.now()
    settlement = judge(charge, receipt, patience=context.patience, ask_again=carrier.honours_job_id, now=now)
    log.info("attempted", attempt=charge.attempts, outcome=receipt.outcome, state=settlement.state)
    keep_dead = context.keeps_dead
    counted = context.database.transact(
        lambda connection: dead.settle(connection, [settlement], now, keep_dead=keep_dead)
    )
    if not counted:
        log.warning("the lease of this attempt ended before it did: its outcome was not counted")
    return _as_it_stands(context, charge)


class LeaseLostError(Exception):
    """Somebody else has the job now: nothing more may be done for this attempt."""


def _note_handing_over(context: Context, charge: Charge) -> None:
    """Commit, before the carrier can accept the message, that it may have: whoever comes after a crash must know."""
    if not context.database.transact(lambda connection: charging.mark_handed(connection, charge, context.now())):
        raise LeaseLostError


def _as_it_stands(context: Context, charge: Charge) -> Charge:
    return context.database.look(lambda connection: charging.read(connection, [charge.job_id]))[charge.job_id]


def job_of(task: str, message: SendOne, *, job_id: str | None = None, bulk_id: str | None = None,
           digest: str | None = None) -> Job:  # fmt: skip
    """What the ledger needs of a message. A message of a bulk job has the bulk job's digest."""
    return Job(
        job_id=job_id or message.job_id or "",
        task=task,
        kind=message.kind,
        sender=message.sender,
        credits=message.cost(),
        digest=digest or message.digest(task),
        content=content_of(message),
        bulk_id=bulk_id,
    )


def content_of(message: SendOne) -> Json:
    """What is kept of a message while it is not final: all that an attempt needs, and all that was asked for."""
    if isinstance(message, SendEmail):
        content = message.model_dump(mode="json", exclude_none=True, exclude={"job_id", "sender"})
        return {**content, "recipients": list(message.recipients())}
    return {
        **message.model_dump(mode="json", exclude_none=True, exclude={"job_id", "sender"}),
        "segments": message.cost(),
    }


def parcel_of(charge: Charge) -> Parcel:
    """The message as its carrier takes it."""
    content = charge.content or {}
    if charge.kind == "sms":
        return Sms(
            job_id=charge.job_id,
            to=content["to"],
            sender_id=content.get("from"),
            text=content["text"],
            segments=content["segments"],
        )
    return Email(
        job_id=charge.job_id,
        from_name=charge.sender_name or "",
        from_address=charge.sender_address or "",
        to=tuple(content["to"]),
        cc=tuple(content.get("cc", ())),
        recipients=tuple(content["recipients"]),
        subject=content["subject"],
        text=content.get("text"),
        html=content.get("html"),
        reply_to=content.get("reply_to"),
        headers=content.get("headers", {}),
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


def _send_one(context: Context, task: str, message: SendOne) -> Json:
    [charge] = send(context, task, [message])
    require_same_job(charge, message.digest(task))
    structlog.contextvars.bind_contextvars(payer=charge.payer)
    return message_answer(charge)


@shared_task(name="email.send", base=Door, ignore_result=True)
def email_send(context: Context, message: SendEmail) -> Json:
    """One email."""
    return _send_one(context, "email.send", message)


@shared_task(name="sms.send", base=Door, ignore_result=True)
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
