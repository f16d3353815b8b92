"""Delivery: attempts at the carrier, several at a time, and their ends, written together where they come together.

No database connection is held while a carrier is called. Whoever dies in between leaves a lease that ends.
"""

import functools
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, nullcontext
from datetime import datetime

import structlog

from models import charges as charging
from models import dead, holding, ledger
from models.carriers import Carrier, Email, Outcome, Parcel, Sms
from models.charges import Charge
from models.judging import judge
from models.ledger import Settlement
from tasks.context import Context

log = structlog.get_logger(__name__)


class LeaseLostError(Exception):
    """Somebody else has the job now: nothing more may be done for this attempt."""


class TooLateError(Exception):
    """The lease gives no time any more to begin this attempt."""


def deliver(context: Context, held: Sequence[Charge]) -> Iterator[list[Charge]]:
    """Make one attempt for each charge that the caller holds, and settle it; gives the charges, settled, as they come.

    All are of one kind. Jobs for which the lease gives no time any more, or the worker, which is told to end, are
    handed back. A bug with one of them is raised when all others are settled.
    """
    if not held:
        return
    carrier = context.carriers[held[0].kind]
    attempt = functools.partial(_attempt, context, carrier, held[0], context.now() + context.patience.time_to_begin)
    ended_before = 0
    others: list[tuple[Charge, BaseException]] = []
    busy = nullcontext if carrier.honours_job_id else context.handing.joined  # only others note the handing over
    with closing(context.hands.each(attempt, held, carrier.at_once, busy)) as groups:
        for group in groups:
            ends = [end for _, end in group if isinstance(end, Settlement)]
            yield _settle(context, ends, ended_before)
            ended_before += len(ends)
            others += [(charge, end) for charge, end in group if isinstance(end, BaseException)]
    yield _hand_back(context, [charge for charge, error in others if isinstance(error, TooLateError)])
    yield _as_they_stand(context, [charge.job_id for charge, error in others if isinstance(error, LeaseLostError)])
    for _, error in others:
        if not isinstance(error, (TooLateError, LeaseLostError)):
            raise error


def _attempt(context: Context, carrier: Carrier, first: Charge, until: datetime, charge: Charge) -> Settlement:
    """Hand one message over, and judge what its carrier says.

    Raises
    ------
    TooLateError
        If it is not the first, and the time to begin is over, or the worker is told to end.
    LeaseLostError
        If somebody else has the job now; nothing was handed over.

    """
    if charge is not first and (context.now() > until or context.database.closing.is_set()):
        raise TooLateError
    structlog.contextvars.bind_contextvars(job=charge.job_id, sender=charge.sender, payer=charge.payer)
    about_to_hand_over = functools.partial(_note_handing_over, context, charge)
    try:
        receipt = carrier.deliver(parcel_of(charge), about_to_hand_over).tidied()
    except LeaseLostError:
        log.warning("the lease of this attempt ended before anything was handed over")
        raise
    end = judge(charge, receipt, patience=context.patience, ask_again=carrier.honours_job_id, now=context.now())
    say = log.debug if receipt.outcome is Outcome.ACCEPTED else log.info
    say("attempted", attempt=charge.attempts, outcome=receipt.outcome, state=end.state)
    return end


def _note_handing_over(context: Context, charge: Charge) -> None:
    """Commit, before the carrier can accept the message, that it may have: whoever comes after a crash must know.

    One transaction notes all messages that are at this point at the same time.
    """

    def note(handed: Sequence[Charge]) -> set[str]:
        now = context.now()
        return context.database.transact(lambda connection: holding.mark_handed(connection, handed, now))

    if charge.job_id not in context.handing.ask(charge, note):
        raise LeaseLostError


def _settle(context: Context, ends: Sequence[Settlement], ended_before: int) -> list[Charge]:
    """Write how attempts ended, after others of the same lease, in one transaction. Gives the charges as they stand."""
    if not ends:
        return []
    now = context.now()
    counted = context.database.transact(
        lambda connection: dead.settle(connection, ends, now, keep_dead=context.keeps_dead, ended_before=ended_before)
    )
    uncounted = {end.charge.job_id for end in ends} - {end.charge.job_id for end in counted}
    for job_id in uncounted:
        log.warning("the lease of this attempt ended before it did: its outcome was not counted", job=job_id)
    return [*(ledger.ended(end, now) for end in counted), *_as_they_stand(context, uncounted)]


def _hand_back(context: Context, held: Sequence[Charge]) -> list[Charge]:
    """Let go of jobs that were not begun. Returns the charges as they stand then."""
    if not held:
        return []
    context.database.transact(lambda connection: holding.hand_back(connection, held, context.now()))
    return _as_they_stand(context, [charge.job_id for charge in held])


def _as_they_stand(context: Context, job_ids: Collection[str]) -> list[Charge]:
    if not job_ids:
        return []
    return list(context.database.look(lambda connection: charging.read(connection, job_ids)).values())


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
