"""What beat asks for: due attempts, attempts whose worker crashed, what is to be erased, usage, and audits."""

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import structlog
from celery import shared_task
from sqlalchemy import Connection

from models.messages.base import Json
from models.messages.fields import Kind
from models.messages.internal import Upkeep
from models.reports.audit import AuditRules, run_audit
from models.reports.rollup import roll_up_usage
from models.sends.charges import Charge, State, keys_with_crashes
from models.sends.due import DueJob, claim_due, claim_due_bulks
from models.sends.leases import HandedOver, LeaseKey, delete_idle, end_expired, find_handovers, lock_orphaned
from models.sends.outcomes import Settlement, in_doubt_after_crash, settlement_after_crash
from models.sends.postponed import delete_postponed, due_jobs
from models.sends.settling import settle
from tasks.base import InternalTask
from tasks.context import Context
from tasks.erasing import erase_overdue
from tasks.sending import REDISPATCH_AFTER, enqueue_resume

Claim = Callable[[Connection, datetime, datetime, int], list[DueJob]]
log = structlog.get_logger(__name__)

SWEEP_BATCH = 500
BULK_BATCH = 20
"""Bulk jobs, each of up to 500 messages."""
LEASE_BATCH = 10
"""Leases that are ended in one transaction, each with the jobs of a batch."""
ROLL_UP_MAX = 100_000
"""Entries that one round rolls up, in several transactions."""


def sweep(context: Context) -> Json:
    """End orphaned attempts, enqueue what is due, and erase what names people and whose time is over."""
    ended = end_orphaned_attempts(context)
    due = context.database.write(functools.partial(_claim, context, claim_due, SWEEP_BATCH))
    enqueue_due(context, due)
    messages = context.database.write(functools.partial(_claim, context, claim_due_bulks, BULK_BATCH))
    _enqueue(context, messages)  # no worker can have crashed over a message that was never begun
    begun = enqueue_postponed(context)
    erased = erase_overdue(context)
    return {
        "status": "done",
        "resumed": len(due) + len(messages),
        "begun": begun,
        "ended": len(ended),
        "erased": erased,
    }


def _claim(context: Context, claim: Claim, limit: int, connection: Connection) -> list[DueJob]:
    now = context.now(connection)
    return claim(connection, now, now + REDISPATCH_AFTER, limit)


def enqueue_due(context: Context, due: Sequence[DueJob]) -> None:
    """Ask for the next attempts, many in one message, but for a job over which a worker has crashed separately.

    It may be what made the worker crash, and would affect the jobs that are resumed with it.
    """
    keys = [job.key for job in due]
    suspects = context.database.read(lambda connection: keys_with_crashes(connection, keys)) if due else set()
    _enqueue(context, [job for job in due if job.key not in suspects])
    for job in due:
        if job.key in suspects:
            enqueue_resume(context, job.kind, job.org_id, {job.job_id: job.attempts})


def _enqueue(context: Context, due: Sequence[DueJob]) -> None:
    together: defaultdict[tuple[Kind, int], dict[str, int]] = defaultdict(dict)
    for job in due:
        together[job.kind, job.org_id][job.job_id] = job.attempts
    for (kind, org_id), attempts in together.items():
        enqueue_resume(context, kind, org_id, attempts)


def enqueue_postponed(context: Context) -> int:
    """Put postponed jobs that are due on their queues. Returns how many.

    They are deleted afterwards: after a crash in between they are enqueued once more, which is harmless.
    """
    due = context.database.read(lambda connection: due_jobs(connection, context.now(connection), SWEEP_BATCH))
    if due:
        context.enqueue_again(due)
        context.database.write(lambda connection: delete_postponed(connection, due))
    return len(due)


def end_orphaned_attempts(context: Context) -> list[Settlement]:
    """End the attempts whose lease has expired: each job is tried again, set aside, or unknown."""
    ended: list[Settlement] = []
    leases_ended = LEASE_BATCH
    while leases_ended == LEASE_BATCH:  # there may be more
        settlements, leases_ended = _end_some(context)
        context.metrics.note_ends(settlements)
        ended += settlements
    for one in ended:
        log_crash = log.error if one.state in (State.UNKNOWN, State.FAILED) else log.warning
        log_crash(
            "worker crashed during an attempt",
            job=one.charge.job_id,
            sender=one.charge.sender,
            payer=one.charge.payer,
            state=one.state,
        )
    return ended


def _end_some(context: Context) -> tuple[list[Settlement], int]:
    """End the attempts of some expired leases. Returns how they ended, and how many leases are over."""
    settlements, expired = context.database.write(functools.partial(_end_orphaned, context))
    # In a transaction of its own, because settling has locked the accounts that get something back.
    over = context.database.write(lambda connection: delete_idle(connection, expired)) if expired else 0
    return settlements, over


def _end_orphaned(context: Context, connection: Connection) -> tuple[list[Settlement], list[LeaseKey]]:
    """End the attempts of some expired leases. Returns how they ended, and those leases."""
    now = context.now(connection)
    expired = end_expired(connection, now, LEASE_BATCH)
    if not expired:
        return [], []
    orphaned = lock_orphaned(connection, expired)
    handed_over = find_handovers(connection, expired)
    settlements = [_after_crash(context, charge, handed_over.get(charge.key), now) for charge in orphaned]
    return settle(connection, settlements, now, keep_dead=context.keeps_dead), expired


def _after_crash(context: Context, charge: Charge, noted: HandedOver | None, now: datetime) -> Settlement:
    in_doubt = in_doubt_after_crash(charge, noted)
    window = context.engine.key_window(charge.kind, in_doubt and in_doubt.carrier)
    return settlement_after_crash(charge, noted, key_window=window, policy=context.retry_policy, now=now)


def audit(context: Context) -> Json:
    """Check the invariants of the money on what is new, and again on a part of what is not.

    Each finding that nobody has acknowledged is logged as an error, every time.
    """
    rules = audit_rules(context)
    report = run_audit(context.database, context.database.read(context.now), rules)
    for finding in report.findings:
        log.error("audit finding", invariant=finding.invariant, subject=finding.subject, difference=finding.difference)
    return report.as_json()


def audit_rules(context: Context) -> AuditRules:
    """Return what an audit has to know."""
    longest_retry = timedelta(seconds=context.retry_policy.max_s)
    return AuditRules(
        longest_wait=max(longest_retry, REDISPATCH_AFTER),
        unknown_for=context.unknown_alarm,
        again=context.audit_again,
    )


def roll_up(context: Context) -> Json:
    """Roll usage up until nothing is left, or enough is done for one round."""
    rolled = 0
    while rolled < ROLL_UP_MAX:
        more = context.database.write(roll_up_usage)
        if not more:
            break
        rolled += more
    return {"status": "done", "rolled": rolled}


@shared_task(name="upkeep.sweep", base=InternalTask, ignore_result=True)
def upkeep_sweep(context: Context, asked: Upkeep) -> Json:  # noqa: ARG001  an empty object
    """One sweep."""
    return sweep(context)


@shared_task(name="upkeep.roll_up", base=InternalTask, ignore_result=True)
def upkeep_roll_up(context: Context, asked: Upkeep) -> Json:  # noqa: ARG001  an empty object
    """One round of rolling usage up."""
    return roll_up(context)


@shared_task(name="upkeep.audit", base=InternalTask, ignore_result=True)
def upkeep_audit(context: Context, asked: Upkeep) -> Json:  # noqa: ARG001  an empty object
    """One audit of what is new."""
    return audit(context)
