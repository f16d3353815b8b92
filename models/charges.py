"""Charges: one row a send job, and the states it goes through. No balance is touched here.

    (charged) ──> sending ──> sent · failed · unknown
                  │   ^
                  v   │ (a new attempt)
                 waiting          refused: never charged        bulk: stands for the messages of a bulk job

A holder of a job is who made its last attempt: its name and the attempt number, which a person may set back, fence out
everybody before. What a holder holds, it holds under one lease. A lease that is over is looked through for what is
still held under it.
"""

import enum
import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
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
    Row,
    String,
    Update,
    bindparam,
    case,
    delete,
    func,
    select,
    true,
    tuple_,
    update,
)

from models.database import insert_in
from models.fields import Kind
from models.rows import fixed, items, packed, unpacked
from models.tables import Instant, accounts, charges, leases, users


class State(enum.StrEnum):
    """Where a charge stands."""

    WAITING = "waiting"
    """Charged; the next attempt begins when it is due."""
    SENDING = "sending"
    """Charged; somebody holds it until the lease ends."""
    SENT = "sent"
    """The carrier took it."""
    FAILED = "failed"
    """The carrier said never, or not now too often; the credits went back."""
    UNKNOWN = "unknown"
    """The carrier may have taken it; still charged, until a person decides."""
    REFUSED = "refused"
    """Nothing was charged."""
    BULK = "bulk"
    """A bulk job: its messages have charges of their own."""


OPEN = (State.WAITING, State.SENDING)
"""States in which Postage will still do something by itself."""
FINAL = (State.SENT, State.FAILED, State.REFUSED)
"""States that never change again."""


# Jobs and charges are not frozen, which would make each take three times as long to make. Nobody changes one.


@dataclass(slots=True, kw_only=True)
class Job:
    """A send job as the ledger takes it. `content` is kept until the job is final."""

    job_id: str
    task: str
    kind: Kind
    sender: str
    credits: int
    digest: str
    content: dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Charge:
    """A charge as it stands. `payer` is None where nothing was charged; `refunded` went back to that same payer."""

    job_id: str
    task: str
    kind: Kind
    sender: str
    digest: str
    payer: str | None
    credits: int
    refunded: int
    state: State
    reason: str | None
    detail: str | None
    attempts: int
    deaths: int
    holder: str | None
    handed_at: datetime | None
    content: dict[str, Any] | None
    recipients_refused: dict[str, str] | None
    carrier_reference: str | None
    bulk_id: str | None
    created_at: datetime
    due_at: datetime | None
    final_at: datetime | None
    sender_name: str | None = None
    sender_address: str | None = None
    fresh: bool = False
    """Whether the caller has just made this attempt its own, and must go on with it."""


_COLUMNS = (
    *(charges.c[name] for name in (
        "job_id", "task", "kind", "sender", "digest", "credits", "refunded", "state", "reason", "detail", "attempts",
        "deaths", "holder", "handed_at", "content", "recipients_refused", "carrier_reference", "bulk_id", "created_at",
        "due_at", "final_at",
    )),
    accounts.c.owner_id.label("payer"),
    users.c.name.label("sender_name"),
    users.c.email.label("sender_address"),
)  # fmt: skip
_SELECT = select(*_COLUMNS).select_from(
    charges.outerjoin(accounts, accounts.c.id == charges.c.account_id).outerjoin(users, users.c.id == charges.c.sender)
)


def _charge(row: Row[Any], *, fresh: bool = False) -> Charge:
    return Charge(**{**row._mapping, "state": State(row.state), "fresh": fresh})  # noqa: SLF001  its public name


class Due(NamedTuple):
    """A job that waits for its next attempt, and how many were made."""

    kind: Kind
    job_id: str
    attempts: int


def read(connection: Connection, job_ids: Collection[str]) -> dict[str, Charge]:
    """The charges of `job_ids` as they stand, by id; unknown ids are left out."""
    return {row.job_id: _charge(row) for row in connection.execute(_SELECT.where(charges.c.job_id.in_(job_ids)))}


def read_in_order(connection: Connection, job_ids: Collection[str]) -> list[Charge]:
    """The same in id order."""
    return [charge for _, charge in sorted(read(connection, job_ids).items())]


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
    return [
        _charge(row, fresh=True)
        for row in connection.execute(_SELECT.where(charges.c.job_id.in_(held)).order_by(charges.c.job_id))
    ]


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


def take_due(connection: Connection, now: datetime, look_again_at: datetime, limit: int) -> list[Due]:
    """The jobs whose next attempt is due, longest first.

    Each is put off until `look_again_at`, so that a busy queue does not get the same job over and over, and a lost
    message is made up for.
    """
    due = _lock_due(connection, State.WAITING, now, limit)
    taken = connection.execute(
        update(charges)
        .where(charges.c.job_id.in_(due))
        .values(due_at=look_again_at)
        .returning(charges.c.kind, charges.c.job_id, charges.c.attempts)
    )
    return sorted(Due(*row) for row in taken)


def take_due_bulks(connection: Connection, now: datetime, look_again_at: datetime, limit: int) -> list[Due]:
    """The messages of due bulk jobs that were never begun, longest due first; the jobs are put off in the same way.

    A job all of whose messages were begun is not due any more: from then on they are due themselves.
    """
    due = _lock_due(connection, State.BULK, now, limit)
    left = [
        (row.bulk_id, Due(row.kind, row.job_id, row.attempts))
        for row in connection.execute(
            select(charges.c.bulk_id, charges.c.kind, charges.c.job_id, charges.c.attempts)
            .where(charges.c.bulk_id.in_(due), _never_begun)
            .order_by(charges.c.job_id)
        )
    ]
    unfinished = {bulk_id for bulk_id, _ in left}
    connection.execute(
        update(charges)
        .where(charges.c.job_id.in_(due))
        .values(due_at=case((charges.c.job_id.in_(unfinished), look_again_at), else_=None))
    )
    return [message for _, message in left]


def _lock_due(connection: Connection, state: State, now: datetime, limit: int) -> list[str]:
    due = (
        select(charges.c.job_id)
        .where(charges.c.due_at <= now, charges.c.state == state)
        .order_by(charges.c.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return list(connection.execute(due).scalars())


_never_begun = (charges.c.state == State.WAITING) & charges.c.due_at.is_(None)
"""Whether a message of a bulk job waits for its first attempt: not it is due, but the job."""


def waiting() -> list[ColumnElement[bool]]:
    """Which charges wait for an attempt: those that are due themselves, and those whose bulk job is."""
    bulk = charges.alias("bulk")
    due = select(bulk.c.job_id).where(bulk.c.due_at.is_not(None), bulk.c.state == State.BULK)
    return [
        charges.c.due_at.is_not(None) & (charges.c.state == State.WAITING),
        charges.c.bulk_id.in_(due) & _never_begun,
    ]


def held(under: ColumnElement[bool] | None = None) -> ColumnElement[bool]:
    """Whether a charge is being sent and named by a lease, of all or of those `under` which it is asked for."""
    item = items(leases.c.job_ids).table_valued("value", name="item")
    named = select(item.c.value).select_from(leases.join(item, true()))
    return charges.c.job_id.in_(named if under is None else named.where(under)) & (charges.c.state == State.SENDING)


def made_since(since: datetime) -> list[ColumnElement[bool]]:
    """Which charges were made since then: those that were paid, account by account, and those that were not."""
    lately = charges.c.created_at >= since
    return [charges.c.account_id.in_(select(accounts.c.id)) & lately, charges.c.account_id.is_(None) & lately]


def lock_over(connection: Connection, now: datetime, limit: int) -> list[str]:
    """The holders whose lease is over, longest first, locked until the transaction ends; not those that others lock."""
    over = (
        select(leases.c.holder)
        .where(leases.c.until <= now)
        .order_by(leases.c.until)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return list(connection.execute(over).scalars())


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


def with_deaths(connection: Connection, job_ids: Collection[str]) -> set[str]:
    """Those of `job_ids` over which a worker has died."""
    found = connection.execute(select(charges.c.job_id).where(charges.c.job_id.in_(job_ids), charges.c.deaths > 0))
    return set(found.scalars())


def lock_unknown(connection: Connection, job_ids: Collection[str]) -> list[Charge]:
    """Those of `job_ids` whose outcome is unknown, locked in id order until the transaction ends."""
    found = connection.execute(
        select(charges.c.job_id)
        .where(charges.c.job_id.in_(job_ids), charges.c.state == State.UNKNOWN)
        .order_by(charges.c.job_id)
        .with_for_update()
    ).scalars()
    return read_in_order(connection, list(found))


def begin_anew(connection: Connection, charge: Charge, content: dict[str, Any], now: datetime) -> None:
    """Let an unknown job wait, due at once, as if nobody had tried it before."""
    connection.execute(
        update(charges)
        .where(charges.c.job_id == charge.job_id, charges.c.state == State.UNKNOWN)
        .values(state=State.WAITING, reason=None, detail=None, attempts=0, deaths=0, holder=None, handed_at=None,
                unknown_since=None, due_at=now, content=content)
    )  # fmt: skip


def count_states(connection: Connection, bulk_id: str) -> dict[State, int]:
    """How many messages of a bulk job stand where."""
    found = connection.execute(
        select(charges.c.state, func.count()).where(charges.c.bulk_id == bulk_id).group_by(charges.c.state)
    )
    return {State(state): count for state, count in found}


def charged_now(connection: Connection, bulk_id: str) -> int:
    """The credits that the messages of a bulk job have cost so far, refunds taken out."""
    total = func.coalesce(func.sum(charges.c.credits - charges.c.refunded), 0)
    return int(connection.execute(select(total).where(charges.c.bulk_id == bulk_id)).scalar_one())


def bulk_payer(connection: Connection, bulk_id: str) -> str | None:
    """Who paid for the messages of a bulk job: one owner for all, as they were charged together."""
    query = (
        select(accounts.c.owner_id)
        .join(charges, charges.c.account_id == accounts.c.id)
        .where(charges.c.bulk_id == bulk_id)
        .limit(1)
    )
    return connection.execute(query).scalar()
