"""The invariants of the money, as read-only queries. A finding is a fault; nothing is mended here."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, Select, String, and_, func, literal, or_, select
from sqlalchemy import cast as sql_cast

from models.fields import KINDS
from models.tables import accounts, charges, entries, orders, users

STALE_AFTER = timedelta(minutes=10)
"""How long after its end a lease may stand before it is a fault: the sweeper should have ended it long ago."""
FINDINGS_MAX = 100
"""Findings named for each invariant; more are as bad."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One place where an invariant does not hold."""

    invariant: str
    subject: str
    difference: str


@dataclass(frozen=True, slots=True)
class Invariant:
    """A truth about the money, and the query that finds where it is none: rows of (subject, difference)."""

    name: str
    exceptions: Select[*tuple[Any, ...]]


def audit(connection: Connection, now: datetime) -> Iterator[Finding]:
    """Everything that does not hold, at one moment (the caller's transaction)."""
    for invariant in invariants(now):
        for row in connection.execute(invariant.exceptions.limit(FINDINGS_MAX)):
            yield _finding(invariant, row)


def _finding(invariant: Invariant, row: Row[*tuple[Any, ...]]) -> Finding:
    subject, *difference = row
    return Finding(invariant.name, str(subject), ", ".join(str(part) for part in difference))


def invariants(now: datetime) -> list[Invariant]:
    """All invariants, in the order they are checked."""
    return [
        Invariant("An account's entries add up to its balance, and are counted without a gap", _sums()),
        Invariant("Each entry leaves the balance that the one before and its amount make", _continuity()),
        Invariant("No balance is below zero", _below_zero()),
        Invariant("Each charge has its entry: the payer's account, the whole cost", _charges_without_entry()),
        Invariant("Each refund has its entry: the same account, the amount refunded", _refunds_without_entry()),
        Invariant("Each order has its entries: the owner's accounts, what was bought", _orders_without_entry()),
        Invariant("Each entry has its charge or order", _orphans()),
        Invariant("Each user has an account of each kind", _missing_accounts()),
        Invariant("A credit owner owns their own credits, in the same organization", _chains()),
        Invariant("A bulk job costs what its messages cost", _bulks()),
        Invariant("No attempt outlives its lease", _stale_leases(now)),
    ]


def _sums() -> Select[*tuple[Any, ...]]:
    written = (
        select(
            entries.c.account_id,
            func.sum(entries.c.amount).label("sum"),
            func.count().label("count"),
            func.max(entries.c.seq).label("last"),
        )
        .group_by(entries.c.account_id)
        .subquery()
    )
    total, count, last = (func.coalesce(written.c[name], 0) for name in ("sum", "count", "last"))
    return (
        select(
            _account_name(),
            literal("balance ") + sql_cast(accounts.c.available, String),
            literal("entries add up to ") + sql_cast(total, String),
            literal("counted ") + sql_cast(accounts.c.seq, String),
            literal("entries ") + sql_cast(count, String),
        )
        .outerjoin_from(accounts, written, written.c.account_id == accounts.c.id)
        .where(or_(total != accounts.c.available, count != accounts.c.seq, last != accounts.c.seq))
    )


def _continuity() -> Select[*tuple[Any, ...]]:
    before = func.lag(entries.c.balance_after, 1, 0).over(partition_by=entries.c.account_id, order_by=entries.c.seq)
    chain = select(entries.c.cause, (before + entries.c.amount).label("should"), entries.c.balance_after).subquery()
    return select(
        chain.c.cause,
        literal("should leave ") + sql_cast(chain.c.should, String),
        literal("says ") + sql_cast(chain.c.balance_after, String),
    ).where(chain.c.should != chain.c.balance_after)


def _below_zero() -> Select[*tuple[Any, ...]]:
    return select(_account_name(), sql_cast(accounts.c.available, String)).where(accounts.c.available < 0)


def _charges_without_entry() -> Select[*tuple[Any, ...]]:
    matches = and_(
        entries.c.cause == literal("charge:") + charges.c.job_id,
        entries.c.account_id == charges.c.account_id,
        entries.c.amount == -charges.c.credits,
    )
    return select(charges.c.job_id, literal("no entry of -") + sql_cast(charges.c.credits, String)).where(
        charges.c.account_id.is_not(None), ~select(entries.c.seq).where(matches).exists()
    )


def _refunds_without_entry() -> Select[*tuple[Any, ...]]:
    matches = and_(
        entries.c.cause == literal("refund:") + charges.c.job_id,
        entries.c.account_id == charges.c.account_id,
        entries.c.amount == charges.c.refunded,
    )
    return select(charges.c.job_id, literal("no entry of ") + sql_cast(charges.c.refunded, String)).where(
        charges.c.refunded > 0, ~select(entries.c.seq).where(matches).exists()
    )


def _orders_without_entry() -> Select[*tuple[Any, ...]]:
    bought = select(
        orders.c.order_id, orders.c.owner_id, literal("email").label("kind"), orders.c.email.label("credits")
    )
    bought_sms = select(orders.c.order_id, orders.c.owner_id, literal("sms"), orders.c.sms)
    parts = bought.union_all(bought_sms).subquery()
    matches = and_(
        entries.c.cause == literal("purchase:") + parts.c.order_id + literal(":") + parts.c.kind,
        entries.c.amount == parts.c.credits,
        entries.c.account_id == accounts.c.id,
        accounts.c.owner_id == parts.c.owner_id,
        accounts.c.kind == parts.c.kind,
    )
    found = select(entries.c.seq).select_from(entries).join(accounts, accounts.c.id == entries.c.account_id)
    return select(parts.c.order_id, literal("no entry of ") + sql_cast(parts.c.credits, String)).where(
        parts.c.credits > 0, ~found.where(matches).exists()
    )


def _orphans() -> Select[*tuple[Any, ...]]:
    charged = select(charges.c.job_id).where(
        entries.c.cause == literal("charge:") + charges.c.job_id, charges.c.account_id == entries.c.account_id
    )
    refunded = select(charges.c.job_id).where(
        entries.c.cause == literal("refund:") + charges.c.job_id, charges.c.refunded == entries.c.amount
    )
    bought = select(orders.c.order_id).where(
        or_(*(entries.c.cause == literal("purchase:") + orders.c.order_id + literal(f":{kind}") for kind in KINDS))
    )
    return select(entries.c.cause, sql_cast(entries.c.amount, String)).where(
        ~charged.exists(), ~refunded.exists(), ~bought.exists()
    )


def _missing_accounts() -> Select[*tuple[Any, ...]]:
    count = func.count(accounts.c.id)
    return (
        select(users.c.id, sql_cast(count, String) + literal(" accounts"))
        .outerjoin_from(users, accounts, accounts.c.owner_id == users.c.id)
        .group_by(users.c.id)
        .having(count != len(KINDS))
    )


def _chains() -> Select[*tuple[Any, ...]]:
    owner = users.alias("owner")
    wrong = or_(
        owner.c.id.is_(None), owner.c.credit_owner_id != owner.c.id, owner.c.organization != users.c.organization
    )
    return (
        select(users.c.id, literal("owner ") + users.c.credit_owner_id)
        .outerjoin_from(users, owner, owner.c.id == users.c.credit_owner_id)
        .where(wrong)
    )


def _bulks() -> Select[*tuple[Any, ...]]:
    message = charges.alias("message")
    total = func.coalesce(
        select(func.sum(message.c.credits)).where(message.c.bulk_id == charges.c.job_id).scalar_subquery(), 0
    )
    return select(charges.c.job_id, sql_cast(charges.c.credits, String), sql_cast(total, String)).where(
        charges.c.state == "bulk", total != charges.c.credits
    )


def _stale_leases(now: datetime) -> Select[*tuple[Any, ...]]:
    return select(charges.c.job_id, literal("lease ended at ") + sql_cast(charges.c.lease_until, String)).where(
        charges.c.lease_until < now - STALE_AFTER
    )


def _account_name() -> Any:  # noqa: ANN401  a column
    return (accounts.c.owner_id + literal("/") + accounts.c.kind).label("account")
