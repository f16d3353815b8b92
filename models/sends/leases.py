"""Leases: which attempt holds a job, until when, and what is left behind when its worker crashes.

(lease_id, attempt number) is a fencing token: a write that carries an older pair is ignored. The attempt number alone
is not enough, since an operator may reset it. A lease id is a fresh UUID, made for the jobs that are begun together; it
never names a worker. When a lease expires, the jobs that are still held under it are orphaned.
"""

import functools
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Delete,
    FromClause,
    Insert,
    Integer,
    String,
    Update,
    bindparam,
    delete,
    func,
    select,
    true,
    tuple_,
    update,
)

from models.database.json_rows import json_elements, rows_from, rows_param
from models.database.schema import UtcDateTime, charges, leases
from models.database.statements import insert_for, lock_overdue, sql_literal
from models.sends.charges import Charge, State, list_charges


@functools.cache
def insert_lease(dialect: str) -> Insert:
    """Return the statement that begins a lease. Its parameters: `lease_id`, `lease_until`, and the ids `job_ids`."""
    values = {"lease_id": bindparam("lease_id", type_=String), "until": bindparam("lease_until", type_=UtcDateTime)}
    new_lease = insert_for(dialect, leases).values(**values, job_ids=bindparam("job_ids", type_=JSON))
    return new_lease.on_conflict_do_nothing()  # it is there already if the answer to an earlier commit was lost


@functools.cache
def delete_finished_leases(dialect: str) -> Delete:
    """Return the statement that deletes leases whose jobs have all been settled.

    Its parameter `settled_leases` holds rows of a lease id and of how many of its jobs have been settled by now.
    """
    settled = rows_from(dialect, {"lease_id": String(), "jobs": Integer()}, "settled_leases")
    lease = tuple_(leases.c.lease_id, func.json_array_length(leases.c.job_ids))
    return delete(leases).where(lease.in_(select(settled.c.lease_id, settled.c.jobs)))


def claim_jobs(
    connection: Connection, attempts: Mapping[str, int], *, lease_id: str, lease_until: datetime
) -> list[Charge]:
    """Begin the next attempt of waiting jobs, given how many attempts each has had.

    A job that has had more attempts meanwhile was dispatched twice and is skipped, as is one that another worker is
    claiming. Run again under the same `lease_id`, after a commit whose answer was lost, it finds what it claimed then.
    """
    lease = {"lease_id": lease_id, "lease_until": lease_until, "job_ids": list(attempts)}
    connection.execute(insert_lease(connection.dialect.name), lease)
    claimed_before = (charges.c.state == State.SENDING) & (charges.c.lease_id == lease_id)
    found = connection.execute(
        select(charges.c.job_id, charges.c.state, charges.c.attempts)
        .where(charges.c.job_id.in_(attempts), (charges.c.state == State.WAITING) | claimed_before)
        .order_by(charges.c.job_id)
        .with_for_update(skip_locked=True)
    ).all()
    waiting = [row.job_id for row in found if row.state == State.WAITING and row.attempts == attempts[row.job_id]]
    connection.execute(
        update(charges)
        .where(charges.c.job_id.in_(waiting))
        .values(
            state=State.SENDING,
            attempts=charges.c.attempts + 1,
            lease_id=lease_id,
            lease_until=lease_until,
            due_at=None,
        )
    )
    held = [*waiting, *(row.job_id for row in found if row.state == State.SENDING)]
    return list_charges(connection, held, are_new=True)


def mark_handover(connection: Connection, held: Sequence[Charge], now: datetime) -> set[str]:
    """Note that from now on the carrier may have these messages. Returns the ids of those that are still held."""
    parameters = {**rows_param(connection, _attempts(held), "attempts"), "now": now}
    return set(connection.execute(_mark_handover(connection.dialect.name), parameters).scalars())


@functools.cache
def _mark_handover(dialect: str) -> Update:
    started_at = func.coalesce(charges.c.handover_started_at, bindparam("now", type_=UtcDateTime))
    return (
        update(charges)
        .where(is_held(_attempts_from(dialect)))
        .values(handover_started_at=started_at)
        .returning(charges.c.job_id)
    )


def release_jobs(connection: Connection, held: Sequence[Charge], now: datetime) -> None:
    """Release jobs that were claimed but not attempted: they wait, due at once, and the attempt does not count."""
    parameters = {**rows_param(connection, _attempts(held), "attempts"), "now": now}
    connection.execute(_release_jobs(connection.dialect.name), parameters)


@functools.cache
def _release_jobs(dialect: str) -> Update:
    return (
        update(charges)
        .where(is_held(_attempts_from(dialect)))
        .values(
            state=State.WAITING,
            attempts=charges.c.attempts - 1,
            lease_until=None,
            due_at=bindparam("now", type_=UtcDateTime),
        )
    )


def _attempts(held: Sequence[Charge]) -> list[dict[str, Any]]:
    return [{"job_id": charge.job_id, "attempts": charge.attempts, "lease_id": charge.lease_id} for charge in held]


def _attempts_from(dialect: str) -> FromClause:
    return rows_from(dialect, {name: charges.c[name].type for name in ("job_id", "attempts", "lease_id")}, "attempts")


_SENDING = sql_literal(State.SENDING)


def is_held(attempt: FromClause, state: ColumnElement[str] = _SENDING) -> ColumnElement[bool]:
    """Whether an attempt (`job_id`, `attempts`, `lease_id`) is the last one of its charge, and that is in `state`."""
    return (
        (charges.c.job_id == attempt.c.job_id)
        & (charges.c.attempts == attempt.c.attempts)
        & (charges.c.lease_id == attempt.c.lease_id)
        & (charges.c.state == state)
    )


def is_leased(under: ColumnElement[bool] | None = None) -> ColumnElement[bool]:
    """Whether a charge is being sent and a lease names it: any lease, or one for which the condition `under` holds."""
    job_id = json_elements(leases.c.job_ids).table_valued("value", name="leased_job")
    named = select(job_id.c.value).select_from(leases.join(job_id, true()))
    return charges.c.job_id.in_(named if under is None else named.where(under)) & (charges.c.state == State.SENDING)


def lock_expired(connection: Connection, now: datetime, limit: int) -> list[str]:
    """Lock leases that have expired, and return their ids, the longest expired first."""
    return lock_overdue(connection, leases.c.lease_id, leases.c.until, now, limit)


def lock_orphaned(connection: Connection, lease_ids: Collection[str]) -> list[Charge]:
    """Lock the jobs that are still held under these leases, in id order; those that others have locked are skipped."""
    locked = connection.execute(
        select(charges.c.job_id).where(_is_held_under(lease_ids)).with_for_update(skip_locked=True)
    ).scalars()
    return list_charges(connection, list(locked))


def delete_idle(connection: Connection, lease_ids: Collection[str]) -> int:
    """Delete those of these leases under which no job is held any more. Returns how many they were."""
    busy = connection.execute(select(charges.c.lease_id).where(_is_held_under(lease_ids)).distinct()).scalars()
    idle = set(lease_ids).difference(busy)
    connection.execute(delete(leases).where(leases.c.lease_id.in_(idle)))
    return len(idle)


def _is_held_under(lease_ids: Collection[str]) -> ColumnElement[bool]:
    return is_leased(leases.c.lease_id.in_(lease_ids)) & charges.c.lease_id.in_(lease_ids)
