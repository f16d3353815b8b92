"""Charges: one row a send job, and the states that it goes through. No balance is touched here.

    (charged) ──> sending ──> sent · failed · unknown
                  │   ^
                  v   │ (the next attempt)
                 waiting          refused: never charged        bulk: stands for the messages of a bulk job

Which attempt holds a job is in leases.py, which job waits and is due in due.py.
"""

import enum
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, func, select, update

from models.database.schema import accounts, charges, users
from models.messages.base import Json
from models.messages.fields import Kind


class State(enum.StrEnum):
    """Where a charge stands."""

    WAITING = "waiting"
    """Charged; the next attempt begins when it is due."""
    SENDING = "sending"
    """Charged; an attempt holds it until its lease ends."""
    SENT = "sent"
    """The carrier took it."""
    FAILED = "failed"
    """The carrier said never, or "not now" too often; the credits went back."""
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


# SendJob and Charge are not frozen, because making a frozen one takes three times as long. Nothing changes them.


@dataclass(slots=True, kw_only=True)
class SendJob:
    """A send job that is to be charged. `content` is stored until the job is final."""

    job_id: str
    task: str
    kind: Kind
    sender: str
    credits: int
    digest: str
    content: Json


@dataclass(slots=True, kw_only=True)
class Charge:
    """A charge as it stands. `payer` is None if nothing was charged; `refunded` credits went back to that payer."""

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
    crashes: int
    lease_id: str | None
    handover_started_at: datetime | None
    content: Json | None
    recipients_refused: dict[str, str] | None
    carrier_reference: str | None
    bulk_id: str | None
    created_at: datetime
    due_at: datetime | None
    final_at: datetime | None
    sender_name: str | None = None
    sender_address: str | None = None
    is_new: bool = False
    """Whether the caller has just begun this attempt and must go on with it."""


_COLUMNS = (
    *(charges.c[name] for name in (
        "job_id", "task", "kind", "sender", "digest", "credits", "refunded", "state", "reason", "detail", "attempts",
        "crashes", "lease_id", "handover_started_at", "content", "recipients_refused", "carrier_reference", "bulk_id",
        "created_at", "due_at", "final_at",
    )),
    accounts.c.owner_id.label("payer"),
    users.c.name.label("sender_name"),
    users.c.email.label("sender_address"),
)  # fmt: skip
_SELECT = select(*_COLUMNS).select_from(
    charges.outerjoin(accounts, accounts.c.id == charges.c.account_id).outerjoin(users, users.c.id == charges.c.sender)
)


def _from_row(row: Row[Any], *, is_new: bool) -> Charge:
    return Charge(**{**row._mapping, "state": State(row.state), "is_new": is_new})  # noqa: SLF001  its public name


def find_charges(connection: Connection, job_ids: Collection[str], *, are_new: bool = False) -> dict[str, Charge]:
    """Return the charges of `job_ids` as they stand, by id; unknown ids are left out."""
    found = connection.execute(_SELECT.where(charges.c.job_id.in_(job_ids)))
    return {row.job_id: _from_row(row, is_new=are_new) for row in found}


def list_charges(connection: Connection, job_ids: Collection[str], *, are_new: bool = False) -> list[Charge]:
    """Return the same in id order."""
    return [charge for _, charge in sorted(find_charges(connection, job_ids, are_new=are_new).items())]


def charged_since(since: datetime) -> list[ColumnElement[bool]]:
    """Return the conditions for charges made since then, one for each index: those that were paid, and the others."""
    lately = charges.c.created_at >= since
    return [charges.c.account_id.in_(select(accounts.c.id)) & lately, charges.c.account_id.is_(None) & lately]


def ids_with_crashes(connection: Connection, job_ids: Collection[str]) -> set[str]:
    """Return those of `job_ids` during whose attempts a worker crashed."""
    found = connection.execute(select(charges.c.job_id).where(charges.c.job_id.in_(job_ids), charges.c.crashes > 0))
    return set(found.scalars())


def lock_unknown(connection: Connection, job_ids: Collection[str]) -> list[Charge]:
    """Lock those of `job_ids` whose outcome is unknown, in id order, until the transaction ends."""
    found = connection.execute(
        select(charges.c.job_id)
        .where(charges.c.job_id.in_(job_ids), charges.c.state == State.UNKNOWN)
        .order_by(charges.c.job_id)
        .with_for_update()
    ).scalars()
    return list_charges(connection, list(found))


def restart(connection: Connection, charge: Charge, content: Json, now: datetime) -> None:
    """Let an unknown job wait, due at once, with all its attempts before it."""
    connection.execute(
        update(charges)
        .where(charges.c.job_id == charge.job_id, charges.c.state == State.UNKNOWN)
        .values(state=State.WAITING, reason=None, detail=None, attempts=0, crashes=0, lease_id=None,
                handover_started_at=None, unknown_since=None, due_at=now, content=content)
    )  # fmt: skip


def bulk_message_id(bulk_id: str, place: int) -> str:
    """Return the id of the message to the recipient at `place` (from 0) of a bulk job. No producer can make one."""
    return f"{bulk_id}/{place}"


def count_bulk_states(connection: Connection, bulk_id: str) -> dict[State, int]:
    """Return how many messages of a bulk job are in each state."""
    found = connection.execute(
        select(charges.c.state, func.count()).where(charges.c.bulk_id == bulk_id).group_by(charges.c.state)
    )
    return {State(state): count for state, count in found}


def bulk_credits(connection: Connection, bulk_id: str) -> int:
    """Return what the messages of a bulk job cost now, refunds taken out."""
    total = func.coalesce(func.sum(charges.c.credits - charges.c.refunded), 0)
    return int(connection.execute(select(total).where(charges.c.bulk_id == bulk_id)).scalar_one())


def bulk_payer(connection: Connection, bulk_id: str) -> str | None:
    """Return who paid for the messages of a bulk job: one owner for all, as they were charged together."""
    query = (
        select(accounts.c.owner_id)
        .join(charges, charges.c.account_id == accounts.c.id)
        .where(charges.c.bulk_id == bulk_id)
        .limit(1)
    )
    return connection.execute(query).scalar()
