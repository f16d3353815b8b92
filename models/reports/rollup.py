"""Rolling usage up: entries are added to days, account by account, and each account's mark moves on.

`usage_days` has a row for each account, sender and day (UTC) of charges: what they cost now, refunds taken out, and
their number. A refund is an entry of its own, and reduces the days of the charges that it gives back. The ledger
numbers an account's entries without a gap, and they become visible in that order, so an entry is never missed and never
added twice, whenever the mark is moved.
"""

from collections.abc import Mapping
from datetime import date
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Date,
    FromClause,
    Select,
    and_,
    case,
    func,
    literal,
    or_,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from models.database.schema import accounts, charges, entries, usage_days, usage_marks
from models.database.statements import insert, is_among, search_by_index
from models.money.accounts import AccountKey

ACCOUNT_BATCH = 100
ENTRY_BATCH = 5_000
"""Entries that one transaction rolls up, at most: on SQLite every other writer waits for it."""

rolled_seq = func.coalesce(usage_marks.c.seq, 0)
"""The last entry of an account that was rolled up, where `usage_marks` is joined to it."""
is_usage_entry = entries.c.cause_kind.in_(["charge", "refund"])
"""Whether an entry is that of charges or of refunds."""

_cost = -entries.c.amount


class utc_day(FunctionElement[date]):  # noqa: N801  a function of SQL
    """The day in UTC of a time."""

    type = Date()
    inherit_cache = True


@compiles(utc_day, "postgresql")
def _on_postgresql(element: utc_day, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401  SQLAlchemy's
    return f"CAST(timezone('UTC', {compiler.process(element.clauses, **options)}) AS DATE)"


@compiles(utc_day, "sqlite")
def _on_sqlite(element: utc_day, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401  SQLAlchemy's
    return f"substr({compiler.process(element.clauses, **options)}, 1, 10)"


class EntryRange(NamedTuple):
    """The entries of an account from `first` to `last`, which are rolled up together."""

    account: AccountKey
    first: int
    last: int


def roll_up_usage(connection: Connection, *, account_batch: int = ACCOUNT_BATCH, entry_batch: int = ENTRY_BATCH) -> int:
    """Roll up the next entries of the accounts that are furthest behind. Returns how many entries those were.

    Only marks are locked; those that another worker has locked are skipped.
    """
    last_seqs = _furthest_behind(connection, account_batch)
    ranges = _ranges(_lock_marks(connection, last_seqs), last_seqs, entry_batch)
    if ranges:
        search_by_index(connection)
        in_ranges = or_(*(entries_between(each.account, each.first, each.last) for each in ranges))
        _add_to_days(connection, in_ranges)
        _move_marks(connection, in_ranges)
    return sum(each.last - each.first + 1 for each in ranges)


def _furthest_behind(connection: Connection, limit: int) -> dict[AccountKey, int]:
    """Return the accounts with the most entries behind their marks, each with its last entry."""
    behind = accounts.c.seq - rolled_seq
    found = connection.execute(
        select(accounts.c.org_id, accounts.c.id, accounts.c.seq)
        .outerjoin_from(accounts, usage_marks, same_account(usage_marks))
        .where(behind > 0)
        .order_by(behind.desc(), accounts.c.org_id, accounts.c.id)
        .limit(limit)
    )
    return {AccountKey(row.org_id, row.id): row.seq for row in found}


def same_account(table: FromClause) -> ColumnElement[bool]:
    """Whether a row of a table is of the account that it is joined to."""
    return and_(table.c.org_id == accounts.c.org_id, table.c.account_id == accounts.c.id)


def _lock_marks(connection: Connection, last_seqs: Mapping[AccountKey, int]) -> dict[AccountKey, int]:
    """Lock the marks of these accounts, made where there is none, except those that other workers have locked."""
    if not last_seqs:
        return {}
    key = (usage_marks.c.org_id, usage_marks.c.account_id)
    marks = select(*key, usage_marks.c.seq).where(is_among(key, last_seqs))
    unmarked = last_seqs.keys() - {AccountKey(*row[:2]) for row in connection.execute(marks)}
    if unmarked:
        made = [{**account._asdict(), "seq": 0, "spent": 0, "added": 0} for account in sorted(unmarked)]
        connection.execute(insert(connection, usage_marks).on_conflict_do_nothing(), made)
    return {AccountKey(*row[:2]): row.seq for row in connection.execute(marks.with_for_update(skip_locked=True))}


def _ranges(
    rolled: Mapping[AccountKey, int], last_seqs: Mapping[AccountKey, int], entry_batch: int
) -> list[EntryRange]:
    """Return what to roll up now of the accounts whose marks are locked here, the furthest behind first."""
    ranges = []
    for account in (each for each in last_seqs if each in rolled):
        first, last = rolled[account] + 1, min(last_seqs[account], rolled[account] + entry_batch)
        if last >= first:
            ranges.append(EntryRange(account, first, last))
            entry_batch -= last - first + 1
    return ranges


def entries_between(account: AccountKey, first: int, last: int | None = None) -> ColumnElement[bool]:
    """Return the condition for an account's entries by their numbers, from which the planner sees how few they are."""
    numbers = entries.c.seq >= first if last is None else entries.c.seq.between(first, last)
    return and_(entries.c.org_id == account.org_id, entries.c.account_id == account.account_id, numbers)


def is_charged_by(entry: FromClause) -> ColumnElement[bool]:
    """Whether a charge was paid for by an entry. The time, which is the entry's too, finds it by index."""
    return and_(
        charges.c.org_id == entry.c.org_id,
        charges.c.account_id == entry.c.account_id,
        charges.c.created_at == entry.c.at,
        charges.c.charged_by == entry.c.cause_id,
    )


def is_refunded_by(entry: FromClause) -> ColumnElement[bool]:
    """Whether a charge was given back by an entry. The time, which is the entry's too, finds it by index."""
    return and_(
        charges.c.org_id == entry.c.org_id,
        charges.c.account_id == entry.c.account_id,
        charges.c.refunded_at == entry.c.at,
        charges.c.refunded_by == entry.c.cause_id,
    )


def charged_by_entries(condition: ColumnElement[bool]) -> FromClause:
    """Return what the entries that meet a condition charged and gave back, charge by charge."""
    return charged_by(select(*USAGE_ENTRY).where(condition, is_usage_entry))


USAGE_ENTRY = tuple(entries.c[name] for name in ("org_id", "account_id", "cause_kind", "cause_id", "at"))
"""The columns by which the charges of an entry are found."""


def charged_by(usage_entries: Select[*tuple[Any, ...]]) -> FromClause:
    """Return the same for the entries that a query with the columns `USAGE_ENTRY` returns.

    They are materialized, so that every planner begins with them, and not with all charges of a sender or a period.
    """
    entry = usage_entries.cte("usage_entries").prefix_with("MATERIALIZED")
    columns = entry.c.org_id, entry.c.account_id, charges.c.sender, charges.c.created_at, charges.c.kind
    charged = select(*columns, charges.c.credits.label("credits"), literal(1).label("messages")).join_from(
        entry, charges, (entry.c.cause_kind == "charge") & is_charged_by(entry)
    )
    refunded = select(*columns, (-charges.c.refunded).label("credits"), literal(0).label("messages")).join_from(
        entry, charges, (entry.c.cause_kind == "refund") & is_refunded_by(entry)
    )
    return union_all(charged, refunded).subquery("charged_by_entries")


def _add_to_days(connection: Connection, in_ranges: ColumnElement[bool]) -> None:
    """Add the entries that meet the condition to the days of their charges."""
    charged = charged_by_entries(in_ranges)
    day = utc_day(charged.c.created_at)
    new_days = (
        select(
            charged.c.org_id,
            charged.c.account_id,
            day.label("day"),
            charged.c.sender,
            func.sum(charged.c.credits).label("credits"),
            func.sum(charged.c.messages).label("messages"),
        )
        .group_by(charged.c.org_id, charged.c.account_id, day, charged.c.sender)
        .subquery("new_days")
    )
    same_day = and_(*(usage_days.c[name] == new_days.c[name] for name in ("org_id", "account_id", "day", "sender")))
    # The sums are complete before they meet the rows that are there: a CHECK sees each row before ON CONFLICT does.
    rows = (
        select(
            new_days.c.org_id,
            new_days.c.account_id,
            new_days.c.day,
            new_days.c.sender,
            func.coalesce(usage_days.c.credits, 0) + new_days.c.credits,
            func.coalesce(usage_days.c.messages, 0) + new_days.c.messages,
        )
        .outerjoin_from(new_days, usage_days, same_day)
        .where(true())  # SQLite takes ON CONFLICT for a part of the SELECT unless that has a WHERE
    )
    added = insert(connection, usage_days).from_select([column.name for column in usage_days.c], rows)
    changed = {"credits": added.excluded.credits, "messages": added.excluded.messages}
    connection.execute(added.on_conflict_do_update(index_elements=list(usage_days.primary_key), set_=changed))


def _move_marks(connection: Connection, in_ranges: ColumnElement[bool]) -> None:
    """Move the marks to the last of the entries that meet the condition."""
    rolled = (
        select(
            entries.c.org_id,
            entries.c.account_id,
            func.max(entries.c.seq).label("seq"),
            func.sum(case((is_usage_entry, _cost), else_=0)).label("spent"),
            func.sum(case((is_usage_entry, 0), else_=entries.c.amount)).label("added"),
        )
        .where(in_ranges)
        .group_by(entries.c.org_id, entries.c.account_id)
        .subquery("rolled")
    )
    connection.execute(
        update(usage_marks)
        .where(usage_marks.c.org_id == rolled.c.org_id, usage_marks.c.account_id == rolled.c.account_id)
        .values(
            seq=rolled.c.seq, spent=usage_marks.c.spent + rolled.c.spent, added=usage_marks.c.added + rolled.c.added
        )
    )
