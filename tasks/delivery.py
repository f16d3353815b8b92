"""Delivery: attempts at the carrier, several at a time, and their settlements, several in one transaction.

No database connection is held while a carrier is called. A worker that crashes in between leaves a lease that expires.
"""

import functools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from datetime import datetime

import structlog
from sqlalchemy import Connection

from models.messages.base import Json
from models.sends.carrier import Carrier, Email, OutboundMessage, Outcome, Sms
from models.sends.charges import Charge, JobKey, find_charges
from models.sends.leases import LeaseKey, count_by_lease, mark_handover, release_jobs
from models.sends.outcomes import Settlement, settlement_for
from models.sends.settling import settle, settled_charge
from tasks.context import Context

log = structlog.get_logger(__name__)


class LeaseLostError(Exception):
    """Another worker has the job now, so nothing more may be done for this attempt."""


class TooLateError(Exception):
    """The lease leaves no time to start this attempt."""


def deliver(context: Context, held: Sequence[Charge], begun_at: float) -> Iterator[list[Charge]]:
    """Make one attempt for each charge that the caller holds, and settle it; yields the settled charges as they come.

    All are of one kind. `begun_at` is a time before the lease began, by the context's monotonic clock: a slow commit,
    or a clock that is set, leaves less time for attempts and never more. Jobs for which the lease, or a worker that is
    shutting down, leaves no time are released. A bug in one attempt is raised after all others are settled.
    """
    if not held:
        return
    carrier = context.carriers[held[0].kind]
    start_until = begun_at + context.retry_policy.start_window.total_seconds()
    attempt = functools.partial(_attempt, context, carrier, held[0], start_until)
    membership = nullcontext if carrier.is_idempotent else context.handovers.member  # only these note their handovers
    settled_before: Counter[LeaseKey] = Counter()
    failed: list[tuple[Charge, BaseException]] = []
    with closing(context.delivery_pool.run(attempt, held, carrier.concurrency, membership)) as groups:
        for group in groups:
            settlements = [result for _, result in group if isinstance(result, Settlement)]
            yield _settle(context, settlements, settled_before)
            settled_before += count_by_lease(settlement.charge for settlement in settlements)
            failed += [(charge, result) for charge, result in group if isinstance(result, BaseException)]
    yield _release(context, [charge for charge, error in failed if isinstance(error, TooLateError)])
    yield _find(context, [charge.key for charge, error in failed if isinstance(error, LeaseLostError)])
    for _, error in failed:
        if not isinstance(error, (TooLateError, LeaseLostError)):
            raise error


def _attempt(context: Context, carrier: Carrier, first: Charge, start_until: float, charge: Charge) -> Settlement:
    """Hand one message over, and return what the carrier's answer means for its charge.

    Raises
    ------
    TooLateError
        If it is not the first, and its time to start is over, or the worker is shutting down.
    LeaseLostError
        If another worker has the job now; nothing was handed over.

    """
    if charge is not first and (context.monotonic() > start_until or context.database.closing.is_set()):
        raise TooLateError
    structlog.contextvars.bind_contextvars(job=charge.job_id, sender=charge.sender, payer=charge.payer)
    before_handover = functools.partial(_note_handover, context, charge)
    try:
        receipt = carrier.deliver(outbound_message(charge), before_handover).sanitized()
    except LeaseLostError:
        log.warning("lease expired before the handover; attempt abandoned")
        raise
    settlement = settlement_for(charge, receipt, policy=context.retry_policy, is_idempotent=carrier.is_idempotent)
    log_attempt = log.debug if receipt.outcome is Outcome.ACCEPTED else log.info
    log_attempt("attempted", attempt=charge.attempts, outcome=receipt.outcome, state=settlement.state)
    return settlement


def _note_handover(context: Context, charge: Charge) -> None:
    """Commit, before the carrier can accept the message, that it may have it: a successor must know after a crash.

    One transaction notes all messages that are handed over at the same moment.
    """

    def note(handed_over: Sequence[Charge]) -> set[JobKey]:
        return context.database.write(
            lambda connection: mark_handover(connection, handed_over, context.now(connection))
        )

    if charge.key not in context.handovers.submit(charge, note):
        raise LeaseLostError


def _settle(
    context: Context, settlements: Sequence[Settlement], settled_before: Mapping[LeaseKey, int]
) -> list[Charge]:
    """Settle attempts, after others of the same lease, in one transaction. Returns the charges as they stand then."""
    if not settlements:
        return []

    def work(connection: Connection) -> tuple[list[Settlement], datetime]:
        now = context.now(connection)
        return settle(connection, settlements, now, keep_dead=context.keeps_dead, settled_before=settled_before), now

    counted, now = context.database.write(work)
    uncounted = {one.charge.key for one in settlements} - {one.charge.key for one in counted}
    for key in uncounted:
        log.warning("lease expired before the attempt ended; outcome ignored", job=key.job_id)
    return [*(settled_charge(settlement, now) for settlement in counted), *_find(context, uncounted)]


def _release(context: Context, held: Sequence[Charge]) -> list[Charge]:
    """Release jobs that were not attempted. Returns the charges as they stand then."""
    if not held:
        return []
    context.database.write(lambda connection: release_jobs(connection, held, context.now(connection)))
    return _find(context, [charge.key for charge in held])


def _find(context: Context, keys: Collection[JobKey]) -> list[Charge]:
    if not keys:
        return []
    return list(context.database.read(lambda connection: find_charges(connection, keys)).values())


def outbound_message(charge: Charge) -> OutboundMessage:
    """Return the message of a charge as its carrier gets it."""
    content: Json = charge.content or {}
    org_id = None if charge.is_of_earlier_release else charge.org_id
    if charge.kind == "sms":
        return Sms(
            job_id=charge.job_id,
            org_id=org_id,
            to=content["to"],
            sender_id=content.get("from"),
            text=content["text"],
            segments=content["segments"],
        )
    reply_to = content.get("reply_to") or ()
    return Email(
        job_id=charge.job_id,
        org_id=org_id,
        from_name=charge.sender_name or "",
        from_address=charge.sender_address or "",
        to=tuple(content["to"]),
        cc=tuple(content.get("cc", ())),
        recipients=tuple(content["recipients"]),
        subject=content["subject"],
        text=content.get("text"),
        html=content.get("html"),
        reply_to=(reply_to,) if isinstance(reply_to, str) else tuple(reply_to),
        headers=content.get("headers", {}),
    )
