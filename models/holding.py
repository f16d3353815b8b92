"""Who holds a job: leases, the attempts made under them, and what is left where a holder dies.

A holder is who made a job's last attempt: its name and the attempt number, which a person may set back, fence out
everybody before. What a holder holds, it holds under one lease. A lease that is over is looked through for what is
still held under it.
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

from models.charges import Charge, State, read_in_order
from models.database import insert_in, lock_past
from models.rows import fixed, items, packed, unpacked
from models.tables import Instant, charges, leases


@functools.cache
def begin_lease(dialect: str) -> Insert:
    """Note that `holder`, whose name is used for nothing else, is about to hold the jobs `job_ids` until `lease_until`.

    Those three are its parameters.
    """
    given = {"holder": bindparam("holder", type_=String), "until": bindparam("lease_until", type_=Instant)}
    made = insert_in(dialect, leases).values(**given, job_ids=bindparam("job_ids", type_=JSON))
    return made.on_conflict_do_nothing()  # it is there if the answer to an earlier commit was lost


@functools.cache
def end_leases(dialect: str) -> Delete:
    """Forget leases of which all jobs have ended; others are looked through when they are over.

    Its parameter `leases` holds rows of a holder and of how many of its jobs have ended by now.
    """
    ending = unpacked(dialect, {"holder": String(), "jobs": Integer()}, "leases")
    lease = tuple_(leases.c.holder, func.json_array_length(leases.c.job_ids))
    return delete(leases).where(lease.in_(select(ending.c.holder, ending.c.jobs)))


def claim(connection: Connection, attempts: Mapping[str, int], *, holder: str, lease_until: datetime) -> list[Charge]:
    """Begin the next attempt of jobs that wait, given how many attempts each has had.

    One that has had more meanwhile was asked for twice; one that somebody else is claiming is left to them. Run again
    under the same `holder`, after a commit whose answer was lost, it finds what it claimed then.
    """
    lease = {"holder": holder, "lease_until": lease_until, "job_ids": list(attempts)}
    connection.execute(begin_lease(connection.dialect.name), lease)
    mine = (charges.c.state == State.SENDING) & (charges.c.holder == holder)
    found = connection.execute(
        select(charges.c.job_id, charges.c.state, charges.c.attempts)
        .where(charges.c.job_id.in_(attempts), (charges.c.state == State.WAITING) | mine)
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
            holder=holder,
            lease_until=lease_until,
            due_at=None,
        )
    )
    held = [*waiting, *(row.job_id for row in found if row.state == State.SENDING)]
    return read_in_order(connection, held, fresh=True)


def mark_handed(connection: Connection, held: Sequence[Charge], now: datetime) -> set[str]:
    """Note that from now on the carrier may have these messages; the jobs whose attempt is still the last one."""
    parameters = {**packed(connection, _attempts(held)), "now": now}
    return set(connection.execute(_mark_handed(connection.dialect.name), parameters).scalars())


@functools.cache
def _mark_handed(dialect: str) -> Update:
    return (
        update(charges)
        .where(is_held(_held(dialect)))
        .values(handed_at=func.coalesce(charges.c.handed_at, bindparam("now", type_=Instant)))
        .returning(charges.c.job_id)
    )


def hand_back(connection: Connection, held: Sequence[Charge], now: datetime) -> None:
    """Let go of jobs that were claimed but not attempted: they wait, due at once, and the attempt does not count."""
    connection.execute(_hand_back(connection.dialect.name), {**packed(connection, _attempts(held)), "now": now})


@functools.cache
def _hand_back(dialect: str) -> Update:
    return (
        update(charges)
        .where(is_held(_held(dialect)))
        .values(
            state=State.WAITING,
            attempts=charges.c.attempts - 1,
            lease_until=None,
            due_at=bindparam("now", type_=Instant),
        )
    )


def _attempts(held: Sequence[Charge]) -> list[dict[str, Any]]:
    return [{"job_id": one.job_id, "attempts": one.attempts, "holder": one.holder} for one in held]


def _held(dialect: str) -> FromClause:
    return unpacked(dialect, {name: charges.c[name].type for name in ("job_id", "attempts", "holder")})


_SENDING = fixed(State.SENDING)


def is_held(attempt: FromClause, state: ColumnElement[str] = _SENDING) -> ColumnElement[bool]:
    """Whether the charge of an attempt (`job_id`, `attempts`, `holder`) is still in its hands, in `state`."""
    return (
        (charges.c.job_id == attempt.c.job_id)
        & (charges.c.attempts == attempt.c.attempts)
        & (charges.c.holder == attempt.c.holder)
        & (charges.c.state == state)
    )


def held(under: ColumnElement[bool] | None = None) -> ColumnElement[bool]:
    """Whether a charge is being sent and named by a lease, of all or of those `under` which it is asked for."""
    item = items(leases.c.job_ids).table_valued("value", name="item")
    named = select(item.c.value).select_from(leases.join(item, true()))
    return charges.c.job_id.in_(named if under is None else named.where(under)) & (charges.c.state == State.SENDING)


def lock_over(connection: Connection, now: datetime, limit: int) -> list[str]:
    """The holders whose lease is over, longest first, locked until the transaction ends; not those that others lock."""
    return lock_past(connection, leases.c.holder, leases.c.until, now, limit)


def lock_dead(connection: Connection, holders: Collection[str]) -> list[Charge]:
    """What these holders still hold, in id order, locked until the transaction ends; not what others lock."""
    locked = connection.execute(
        select(charges.c.job_id).where(_in_hands_of(holders)).with_for_update(skip_locked=True)
    ).scalars()
    return read_in_order(connection, list(locked))


def forget_leases(connection: Connection, holders: Collection[str]) -> int:
    """Forget the leases under which nothing is held any more; how many they were."""
    busy = connection.execute(select(charges.c.holder).where(_in_hands_of(holders)).distinct()).scalars()
    idle = set(holders).difference(busy)
    connection.execute(delete(leases).where(leases.c.holder.in_(idle)))
    return len(idle)


def _in_hands_of(holders: Collection[str]) -> ColumnElement[bool]:
    return held(leases.c.holder.in_(holders)) & charges.c.holder.in_(holders)
