"""What an audit looks at: stretches of the histories of accounts.

A stretch is a number of entries that follow each other, and a period of charges and orders. An audit looks at what is
new behind the mark of each account, and checks a part of what was checked before again (audit_marks.py); or it looks at
everything. Each invariant has one query for all of these.
"""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Connection,
    FromClause,
    Integer,
    Select,
    String,
    Subquery,
    and_,
    bindparam,
    case,
    func,
    literal,
    select,
    union,
    union_all,
)
from sqlalchemy.types import TypeEngine

from models.database.json_rows import rows_from, rows_param
from models.database.schema import UtcDateTime, accounts, charges, entries, orders
from models.money.accounts import AccountKey
from models.money.chain import GENESIS

Query = Select[*tuple[Any, ...]]

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
END = datetime(9999, 1, 1, tzinfo=UTC)
EVERY_ENTRY = 2**62
"""A number that no entry reaches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A part of an account's history: entries behind `after_seq` up to `to_seq`, charges and orders from `since` on.

    The last entry has the number `last_seq`. `balance`, `debt` and `hash` are what the entry before the first left.
    `end_hash` is what the hash of the entry `last_seq` was known to be, if it was. Days of usage are checked from
    `days_since` to `days_until`, whole days only.
    """

    org_id: int
    account_id: int
    after_seq: int
    to_seq: int
    last_seq: int
    balance: int | None
    debt: int | None
    hash: str | None
    end_hash: str | None
    since: datetime
    until: datetime = END
    days_since: datetime = END
    days_until: datetime = END

    @property
    def account(self) -> AccountKey:
        """The key of the account."""
        return AccountKey(self.org_id, self.account_id)

    def with_days(self) -> Self:
        """Return the same stretch with the days of usage that end in it."""
        return replace(self, days_since=_midnight(self.since), days_until=_midnight(self.until))


def _midnight(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


_TYPES: dict[str, TypeEngine[Any]] = {
    **{name: BigInteger() for name in ("account_id", "after_seq", "to_seq", "last_seq", "balance", "debt")},
    **{name: UtcDateTime() for name in ("since", "until", "days_since", "days_until")},
    **{name: String() for name in ("hash", "end_hash")},
    "org_id": Integer(),
}


@dataclass(frozen=True, eq=False)
class AuditScope:
    """Stretches, and a time from which on refunds and reversals are looked at, whichever account they are of.

    Scopes have no stretches of their own: queries get these as parameters (`stretch_params`), so that they are built
    once.
    """

    stretches: FromClause
    recent: ColumnElement[datetime]
    is_whole: bool = False


@functools.cache
def given_stretches(dialect: str) -> AuditScope:
    """Return the scope of the stretches that are given as parameters."""
    return AuditScope(rows_from(dialect, _TYPES, "stretches"), bindparam("recent", type_=UtcDateTime))


def stretch_params(connection: Connection, stretches: Sequence[Stretch], recent: datetime) -> dict[str, Any]:
    """Return the parameters that give stretches to the queries of their scope."""
    return {**rows_param(connection, [asdict(stretch) for stretch in stretches], "stretches"), "recent": recent}


@functools.cache
def whole_history() -> AuditScope:
    """Return the scope of everything."""
    values: dict[str, ColumnElement[Any]] = {
        "org_id": accounts.c.org_id,
        "account_id": accounts.c.id,
        "after_seq": literal(-1),
        "to_seq": literal(EVERY_ENTRY),
        "last_seq": accounts.c.seq,
        "balance": literal(0),
        "debt": literal(0),
        "hash": literal(GENESIS),
        "end_hash": accounts.c.hash,
        **{name: literal(BEGINNING, UtcDateTime) for name in ("since", "days_since")},
        **{name: literal(END, UtcDateTime) for name in ("until", "days_until")},
    }
    rows = select(*(value.label(name) for name, value in values.items())).subquery("stretches")
    return AuditScope(rows, literal(END, UtcDateTime), is_whole=True)


def of_stretch(stretch: FromClause, table: FromClause) -> ColumnElement[bool]:
    """Whether a row of a table is of a stretch's account."""
    return and_(table.c.org_id == stretch.c.org_id, table.c.account_id == stretch.c.account_id)


def is_account_of(stretch: FromClause) -> ColumnElement[bool]:
    """Whether an account is that of a stretch."""
    return and_(accounts.c.org_id == stretch.c.org_id, accounts.c.id == stretch.c.account_id)


def has_entry(stretch: FromClause) -> ColumnElement[bool]:
    """Whether an entry is in a stretch."""
    return and_(of_stretch(stretch, entries), entries.c.seq > stretch.c.after_seq, entries.c.seq <= stretch.c.to_seq)


def entries_in(scope: AuditScope) -> CTE:
    """Return the entries in the scope, each with its account, and with what the entry before it left.

    They are materialized, so that every planner begins with the stretches, and not with all entries.
    """
    stretch = scope.stretches

    def before(name: str, at_first: str) -> ColumnElement[Any]:
        key = entries.c.org_id, entries.c.account_id, stretch.c.after_seq
        earlier = func.lag(entries.c[name]).over(partition_by=key, order_by=entries.c.seq)
        first = entries.c.seq == stretch.c.after_seq + 1
        return case((first, stretch.c[at_first]), else_=earlier).label(f"{at_first}_before")

    columns = (
        *entries.c,
        accounts.c.owner_id,
        accounts.c.kind,
        stretch.c.after_seq,
        case((entries.c.seq == stretch.c.last_seq, stretch.c.end_hash)).label("known_hash"),
        before("balance_after", "balance"),
        before("debt_after", "debt"),
        before("hash", "hash"),
    )
    found = select(*columns).join_from(stretch, accounts, is_account_of(stretch)).join(entries, has_entry(stretch))
    return found.cte("entries_in").prefix_with("MATERIALIZED")


_KEPT = [column for column in charges.c if column.name not in ("content", "detail", "carrier_reference")]


def charges_in(scope: AuditScope) -> CTE:
    """Return the paid charges in the scope, and earlier ones that were refunded lately."""
    made = select(*_KEPT).join_from(scope.stretches, charges, _was_made_in(scope.stretches))
    refunded = select(*_KEPT).where(
        charges.c.refunded_at >= scope.recent, charges.c.created_at < scope.recent, charges.c.account_id.is_not(None)
    )
    parts = made if scope.is_whole else union_all(made, refunded)
    return parts.cte("charges_in").prefix_with("MATERIALIZED")


def _was_made_in(stretch: FromClause) -> ColumnElement[bool]:
    return and_(
        of_stretch(stretch, charges), charges.c.created_at >= stretch.c.since, charges.c.created_at < stretch.c.until
    )


def orders_in(scope: AuditScope) -> Subquery:
    """Return the orders in the scope: those that an account got credits from, with the account."""
    stretch = scope.stretches
    bought = case((accounts.c.kind == "email", orders.c.email), else_=orders.c.sms)
    found = (
        select(*orders.c, accounts.c.id.label("account_id"), accounts.c.kind, bought.label("credits"))
        .join_from(stretch, accounts, is_account_of(stretch))
        .join(orders, (orders.c.org_id == accounts.c.org_id) & (orders.c.owner_id == accounts.c.owner_id))
        .where(orders.c.at >= stretch.c.since, orders.c.at < stretch.c.until, bought > 0)
    )
    return found.subquery("orders_in")


@functools.cache
def examined_counts(scope: AuditScope) -> dict[str, Query]:
    """Return, for each table with history, the query that counts its rows in `scope`."""
    order = orders_in(scope)
    once = union(select(order.c.org_id, order.c.order_id)).subquery()
    return {
        "entries": select(func.count(entries_in(scope).c.seq)),
        "charges": select(func.count()).select_from(charges_in(scope)),
        "orders": select(func.count()).select_from(once),
    }


def account_name() -> ColumnElement[str]:
    """Return how a finding names the account that a query has joined."""
    return (accounts.c.owner_id + literal("/") + accounts.c.kind).label("account")
