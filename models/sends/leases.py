"""Leases: which attempt holds a job, until when, and what is left behind when its worker crashes.

(lease_id, attempt number) is a fencing token: a write that carries an older pair is ignored. The attempt number alone
is not enough, since an operator may reset it. A lease id is a fresh UUID, made for the jobs that are begun together; it
never names a worker. Each organization has a row of its own for its jobs among them. When a lease expires, the jobs
that are still held under it are orphaned. A worker that lives renews the leases of its attempts, which may last long.
"""

import functools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Delete,
    FromClause,
    Insert,
    Integer,
    Select,
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
from sqlalchemy.types import TypeEngine

from models.database.json_rows import json_elements, rows_from, rows_param
from models.database.schema import UtcDateTime, charges, handovers, leases
from models.database.statements import insert_for, is_among, is_selected, lock_overdue, sql_literal
from models.ids import new_id
from models.sends.charges import Charge, JobKey, State, find_charges


class LeaseKey(NamedTuple):
    """The key of a lease: the organization of its jobs, and its id."""

    org_id: int
    lease_id: str


@functools.cache
def insert_leases(dialect: str) -> Insert:
    """Return the statement that begins a lease for each organization.

    Its parameters: `lease_id`, `lease_until`, and rows of an organization and the ids of its jobs, `new_leases`.
    """
    types: dict[str, TypeEngine[Any]] = {"org_id": Integer(), "job_ids": JSON()}
    begun = rows_from(dialect, types, "new_leases")
    values = (begun.c.org_id, bindparam("lease_id", type_=String).label("lease_id"),
              bindparam("lease_until", type_=UtcDateTime).label("until"), begun.c.job_ids)  # fmt: skip
    rows = select(*values).where(true())  # SQLite takes ON CONFLICT for a part of the SELECT unless that has a WHERE
    insert_rows = insert_for(dialect, leases).from_select(["org_id", "lease_id", "until", "job_ids"], rows)
    return insert_rows.on_conflict_do_nothing()  # it is there already if the answer to an earlier commit was lost


@functools.cache
def delete_finished_leases(dialect: str) -> Delete:
    """Return the statement that deletes leases whose jobs have all been settled.

    Its parameter `settled_leases` holds the keys of leases, and how many of their jobs have been settled by now.
    """
    types: dict[str, TypeEngine[Any]] = {"org_id": Integer(), "lease_id": String(), "jobs": Integer()}
    settled = rows_from(dialect, types, "settled_leases")
    lease = tuple_(leases.c.org_id, leases.c.lease_id, func.json_array_length(leases.c.job_ids))
    return delete(leases).where(lease.in_(select(settled.c.org_id, settled.c.lease_id, settled.c.jobs)))


def count_by_lease(held: Iterable[Charge]) -> Counter[LeaseKey]:
    """Return how many of these jobs each lease holds."""
    return Counter(LeaseKey(charge.org_id, charge.lease_id) for charge in held if charge.lease_id is not None)


def claim_jobs(
    connection: Connection, org_id: int, attempts: Mapping[str, int], *, lease_id: str, lease_until: datetime
) -> list[Charge]:
    """Begin the next attempt of an organization's waiting jobs, given how many attempts each has had.

    A job that has had more attempts meanwhile was dispatched twice and is skipped, as is one that another worker is
    claiming. Run again under the same `lease_id`, after a commit whose answer was lost, it finds what it claimed then.
    """
    lease = rows_param(connection, [{"org_id": org_id, "job_ids": list(attempts)}], "new_leases")
    connection.execute(
        insert_leases(connection.dialect.name), {**lease, "lease_id": lease_id, "lease_until": lease_until}
    )
    claimed_before = (charges.c.state == State.SENDING) & (charges.c.lease_id == lease_id)
    found = connection.execute(
        select(charges.c.job_id, charges.c.state, charges.c.attempts)
        .where(
            charges.c.org_id == org_id,
            charges.c.job_id.in_(attempts),
            (charges.c.state == State.WAITING) | claimed_before,
        )
        .order_by(charges.c.job_id)
        .with_for_update(skip_locked=True)
    ).all()
    waiting = [row.job_id for row in found if row.state == State.WAITING and row.attempts == attempts[row.job_id]]
    connection.execute(
        update(charges)
        .where(charges.c.org_id == org_id, charges.c.job_id.in_(waiting))
        .values(
            state=State.SENDING,
            attempts=charges.c.attempts + 1,
            lease_id=lease_id,
            lease_until=lease_until,
            due_at=None,
        )
    )
    held = [*waiting, *(row.job_id for row in found if row.state == State.SENDING)]
    return list(find_charges(connection, [JobKey(org_id, job_id) for job_id in held], are_new=True).values())


class HandedOver(NamedTuple):
    """Which carrier may have a message, and since when. In an earlier release carriers had no names."""

    carrier: str | None
    at: datetime


class HandoverNote(NamedTuple):
    """What is noted together: jobs of one lease that a carrier may have from now on."""

    lease: LeaseKey
    carrier: str
    job_ids: tuple[str, ...]


def note_handovers(connection: Connection, notes: Sequence[HandoverNote], now: datetime) -> set[LeaseKey]:
    """Note that from now on carriers may have these messages, with one row for each lease and carrier.

    Returns the leases that are held. The messages of others must not be handed over: a sweep has ended their attempts,
    or is about to, and waits for nothing but this transaction.
    """
    rows = [
        {**note.lease._asdict(), "id": new_id(), "carrier": note.carrier, "job_ids": note.job_ids} for note in notes
    ]
    parameters = {**rows_param(connection, rows, "notes"), "now": now}
    return {LeaseKey(*row) for row in connection.execute(_note_handovers(connection.dialect.name), parameters)}


@functools.cache
def _note_handovers(dialect: str) -> Insert:
    columns = ("org_id", "lease_id", "id", "carrier", "job_ids")
    noted = rows_from(dialect, {name: handovers.c[name].type for name in columns}, "notes")
    is_its_lease = (leases.c.org_id == noted.c.org_id) & (leases.c.lease_id == noted.c.lease_id)
    rows = (
        select(*(noted.c[name] for name in columns), bindparam("now", type_=UtcDateTime).label("at"))
        .join(leases, is_its_lease)
        .where(leases.c.ended_at.is_(None))
        .with_for_update(read=True, of=leases)
    )
    return (
        insert_for(dialect, handovers)
        .from_select([*columns, "at"], rows)
        .returning(handovers.c.org_id, handovers.c.lease_id)
    )


def renew_leases(connection: Connection, held: Collection[LeaseKey], until: datetime) -> set[LeaseKey]:
    """Let leases last until then. Returns those that are held; a sweep has ended the others."""
    is_one = is_among((leases.c.org_id, leases.c.lease_id), held)
    renewed = connection.execute(
        update(leases)
        .where(is_one, leases.c.ended_at.is_(None))
        .values(until=until)
        .returning(leases.c.org_id, leases.c.lease_id)
    )
    return {LeaseKey(*row) for row in renewed}


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
    return [{name: getattr(charge, name) for name in ATTEMPT} for charge in held]


def _attempts_from(dialect: str) -> FromClause:
    return rows_from(dialect, {name: charges.c[name].type for name in ATTEMPT}, "attempts")


ATTEMPT = ("org_id", "job_id", "attempts", "lease_id")
"""The columns of a charge that name an attempt."""
_SENDING = sql_literal(State.SENDING)


def is_held(attempt: FromClause, state: ColumnElement[str] = _SENDING) -> ColumnElement[bool]:
    """Whether an attempt (the columns `ATTEMPT`) is the last one of its charge, and that is in `state`."""
    return (
        (charges.c.org_id == attempt.c.org_id)
        & (charges.c.job_id == attempt.c.job_id)
        & (charges.c.attempts == attempt.c.attempts)
        & (charges.c.lease_id == attempt.c.lease_id)
        & (charges.c.state == state)
    )


def leased_jobs(under: ColumnElement[bool] | None = None) -> Select[int, str]:
    """Return the keys of the jobs that leases name: any lease, or those for which the condition `under` holds."""
    job_id = json_elements(leases.c.job_ids).table_valued("value", name="leased_job")
    named = select(leases.c.org_id, job_id.c.value.label("job_id")).select_from(leases.join(job_id, true()))
    return named if under is None else named.where(under)


def is_leased(under: ColumnElement[bool] | None = None) -> ColumnElement[bool]:
    """Whether a charge is being sent and a lease names it: any lease, or one for which the condition `under` holds."""
    key = (charges.c.org_id, charges.c.job_id)
    return is_selected(key, leased_jobs(under)) & (charges.c.state == State.SENDING)


def end_expired(connection: Connection, now: datetime, limit: int) -> list[LeaseKey]:
    """End leases whose time is over: their workers hand nothing over from now on. Returns the longest expired first."""
    key = (leases.c.org_id, leases.c.lease_id)
    expired = [LeaseKey(*row) for row in lock_overdue(connection, key, leases.c.until, now, limit)]
    if expired:
        connection.execute(update(leases).where(is_among(key, expired)).values(ended_at=now))
    return expired


def find_handovers(connection: Connection, of: Collection[LeaseKey]) -> dict[JobKey, HandedOver]:
    """Return when the messages of these leases were handed over, and to which carrier."""
    found = connection.execute(
        select(handovers.c.org_id, handovers.c.job_ids, handovers.c.carrier, handovers.c.at)
        .where(is_among((handovers.c.org_id, handovers.c.lease_id), of))
        .order_by(handovers.c.at)
    )
    return {JobKey(row.org_id, job_id): HandedOver(row.carrier, row.at) for row in found for job_id in row.job_ids}


def lock_orphaned(connection: Connection, expired: Collection[LeaseKey]) -> list[Charge]:
    """Lock the jobs that are still held under these leases, in key order; those that others have locked are skipped."""
    locked = connection.execute(
        select(charges.c.org_id, charges.c.job_id).where(_is_held_under(expired)).with_for_update(skip_locked=True)
    )
    return list(find_charges(connection, [JobKey(*row) for row in locked]).values())


def delete_idle(connection: Connection, expired: Collection[LeaseKey]) -> int:
    """Delete those of these leases under which no job is held any more. Returns how many they were."""
    held = select(charges.c.org_id, charges.c.lease_id).where(_is_held_under(expired)).distinct()
    idle = set(expired).difference(LeaseKey(*row) for row in connection.execute(held))
    if idle:
        connection.execute(delete(leases).where(is_among((leases.c.org_id, leases.c.lease_id), idle)))
    return len(idle)


def _is_held_under(expired: Collection[LeaseKey]) -> ColumnElement[bool]:
    """Whether a charge is held under one of these leases. An id is made once, so the organization adds nothing."""
    lease_ids = {lease.lease_id for lease in expired}
    return is_leased(leases.c.lease_id.in_(lease_ids)) & charges.c.lease_id.in_(lease_ids)
