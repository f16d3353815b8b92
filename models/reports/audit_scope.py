"""What an audit looks at: the whole history, or what the marks of earlier audits do not cover.

Marks are explained in audit.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Select,
    String,
    Subquery,
    and_,
    func,
    literal,
    or_,
    select,
    union_all,
)
from sqlalchemy import cast as sql_cast

from models.database.schema import accounts, audit_marks, charges, entries, orders, usage_marks
from models.money.chain import GENESIS
from models.reports.rollup import same_account
from models.sends.charges import charged_since

Query = Select[*tuple[Any, ...]]

checked_seq = func.coalesce(audit_marks.c.seq, -1)
"""The last entry of an account that was checked."""
checked_balance = func.coalesce(audit_marks.c.balance, 0)
"""The balance that this entry left."""
checked_debt = func.coalesce(audit_marks.c.debt, 0)
"""The debt that this entry left."""
checked_hash = func.coalesce(audit_marks.c.hash, GENESIS)
"""The hash of this entry."""
rolled_since_mark = func.coalesce(usage_marks.c.seq, 0) != func.coalesce(audit_marks.c.usage_seq, 0)
"""Whether usage of an account was rolled up since its mark was set."""


@dataclass(frozen=True, slots=True)
class Invariant:
    """An invariant, and the query that returns its violations as (subject, difference, …)."""

    name: str
    violations: Query


@dataclass(frozen=True, slots=True)
class AuditScope:
    """Entries behind the marks (`marked`) or all of them; charges and orders from `since` on, or all of them."""

    marked: bool = False
    since: datetime | None = None


WHOLE_HISTORY = AuditScope()
"""Everything, whatever the marks are."""


def marked_accounts(scope: AuditScope) -> FromClause:
    """Return all accounts with their marks; without marks in an audit of the whole history."""
    return accounts.outerjoin(audit_marks, and_(same_account(audit_marks), literal(scope.marked)))


def new_entries(scope: AuditScope) -> FromClause:
    """Return the entries in the scope, each with its account and what was checked before them."""
    columns = (*entries.c, accounts.c.owner_id, accounts.c.kind)
    if not scope.marked:
        nothing = (literal(0).label("checked_balance"), literal(0).label("checked_debt"),
                   literal(GENESIS).label("checked_hash"))  # fmt: skip
        return select(*columns, *nothing).join_from(entries, accounts, same_account(entries)).subquery("new_entries")
    # The outer joins, materialized, make every planner begin with the accounts that have moved. Otherwise it would read
    # all entries, and look up for each whether its account has moved.
    found = marked_accounts(scope).outerjoin(entries, is_behind_mark())
    checked = (checked_balance.label("checked_balance"), checked_debt.label("checked_debt"),
               checked_hash.label("checked_hash"))  # fmt: skip
    moved = select(*columns, *checked).select_from(found).where(has_moved(scope))
    return moved.cte("new_entries").prefix_with("MATERIALIZED")


def is_behind_mark() -> ColumnElement[bool]:
    """Return the condition for entries of an account that were not checked yet."""
    return and_(same_account(entries), entries.c.seq > checked_seq)


def has_moved(scope: AuditScope) -> ColumnElement[bool]:
    """Return the condition for accounts that have moved since their marks. It reads no entries."""
    return or_(literal(not scope.marked), accounts.c.seq != checked_seq)


def column_before(new: FromClause, column: ColumnElement[int]) -> ColumnElement[int]:
    """Return what a column holds in the entry before, if that is new too."""
    return func.lag(column).over(partition_by=(new.c.org_id, new.c.account_id), order_by=new.c.seq)


def account_name() -> ColumnElement[str]:
    """Return how a finding names an account."""
    return (accounts.c.owner_id + literal("/") + accounts.c.kind).label("account")


def entry_name(entry: FromClause) -> ColumnElement[str]:
    """Return how a finding names an entry: its account, its number, and what it was made for."""
    return (
        entry.c.owner_id + literal("/") + entry.c.kind + literal(" ") + sql_cast(entry.c.seq, String) + literal(" ")
        + entry.c.cause_kind + literal(":") + entry.c.cause_id
    )  # fmt: skip


def recent_charges(scope: AuditScope) -> Subquery:
    """Return charges made in the scope, and earlier ones refunded in it, each found by index and only once."""
    query = select(*(column for column in charges.c if column.name not in ("content", "recipients_refused")))
    if scope.since is None:
        return query.subquery("recent_charges")
    refunded = (charges.c.refunded_at >= scope.since) & (charges.c.created_at < scope.since)
    conditions = (*charged_since(scope.since), refunded)
    return union_all(*(query.where(condition) for condition in conditions)).subquery("recent_charges")


def recent_orders(scope: AuditScope) -> Sequence[ColumnElement[bool]]:
    """Return the conditions for orders in the scope."""
    return [] if scope.since is None else [orders.c.at >= scope.since]
