"""What beat asks for: due attempts, attempts whose holder is dead, dead letters that are old, usage, and audits."""

from collections.abc import Sequence
from datetime import timedelta

import structlog
from celery import shared_task
from sqlalchemy import Connection

from models import audit as auditing
from models import charges as charging
from models import dead, holding, usage
from models.charges import State
from models.due import Due, take_due, take_due_bulks
from models.fields import KINDS
from models.judging import judge_death
from models.ledger import Settlement
from tasks.context import Context, Json
from tasks.door import InnerDoor
from tasks.sending import LOOK_AGAIN, enqueue_resume

log = structlog.get_logger(__name__)

SWEPT_AT_ONCE = 500
BULKS_AT_ONCE = 20
"""Bulk jobs, each of up to 500 messages."""
LEASES_AT_ONCE = 10
"""Leases that are ended in one transaction, each with the jobs of a batch."""
ERASED_AT_ONCE = 500
ROLLED_AT_ONCE = 100_000
"""Entries that one round rolls up, in several transactions."""


def sweep(context: Context) -> Json:
    """End dead attempts, enqueue what is due, and erase what was kept long enough."""
    ended = end_dead_attempts(context)
    now = context.now()
    due = context.database.transact(lambda connection: take_due(connection, now, now + LOOK_AGAIN, SWEPT_AT_ONCE))
    enqueue_due(context, due)
    messages = context.database.transact(
        lambda connection: take_due_bulks(connection, now, now + LOOK_AGAIN, BULKS_AT_ONCE)
    )
    _enqueue_together(context, messages)  # nobody can have died over what was never begun
    before = now - context.keep_dead
    erased = context.database.transact(lambda connection: dead.erase(connection, before, ERASED_AT_ONCE))
    return {"status": "done", "resumed": len(due) + len(messages), "ended": len(ended), "erased": erased}


def enqueue_due(context: Context, due: Sequence[Due]) -> None:
    """Ask for the next attempts: many in one message, but of a job over which a worker has died alone.

    It may be what killed the worker, and would take those along that are resumed with it.
    """
    job_ids = [job.job_id for job in due]
    suspects = context.database.look(lambda connection: charging.with_deaths(connection, job_ids)) if due else set()
    _enqueue_together(context, [job for job in due if job.job_id not in suspects])
    for job in due:
        if job.job_id in suspects:
            enqueue_resume(context, job.kind, {job.job_id: job.attempts})


def _enqueue_together(context: Context, due: Sequence[Due]) -> None:
    for kind in KINDS:
        enqueue_resume(context, kind, {job.job_id: job.attempts for job in due if job.kind == kind})


def end_dead_attempts(context: Context) -> list[Settlement]:
    """End the attempts whose lease is over: each job is tried again, set aside, or unknown."""
    dead_now: list[Settlement] = []
    leases_ended = LEASES_AT_ONCE
    while leases_ended == LEASES_AT_ONCE:  # as long as there may be more
        ended, leases_ended = context.database.transact(lambda connection: _end_dead_attempts(context, connection))
        dead_now += ended
    for one in dead_now:
        say = log.error if one.state in (State.UNKNOWN, State.FAILED) else log.warning
        say("a worker died", job=one.charge.job_id, sender=one.charge.sender, payer=one.charge.payer, state=one.state)
    return dead_now


def _end_dead_attempts(context: Context, connection: Connection) -> tuple[list[Settlement], int]:
    now = context.now()
    holders = holding.lock_over(connection, now, LEASES_AT_ONCE)
    if not holders:
        return [], 0
    settlements = [
        judge_death(
            charge,
            patience=context.patience,
            ask_again=context.carriers[charge.kind].honours_job_id,
            now=now,
        )
        for charge in holding.lock_dead(connection, holders)
    ]
    counted = dead.settle(connection, settlements, now, keep_dead=context.keeps_dead)
    return counted, holding.forget_leases(connection, holders)


def audit(context: Context) -> Json:
    """Check the invariants of the money on what is new; each fault is an error in the log."""
    patience = timedelta(seconds=context.database.wait_s)
    found = auditing.check(context.database, context.now(), patience=patience)
    for one in found.findings:
        log.error("audit finding", invariant=one.invariant, subject=one.subject, difference=one.difference)
    return found.as_json()


def roll_up(context: Context) -> Json:
    """Roll up usage until nothing is left, or enough is done for one round."""
    rolled = 0
    while rolled < ROLLED_AT_ONCE:
        more = context.database.transact(usage.roll_up)
        if not more:
            break
        rolled += more
    return {"status": "done", "rolled": rolled}


@shared_task(name="upkeep.sweep", base=InnerDoor, ignore_result=True)
def upkeep_sweep(context: Context, given: Json) -> Json:  # noqa: ARG001  an empty object
    """One round of upkeep."""
    return sweep(context)


@shared_task(name="upkeep.roll_up", base=InnerDoor, ignore_result=True)
def upkeep_roll_up(context: Context, given: Json) -> Json:  # noqa: ARG001  an empty object
    """One round of rolling up usage."""
    return roll_up(context)


@shared_task(name="upkeep.audit", base=InnerDoor, ignore_result=True)
def upkeep_audit(context: Context, given: Json) -> Json:  # noqa: ARG001  an empty object
    """One audit of what is new."""
    return audit(context)
