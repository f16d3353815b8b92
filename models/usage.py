"""Usage by day: what each sender's messages cost now, rolled up from the entries, and exact at any time.

`usage_days` has a row for each account, sender and day (UTC) of charges: their credits, refunds taken out, and their
number. It covers the account's entries up to the account's mark; what is behind the mark is read from the entries
themselves. The ledger numbers entries without a gap, and they become visible in that order, so days and rest never
miss an entry and never count one twice, whenever a round of upkeep moves the mark.

A refund is an entry of its own, and reduces the day of the charge that it gives back.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Date,
    Executable,
    FromClause,
    Row,
    Select,
    Subquery,
    Update,
    and_,
    case,
    func,
    or_,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from models.database import insert, insert_in, search_by_index
from models.rows import packed, unpacked
from models.tables import accounts, charges, entries, owner_changes, usage_days, usage_marks

ACCOUNTS_AT_ONCE = 100
ENTRIES_AT_ONCE = 5_000
"""What one transaction rolls up, at most: on SQLite everybody waits for it."""
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(9999, 12, 31, tzinfo=UTC)
Query = Select[*tuple[Any, ...]]

rolled_seq = func.coalesce(usage_marks.c.seq, 0)
"""How far an account was rolled up, where `usage_marks` is joined to it."""
_credits = -entries.c.amount
_messages = case((entries.c.amount < 0, 1), else_=0)
_job_id = func.substr(entries.c.cause, len("charge:") + 1)
is_usage = func.substr(entries.c.cause, 1, len("charge:")).in_(["charge:", "refund:"])
"""Whether an entry is that of a charge or of its refund: words of one length, with the job behind them."""


class utc_day(FunctionElement[date]):  # noqa: N801  a function of SQL
    """The day in UTC of a time."""

    type = Date()
    inherit_cache = True


@compiles(utc_day, "postgresql")
def _on_postgresql(element: utc_day, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401  passed through
    return f"CAST(timezone('UTC', {compiler.process(element.clauses, **options)}) AS DATE)"


@compiles(utc_day, "sqlite")
def _on_sqlite(element: utc_day, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401  passed through
    return f"substr({compiler.process(element.clauses, **options)}, 1, 10)"


# -- rolling up -------------------------------------------------------------------------------------------------------


def roll_up(
    connection: Connection, *, accounts_at_once: int = ACCOUNTS_AT_ONCE, entries_at_once: int = ENTRIES_AT_ONCE
) -> int:
    """Roll up the next entries of the accounts that are furthest behind; how many entries those were.

    Only marks are locked, and those that another worker holds are left to it.
    """
    behind = _furthest_behind(connection, accounts_at_once)
    pieces = _pieces(_lock_marks(connection, behind), behind, entries_at_once)
    if pieces:
        search_by_index(connection)
        dialect, given = connection.dialect.name, packed(connection, pieces)
        connection.execute(_add_to_days(dialect), given)
        connection.execute(_move_marks(dialect), given)
    return sum(piece["last"] - piece["first"] + 1 for piece in pieces)


def _furthest_behind(connection: Connection, limit: int) -> dict[int, int]:
    """The accounts that have moved most since their marks, and their last entries."""
    moved = accounts.c.seq - rolled_seq
    found = connection.execute(
        select(accounts.c.id, accounts.c.seq)
        .outerjoin_from(accounts, usage_marks, usage_marks.c.account_id == accounts.c.id)
        .where(moved > 0)
        .order_by(moved.desc(), accounts.c.id)
        .limit(limit)
    )
    return {row.id: row.seq for row in found}


def _lock_marks(connection: Connection, account_ids: dict[int, int]) -> list[Row[int, int]]:
    """The marks of these accounts, made where there is none, as they stand: but for those that others hold."""
    if not account_ids:
        return []
    known = select(usage_marks.c.account_id, usage_marks.c.seq).where(usage_marks.c.account_id.in_(account_ids))
    unmarked = account_ids.keys() - set(connection.execute(known).scalars())
    if unmarked:
        made = [{"account_id": account_id, "seq": 0, "spent": 0, "added": 0} for account_id in sorted(unmarked)]
        connection.execute(insert(connection, usage_marks).on_conflict_do_nothing(), made)
    return list(connection.execute(known.with_for_update(skip_locked=True)))


def _pieces(marks: Sequence[Row[int, int]], behind: dict[int, int], entries_at_once: int) -> list[dict[str, int]]:
    """The entries to roll up now: of each account those from `first` to `last`."""
    seq_of = {row.account_id: row.seq for row in marks}
    pieces = []
    for account_id, seq in behind.items():  # the furthest behind comes first
        last = min(seq, seq_of.get(account_id, seq) + entries_at_once)
        if account_id in seq_of and last > seq_of[account_id]:
            pieces.append({"account_id": account_id, "first": seq_of[account_id] + 1, "last": last})
            entries_at_once -= last - seq_of[account_id]
    return pieces


def _given(dialect: str) -> FromClause:
    return unpacked(dialect, {name: BigInteger() for name in ("account_id", "first", "last")})


def _in_piece(given: FromClause) -> ColumnElement[bool]:
    return and_(entries.c.account_id == given.c.account_id, entries.c.seq.between(given.c.first, given.c.last))


@functools.cache
def _add_to_days(dialect: str) -> Executable:
    """Add the entries of the pieces to the days of their charges."""
    given, day = _given(dialect), utc_day(charges.c.created_at)
    new = (
        select(
            entries.c.account_id,
            day.label("day"),
            charges.c.sender,
            func.sum(_credits).label("credits"),
            func.sum(_messages).label("messages"),
        )
        .join_from(given, entries, _in_piece(given))
        .join(charges, charges.c.job_id == _job_id)
        .where(is_usage)
        .group_by(entries.c.account_id, day, charges.c.sender)
        .subquery("new")
    )
    key = and_(*(usage_days.c[name] == new.c[name] for name in ("account_id", "day", "sender")))
    # The rows are whole before they meet those that are there: a check looks at them before ON CONFLICT does.
    rows = (
        select(
            new.c.account_id,
            new.c.day,
            new.c.sender,
            func.coalesce(usage_days.c.credits, 0) + new.c.credits,
            func.coalesce(usage_days.c.messages, 0) + new.c.messages,
        )
        .outerjoin_from(new, usage_days, key)
        .where(true())  # SQLite takes ON CONFLICT for a part of the SELECT unless that has a WHERE
    )
    made = insert_in(dialect, usage_days).from_select([column.name for column in usage_days.c], rows)
    return made.on_conflict_do_update(
        index_elements=list(usage_days.primary_key),
        set_={"credits": made.excluded.credits, "messages": made.excluded.messages},
    )


@functools.cache
def _move_marks(dialect: str) -> Update:
    """Move the marks to the ends of the pieces."""
    given = _given(dialect)
    new = (
        select(
            given.c.account_id,
            given.c.last,
            func.sum(case((is_usage, _credits), else_=0)).label("spent"),
            func.sum(case((is_usage, 0), else_=entries.c.amount)).label("added"),
        )
        .join_from(given, entries, _in_piece(given))
        .group_by(given.c.account_id, given.c.last)
        .subquery("new")
    )
    return (
        update(usage_marks)
        .where(usage_marks.c.account_id == new.c.account_id)
        .values(seq=new.c.last, spent=usage_marks.c.spent + new.c.spent, added=usage_marks.c.added + new.c.added)
    )


# -- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Whose:
    """Whose usage: what `account_ids` paid; or, of that, what one sender sent, all of which those accounts paid."""

    account_ids: Sequence[int]
    sender: str | None = None

    def has(self, table: FromClause) -> ColumnElement[bool]:
        """Whether a row of charges or of `usage_days` is of it."""
        if self.sender is not None:
            return (table.c.sender == self.sender) & table.c.account_id.is_not(None)
        return table.c.account_id.in_(self.account_ids)


def paid_by(connection: Connection, owner: str) -> Whose:
    """What an owner paid, whoever sent it."""
    return Whose(connection.execute(select(accounts.c.id).where(accounts.c.owner_id == owner)).scalars().all())


def sent_by(connection: Connection, sender: str) -> Whose:
    """What a user sent, whoever paid it: themselves, or one of those whose credits they have spent."""
    owners = select(owner_changes.c.new_owner_id).where(owner_changes.c.user_id == sender)
    paid = or_(accounts.c.owner_id == sender, accounts.c.owner_id.in_(owners))
    return Whose(connection.execute(select(accounts.c.id).where(paid)).scalars().all(), sender)


def spent(whose: Whose, since: datetime | None, until: datetime | None) -> Subquery:
    """What the charges made from `since` on and before `until` cost now: sender, day, kind, credits, messages.

    Several rows may be of the same sender, day and kind. Full days come from `usage_days` and the entries that are not
    rolled up yet; what is left of a day at either end comes from its charges.
    """
    since, until = since or EARLIEST, until or LATEST
    first = since.toordinal() + (since.timetz() != _MIDNIGHT)
    end = until.toordinal()
    if first >= end:
        return _of_charges(whose, since, until).subquery("spent")
    begins, ends = _begin(first), _begin(end)
    parts = [_of_days(whose, begins.date(), ends.date()), _of_the_rest(whose, begins, ends)]
    parts += [_of_charges(whose, *span) for span in ((since, begins), (ends, until)) if span[0] < span[1]]
    return union_all(*parts).subquery("spent")


_MIDNIGHT = time(tzinfo=UTC)


def _begin(ordinal: int) -> datetime:
    return datetime.combine(date.fromordinal(ordinal), _MIDNIGHT)


def _of_days(whose: Whose, first: date, end: date) -> Query:
    return (
        select(usage_days.c.sender, usage_days.c.day, accounts.c.kind, usage_days.c.credits, usage_days.c.messages)
        .join(accounts, accounts.c.id == usage_days.c.account_id)
        .where(whose.has(usage_days), usage_days.c.day >= first, usage_days.c.day < end)
    )


def _of_the_rest(whose: Whose, since: datetime, until: datetime) -> Query:
    rest = behind_the_marks(accounts.c.id.in_(whose.account_ids))
    return select(
        rest.c.sender, utc_day(rest.c.created_at).label("day"), rest.c.kind, rest.c.credits, rest.c.messages
    ).where(whose.has(rest), rest.c.created_at >= since, rest.c.created_at < until)


def behind_the_marks(condition: ColumnElement[bool]) -> FromClause:
    """The entries of these accounts that are not rolled up yet, each with its charge.

    Materialized, so that every planner begins with the marks, and not with all charges of a sender or a time.
    """
    after_mark = and_(entries.c.account_id == accounts.c.id, entries.c.seq > rolled_seq)
    return (
        select(
            entries.c.account_id,
            charges.c.sender,
            charges.c.created_at,
            accounts.c.kind,
            _credits.label("credits"),
            _messages.label("messages"),
        )
        .outerjoin_from(accounts, usage_marks, usage_marks.c.account_id == accounts.c.id)
        .join(entries, after_mark)
        .join(charges, charges.c.job_id == _job_id)
        .where(condition, is_usage)
        .cte("rest")
        .prefix_with("MATERIALIZED")
    )


def _of_charges(whose: Whose, since: datetime, until: datetime) -> Query:
    day, credits_ = utc_day(charges.c.created_at), charges.c.credits - charges.c.refunded
    return (
        select(
            charges.c.sender,
            day.label("day"),
            charges.c.kind,
            func.sum(credits_).label("credits"),
            func.count().label("messages"),
        )
        .where(whose.has(charges), charges.c.created_at >= since, charges.c.created_at < until)
        .group_by(charges.c.sender, day, charges.c.kind)
    )
