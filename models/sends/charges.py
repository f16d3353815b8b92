"""Charges: one row a send job, and the states that it goes through. No balance is touched here.

    (charged) ──> sending ──> sent · failed · unknown
                  │   ^
                  v   │ (the next attempt)
                 waiting          refused: never charged        bulk: stands for the messages of a bulk job

Which attempt holds a job is in leases.py, which job waits and is due in due.py.
"""

import enum
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, case, false, func, literal, select, tuple_, update

from models.database.schema import accounts, charges, organizations, users
from models.database.statements import is_among, sql_literal
from models.errors import Reason, Refused
from models.messages.base import Json
from models.messages.fields import Kind
from models.users.organizations import NOBODYS


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


class JobKey(NamedTuple):
    """The key of a job: its sender's organization, and its id there."""

    org_id: int
    job_id: str


# SendJob and Charge are not frozen, because making a frozen one takes three times as long. Nothing changes a job, and
# only settling a charge (settling.py).


@dataclass(slots=True, kw_only=True)
class SendJob:
    """A send job that is to be charged, unless there is a `refusal`. `content` is stored until the job is final."""

    job_id: str
    task: str
    kind: Kind
    sender: str
    credits: int
    digest: str
    content: Json
    refusal: Refused | None = None


@dataclass(slots=True, kw_only=True)
class Charge:
    """A charge as it stands. `payer` is None if nothing was charged; `refunded` credits went back to that payer."""

    org_id: int
    job_id: str
    task: str
    kind: Kind
    sender: str
    digest: str
    credits: int
    state: State
    created_at: datetime
    payer: str | None = None
    refunded: int = 0
    reason: str | None = None
    detail: str | None = None
    attempts: int = 0
    crashes: int = 0
    lease_id: str | None = None
    handover_started_at: datetime | None = None
    content: Json | None = None
    recipients_refused: dict[str, str] | None = None
    carrier_reference: str | None = None
    carrier: str | None = None
    bulk_id: str | None = None
    due_at: datetime | None = None
    final_at: datetime | None = None
    sender_name: str | None = None
    sender_address: str | None = None
    is_of_earlier_release: bool = False
    """Whether it was charged before migration 0006, so that a carrier may know it by its job id alone."""
    is_new: bool = False
    """Whether the caller has just begun this attempt and must go on with it."""

    @property
    def key(self) -> JobKey:
        """The key of its job."""
        return JobKey(self.org_id, self.job_id)


_COLUMNS = (
    *(charges.c[name] for name in (
        "org_id", "job_id", "task", "kind", "sender", "digest", "credits", "refunded", "state", "reason", "detail",
        "attempts", "crashes", "lease_id", "handover_started_at", "content", "recipients_refused", "carrier_reference",
        "carrier", "bulk_id", "created_at", "due_at", "final_at",
    )),
    accounts.c.owner_id.label("payer"),
    # Its entry has a job's id, as no other has: that of the job, or of the bulk job which it belongs to.
    func.coalesce(charges.c.charged_by.in_((charges.c.job_id, charges.c.bulk_id)), false()).label(
        "is_of_earlier_release"
    ),
    users.c.name.label("sender_name"),
    users.c.email.label("sender_address"),
)  # fmt: skip
KEY = (charges.c.org_id, charges.c.job_id)
"""The columns of a job's key."""
_SELECT = select(*_COLUMNS).select_from(
    charges.outerjoin(
        accounts, (accounts.c.org_id == charges.c.org_id) & (accounts.c.id == charges.c.account_id)
    ).outerjoin(users, users.c.id == charges.c.sender)
)


def _from_row(row: Row[Any], *, is_new: bool) -> Charge:
    return Charge(**{**row._mapping, "state": State(row.state), "is_new": is_new})  # noqa: SLF001  its public name


def find_charges(connection: Connection, keys: Iterable[JobKey], *, are_new: bool = False) -> dict[JobKey, Charge]:
    """Return the charges of jobs as they stand, by key and in the order of the keys; unknown ones are left out."""
    if not (wanted := set(keys)):
        return {}
    found = connection.execute(_SELECT.where(is_among(KEY, wanted)).order_by(*KEY))
    return {JobKey(row.org_id, row.job_id): _from_row(row, is_new=are_new) for row in found}


def find_everywhere(connection: Connection, job_ids: Collection[str]) -> dict[JobKey, Charge]:
    """Return the charges of these ids in all organizations, for operators, who are not told which one it is."""
    everywhere = select(organizations.c.id).union_all(select(literal(NOBODYS)))
    found = connection.execute(_SELECT.where(charges.c.org_id.in_(everywhere), charges.c.job_id.in_(job_ids)))
    return dict(sorted((JobKey(row.org_id, row.job_id), _from_row(row, is_new=False)) for row in found))


def charged_since(since: datetime) -> list[ColumnElement[bool]]:
    """Return the conditions for charges made since then, one for each index: those that were paid, and the others."""
    lately = charges.c.created_at >= since
    all_accounts = select(accounts.c.org_id, accounts.c.id)
    paid = tuple_(charges.c.org_id, charges.c.account_id).in_(all_accounts)
    return [paid & lately, charges.c.account_id.is_(None) & lately]


def keys_with_crashes(connection: Connection, keys: Iterable[JobKey]) -> set[JobKey]:
    """Return the jobs during whose attempts a worker crashed."""
    crashed = connection.execute(select(*KEY).where(is_among(KEY, keys), charges.c.crashes > 0))
    return {JobKey(*row) for row in crashed}


def lock_unknown(connection: Connection, keys: Iterable[JobKey]) -> list[Charge]:
    """Lock those jobs whose outcome is unknown, in the order of their keys, until the transaction ends."""
    unknown = is_among(KEY, keys) & (charges.c.state == State.UNKNOWN)
    locked = connection.execute(select(*KEY).where(unknown).order_by(*KEY).with_for_update())
    return list(find_charges(connection, [JobKey(*row) for row in locked]).values())


def restart(connection: Connection, charge: Charge, content: Json, now: datetime) -> None:
    """Let an unknown job wait, due at once, with all its attempts before it."""
    connection.execute(
        update(charges)
        .where(is_job(charge.key), charges.c.state == State.UNKNOWN)
        .values(state=State.WAITING, reason=None, detail=None, attempts=0, crashes=0, lease_id=None,
                handover_started_at=None, unknown_since=None, due_at=now, content=content)
    )  # fmt: skip


def shown_state() -> ColumnElement[str]:
    """Return the state of a charge as people are shown it: one that was cancelled after it was paid is refused."""
    was_cancelled = (charges.c.state == sql_literal(State.FAILED)) & (charges.c.reason == sql_literal(Reason.CANCELLED))
    return case((was_cancelled, sql_literal(State.REFUSED)), else_=charges.c.state)


def bulk_message_id(bulk_id: str, place: int) -> str:
    """Return the id of the message to the recipient at `place` (from 0) of a bulk job. No producer can make one."""
    return f"{bulk_id}/{place}"


def is_job(key: JobKey) -> ColumnElement[bool]:
    """Whether a charge is that of this job."""
    return (charges.c.org_id == key.org_id) & (charges.c.job_id == key.job_id)


def is_message_of(bulk: JobKey) -> ColumnElement[bool]:
    """Whether a charge is that of a message of this bulk job."""
    return (charges.c.org_id == bulk.org_id) & (charges.c.bulk_id == bulk.job_id)


def count_bulk_states(connection: Connection, bulk: JobKey) -> dict[State, int]:
    """Return how many messages of a bulk job are in each state."""
    state = shown_state()
    found = connection.execute(select(state, func.count()).where(is_message_of(bulk)).group_by(state))
    return {State(state): count for state, count in found}


def bulk_credits(connection: Connection, bulk: JobKey) -> int:
    """Return what the messages of a bulk job cost now, refunds taken out."""
    total = func.coalesce(func.sum(charges.c.credits - charges.c.refunded), 0)
    return int(connection.execute(select(total).where(is_message_of(bulk))).scalar_one())


def bulk_payer(connection: Connection, bulk: JobKey) -> str | None:
    """Return who paid for the messages of a bulk job: one owner for all, as they were charged together."""
    query = (
        select(accounts.c.owner_id)
        .join(charges, (charges.c.org_id == accounts.c.org_id) & (charges.c.account_id == accounts.c.id))
        .where(is_message_of(bulk))
        .limit(1)
    )
    return connection.execute(query).scalar()


def adopt_refused(connection: Connection, org_id: int, sender: str) -> None:
    """Move what was refused to a sender before they were saved into their organization, so that it stays refused."""
    known = charges.alias("known")
    is_taken = select(known.c.job_id).where(known.c.org_id == org_id, known.c.job_id == charges.c.job_id).exists()
    connection.execute(
        update(charges).where(charges.c.org_id == NOBODYS, charges.c.sender == sender, ~is_taken).values(org_id=org_id)
    )
