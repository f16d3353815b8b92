"""Charges: one row a send job, and the states it goes through. No balance is touched here.

    (charged) ──> sending ──> sent · failed · unknown
                  │   ^
                  v   │ (a new attempt)
                 waiting          refused: never charged        bulk: stands for the messages of a bulk job

Who holds a job that is being sent is in models/holding.py, what waits and is due in models/due.py.
"""

import enum
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    func,
    select,
    update,
)

from models.fields import Kind
from models.tables import accounts, charges, users


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


def _charge(row: Row[Any], *, fresh: bool) -> Charge:
    return Charge(**{**row._mapping, "state": State(row.state), "fresh": fresh})  # noqa: SLF001  its public name


def read(connection: Connection, job_ids: Collection[str], *, fresh: bool = False) -> dict[str, Charge]:
    """The charges of `job_ids` as they stand, by id; unknown ids are left out. `fresh` is noted on each."""
    found = connection.execute(_SELECT.where(charges.c.job_id.in_(job_ids)))
    return {row.job_id: _charge(row, fresh=fresh) for row in found}


def read_in_order(connection: Connection, job_ids: Collection[str], *, fresh: bool = False) -> list[Charge]:
    """The same in id order."""
    return [charge for _, charge in sorted(read(connection, job_ids, fresh=fresh).items())]


def made_since(since: datetime) -> list[ColumnElement[bool]]:
    """Which charges were made since then: those that were paid, account by account, and those that were not."""
    lately = charges.c.created_at >= since
    return [charges.c.account_id.in_(select(accounts.c.id)) & lately, charges.c.account_id.is_(None) & lately]


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
