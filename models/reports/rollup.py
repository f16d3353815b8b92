"""Rolling usage up: entries are added to days, account by account, and each account's mark moves on.

`usage_days` has a row for each account, sender and day (UTC) of charges: what they cost now, refunds taken out, and
their number. A refund is an entry of its own, and reduces the day of the charge that it gives back. The ledger numbers
an account's entries without a gap, and they become visible in that order, so an entry is never missed and never added
twice, whenever the mark is moved.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Date, FromClause, Row, and_, case, func, or_, select, true, update
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from models.database.schema import accounts, charges, entries, usage_days, usage_marks
from models.database.statements import insert, search_by_index

ACCOUNT_BATCH = 100
ENTRY_BATCH = 5_000
"""Entries that one transaction rolls up, at most: on SQLite every other writer waits for it."""

rolled_seq = func.coalesce(usage_marks.c.seq, 0)
"""The last entry of an account that was rolled up, where `usage_marks` is joined to it."""
is_usage_entry = func.substr(entries.c.cause, 1, len("charge:")).in_(["charge:", "refund:"])
"""Whether an entry is that of a charge or of a refund. Both prefixes have the same length, and the job id follows."""

_cost = -entries.c.amount
_messages = case((entries.c.amount < 0, func.coalesce(charges.c.messages, 1)), else_=0)
_job_id = func.substr(entries.c.cause, len("charge:") + 1)


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

    account_id: int
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
        in_ranges = or_(*(entries_between(each.account_id, each.first, each.last) for each in ranges))
        _add_to_days(connection, in_ranges)
        _move_marks(connection, in_ranges)
    return sum(each.last - each.first + 1 for each in ranges)


def _furthest_behind(connection: Connection, limit: int) -> dict[int, int]:
    """Return the accounts with the most entries behind their marks, each with its last entry."""
    behind = accounts.c.seq - rolled_seq
    found = connection.execute(
        select(accounts.c.id, accounts.c.seq)
        .outerjoin_from(accounts, usage_marks, usage_marks.c.account_id == accounts.c.id)
        .where(behind > 0)
        .order_by(behind.desc(), accounts.c.id)
        .limit(limit)
    )
    return {row.id: row.seq for row in found}


def _lock_marks(connection: Connection, last_seqs: Mapping[int, int]) -> list[Row[int, int]]:
    """Lock the marks of these accounts, made where there is none, except those that other workers have locked."""
    if not last_seqs:
        return []
    marks = select(usage_marks.c.account_id, usage_marks.c.seq).where(usage_marks.c.account_id.in_(last_seqs))
    unmarked = last_seqs.keys() - set(connection.execute(marks).scalars())
    if unmarked:
        made = [{"account_id": account_id, "seq": 0, "spent": 0, "added": 0} for account_id in sorted(unmarked)]
        connection.execute(insert(connection, usage_marks).on_conflict_do_nothing(), made)
    return list(connection.execute(marks.with_for_update(skip_locked=True)))


def _ranges(marks: Sequence[Row[int, int]], last_seqs: Mapping[int, int], entry_batch: int) -> list[EntryRange]:
    """Return what to roll up now of the accounts whose marks are locked here, the furthest behind first."""
    rolled = {row.account_id: row.seq for row in marks}
    ranges = []
    for account_id in (each for each in last_seqs if each in rolled):
        first, last = rolled[account_id] + 1, min(last_seqs[account_id], rolled[account_id] + entry_batch)
        if last >= first:
            ranges.append(EntryRange(account_id, first, last))
            entry_batch -= last - first + 1
    return ranges


def entries_between(account_id: int, first: int, last: int | None = None) -> ColumnElement[bool]:
    """Return the condition for an account's entries by their numbers, from which the planner sees how few they are."""
    numbers = entries.c.seq >= first if last is None else entries.c.seq.between(first, last)
    return and_(entries.c.account_id == account_id, numbers)


def charged_by_entries(condition: ColumnElement[bool]) -> FromClause:
    """Return what the entries that meet a condition charged and gave back, each with its charge (or bulk job's).

    Materialized, so that every planner begins with the entries, and not with all charges of a sender or a period.
    """
    columns = entries.c.account_id, charges.c.sender, charges.c.created_at, charges.c.kind
    return (
        select(*columns, _cost.label("credits"), _messages.label("messages"))
        .join_from(entries, charges, charges.c.job_id == _job_id)
        .where(condition, is_usage_entry)
        .cte("charged_by_entries")
        .prefix_with("MATERIALIZED")
    )


def _add_to_days(connection: Connection, in_ranges: ColumnElement[bool]) -> None:
    """Add the entries that meet the condition to the days of their charges."""
    charged = charged_by_entries(in_ranges)
    day = utc_day(charged.c.created_at)
    new_days = (
        select(
            charged.c.account_id,
            day.label("day"),
            charged.c.sender,
            func.sum(charged.c.credits).label("credits"),
            func.sum(charged.c.messages).label("messages"),
        )
        .group_by(charged.c.account_id, day, charged.c.sender)
        .subquery("new_days")
    )
    same_day = and_(*(usage_days.c[name] == new_days.c[name] for name in ("account_id", "day", "sender")))
    # The sums are complete before they meet the rows that are there: a CHECK sees each row before ON CONFLICT does.
    rows = (
        select(
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
            entries.c.account_id,
            func.max(entries.c.seq).label("seq"),
            func.sum(case((is_usage_entry, _cost), else_=0)).label("spent"),
            func.sum(case((is_usage_entry, 0), else_=entries.c.amount)).label("added"),
        )
        .where(in_ranges)
        .group_by(entries.c.account_id)
        .subquery("rolled")
    )
    connection.execute(
        update(usage_marks)
        .where(usage_marks.c.account_id == rolled.c.account_id)
        .values(
            seq=rolled.c.seq, spent=usage_marks.c.spent + rolled.c.spent, added=usage_marks.c.added + rolled.c.added
        )
    )
