"""Delivery: attempts at the carriers, many at a time, and their settlements, many in one transaction.

No database connection is held while a carrier is called. A worker that lives renews the leases of its attempts; one
that crashes leaves a lease that expires.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import Final

import structlog
from sqlalchemy import Connection

from models.sends.carrier import Outcome
from models.sends.charges import Charge, JobKey, State, find_charges
from models.sends.leases import LeaseKey, count_by_lease, release_jobs, renew_leases
from models.sends.outcomes import (
    Attempt,
    Settlement,
    Try,
    settlement_for,
    settlement_of_doubt,
    settlement_of_wait,
)
from models.sends.settling import settle, settled_charge
from tasks.batch import Batch, Ended, EndedGroup, LeaseLostError, TooLateError, Waits
from tasks.context import Context

log = structlog.get_logger(__name__)

NOT_ASKED: Final = "not_asked"
"""How an attempt ended in which all carriers rested, or a doubt lasted, for the log."""
ENOUGH: Final = 50
"""Attempts from which on a transaction for them alone costs no more than one for more of them."""
TICK_S: Final = 1.0
"""How long a thread waits for results before it looks at its leases, and whether the worker shuts down, in seconds."""


def deliver(context: Context, held: Sequence[Charge], begun_at: float, now: datetime) -> Iterator[list[Charge]]:
    """Make one attempt for each charge that the caller holds, and settle it; yields the settled charges as they come.

    All are of one kind. `begun_at` is a time before the lease began, by the context's monotonic clock, and `now` the
    time of the claim. Jobs for which there is no free place in time, or whose worker is shutting down, are released. A
    bug in one attempt is raised after all others are settled.
    """
    if not held:
        return
    settled_before: Counter[LeaseKey] = Counter()
    failed: list[tuple[Charge, BaseException]] = []
    start_until = begun_at + context.retry_policy.start_window.total_seconds()
    batch = context.engine.start(held, now, start_until)
    try:
        for group in _results(context, batch, set(count_by_lease(held)), begun_at, start_until):
            ended = [result for _, result in group if not isinstance(result, BaseException)]
            if ended:
                yield _settle_with_others(context, EndedGroup(ended, dict(settled_before)))
            settled_before += count_by_lease(one.charge for one in ended)
            failed += [(charge, result) for charge, result in group if isinstance(result, BaseException)]
    finally:
        if batch.left:  # the caller has left, or a fault has ended this
            context.engine.stop_waiting(batch)
    yield _release(context, [charge for charge, error in failed if isinstance(error, TooLateError)])
    yield _find(context, [charge.key for charge, error in failed if isinstance(error, LeaseLostError)])
    for _, error in failed:
        if not isinstance(error, (TooLateError, LeaseLostError)):
            raise error


def _results(
    context: Context, batch: Batch, held: Collection[LeaseKey], begun_at: float, start_until: float
) -> Iterator[list[tuple[Charge, Ended | BaseException]]]:
    """Yield results as they come. Meanwhile leases are renewed, and nothing more is begun once it is too late."""
    policy = context.retry_policy
    renew_at = begun_at + policy.renewal.total_seconds()
    while batch.left:
        moment = context.monotonic()
        if moment > start_until or context.database.closing.is_set():
            context.engine.stop_waiting(batch)
        if moment >= renew_at:
            _renew(context, held)
            renew_at = moment + policy.renewal.total_seconds()
        group = batch.take(TICK_S)
        if group:
            yield group


def _renew(context: Context, held: Collection[LeaseKey]) -> None:
    lease = context.retry_policy.lease
    renewed = context.database.write(lambda connection: renew_leases(connection, held, context.now(connection) + lease))
    if len(renewed) < len(held):
        log.warning("lease expired during attempts", leases=len(held) - len(renewed))


def _settle_with_others(context: Context, group: EndedGroup) -> list[Charge]:
    """Settle a group of attempts: a small one together with those of other threads."""
    if len(group.ended) >= ENOUGH:
        return _settle(context, [group])[0]
    return context.settling.submit(group, lambda groups: _settle_groups(context, groups))


def _settle_groups(context: Context, groups: Sequence[EndedGroup]) -> Sequence[list[Charge] | BaseException]:
    """Settle what several threads have, in one transaction; if that fails, in one for each of them."""
    try:
        return _settle(context, groups)
    except Exception as error:  # noqa: BLE001  given to those whose it is
        if len(groups) == 1:
            return [error]
    return [settled for group in groups for settled in _settle_groups(context, [group])]


def _settle(context: Context, groups: Sequence[EndedGroup]) -> list[list[Charge]]:
    """Settle attempts in one transaction. Returns the charges of each group as they stand then."""

    def work(connection: Connection) -> tuple[list[list[Settlement]], list[Settlement], datetime]:
        now = context.now(connection)
        settlements = [[_settlement(context, one, now) for one in group.ended] for group in groups]
        settled_before = {lease: jobs for group in groups for lease, jobs in group.settled_before.items()}
        together = [one for group in settlements for one in group]
        counted = settle(connection, together, now, keep_dead=context.keeps_dead, settled_before=settled_before)
        return settlements, counted, now

    settlements, counted, now = context.database.write(work)
    context.metrics.note_ends(counted)
    in_time = {one.charge.key for one in counted}
    return [_settled_charges(context, group, in_time, now) for group in settlements]


def _settlement(context: Context, ended: Ended, now: datetime) -> Settlement:
    policy = context.retry_policy
    if isinstance(ended, Attempt):
        return settlement_for(ended, policy=policy, now=now)
    if isinstance(ended, Waits):
        return settlement_of_wait(ended.charge, ended.detail, ended.wait, policy=policy, now=now)
    return settlement_of_doubt(ended.charge, ended.detail)


def _settled_charges(
    context: Context, settlements: Sequence[Settlement], in_time: Collection[JobKey], now: datetime
) -> list[Charge]:
    settled, late = [], set()
    for one in settlements:
        if one.charge.key in in_time:
            _log(one)
            settled.append(settled_charge(one, now))
        else:
            late.add(one.charge.key)
            log.warning("lease expired before the attempt ended; outcome ignored", job=one.charge.job_id)
    return [*settled, *_find(context, late)]


def _log(settlement: Settlement) -> None:
    """Log how an attempt ended; at DEBUG what was taken, and what waits because no carrier was asked."""
    charge = settlement.charge
    carrier, outcome, _ = settlement.tries[-1] if settlement.tries else _unnoted(settlement)
    is_usual = outcome == Outcome.ACCEPTED or (outcome == NOT_ASKED and settlement.state is State.WAITING)
    log_attempt = log.debug if is_usual else log.info
    log_attempt(
        "attempted",
        job=charge.job_id,
        sender=charge.sender,
        payer=charge.payer,
        attempt=charge.attempts,
        carrier=carrier,
        outcome=outcome,
        state=settlement.state,
    )


def _unnoted(settlement: Settlement) -> Try:
    """Return what happened in an attempt that needs no note: the message was taken at once, or nobody was asked."""
    return Try(settlement.carrier, Outcome.ACCEPTED if settlement.state is State.SENT else NOT_ASKED)


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
