"""Usage by day: what each sender's messages cost now, rolled up from the entries, and exact at any time.

`usage_days` has a row for each account, sender and day (UTC) of charges: their credits, refunds taken out, and their
number. It covers the account's entries up to the account's mark; what is behind the mark is read from the entries
themselves. The ledger numbers entries without a gap, and they become visible in that order, so days and rest never
miss an entry and never count one twice, whenever a round of upkeep moves the mark.

A refund is an entry of its own, and reduces the day of the charge that it gives back.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Date,
    FromClause,
    Row,
    Select,
    Subquery,
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

from models.database import insert, search_by_index
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
_messages = case((entries.c.amount < 0, func.coalesce(charges.c.messages, 1)), else_=0)
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


class Piece(NamedTuple):
    """Entries of an account that are rolled up together: all from `first` to `last`."""

    account_id: int
    first: int
    last: int


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
        rolled = or_(*(_of_account(piece.account_id, piece.first, piece.last) for piece in pieces))
        _add_to_days(connection, rolled)
        _move_marks(connection, rolled)
    return sum(piece.last - piece.first + 1 for piece in pieces)


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


def _pieces(marks: Sequence[Row[int, int]], behind: dict[int, int], entries_at_once: int) -> list[Piece]:
    """What to roll up now, of the accounts whose marks are ours; the furthest behind comes first."""
    rolled = {row.account_id: row.seq for row in marks}
    pieces = []
    for account_id in (one for one in behind if one in rolled):
        first, last = rolled[account_id] + 1, min(behind[account_id], rolled[account_id] + entries_at_once)
        if last >= first:
            pieces.append(Piece(account_id, first, last))
            entries_at_once -= last - first + 1
    return pieces


def _of_account(account_id: int, first: int, last: int | None = None) -> ColumnElement[bool]:
    """Entries of an account by their numbers. Said in numbers, so that the planner sees how few they are."""
    numbers = entries.c.seq >= first if last is None else entries.c.seq.between(first, last)
    return and_(entries.c.account_id == account_id, numbers)


def _add_to_days(connection: Connection, rolled: ColumnElement[bool]) -> None:
    """Add these entries to the days of their charges."""
    each = charged_by(rolled)
    day = utc_day(each.c.created_at)
    new = (
        select(
            each.c.account_id,
            day.label("day"),
            each.c.sender,
            func.sum(each.c.credits).label("credits"),
            func.sum(each.c.messages).label("messages"),
        )
        .group_by(each.c.account_id, day, each.c.sender)
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
    made = insert(connection, usage_days).from_select([column.name for column in usage_days.c], rows)
    changed = {"credits": made.excluded.credits, "messages": made.excluded.messages}
    connection.execute(made.on_conflict_do_update(index_elements=list(usage_days.primary_key), set_=changed))


def _move_marks(connection: Connection, rolled: ColumnElement[bool]) -> None:
    """Move the marks to the last of these entries."""
    new = (
        select(
            entries.c.account_id,
            func.max(entries.c.seq).label("seq"),
            func.sum(case((is_usage, _credits), else_=0)).label("spent"),
            func.sum(case((is_usage, 0), else_=entries.c.amount)).label("added"),
        )
        .where(rolled)
        .group_by(entries.c.account_id)
        .subquery("new")
    )
    connection.execute(
        update(usage_marks)
        .where(usage_marks.c.account_id == new.c.account_id)
        .values(seq=new.c.seq, spent=usage_marks.c.spent + new.c.spent, added=usage_marks.c.added + new.c.added)
    )


# -- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Whose:
    """Whose usage: what the accounts paid; or, of that, what one sender sent, all of which those accounts paid.

    `marks` has the accounts, and how far each was rolled up if there are entries behind that, or None.
    """

    marks: Mapping[int, int | None]
    sender: str | None = None

    def has(self, table: FromClause) -> ColumnElement[bool]:
        """Whether a row of charges or of `usage_days` is of it."""
        if self.sender is not None:
            return (table.c.sender == self.sender) & table.c.account_id.is_not(None)
        return table.c.account_id.in_(self.marks)


def paid_by(connection: Connection, owner: str) -> Whose:
    """What an owner paid, whoever sent it."""
    return Whose(_marks(connection, [owner]))


def sent_by(connection: Connection, sender: str) -> Whose:
    """What a user sent, whoever paid it: themselves, or one of those whose credits they have spent."""
    owners = connection.execute(select(owner_changes.c.new_owner_id).where(owner_changes.c.user_id == sender))
    return Whose(_marks(connection, {sender, *owners.scalars()}), sender)


def _marks(connection: Connection, owners: Collection[str]) -> dict[int, int | None]:
    found = connection.execute(
        select(accounts.c.id, accounts.c.seq, rolled_seq.label("rolled"))
        .outerjoin_from(accounts, usage_marks, usage_marks.c.account_id == accounts.c.id)
        .where(accounts.c.owner_id.in_(owners))
        .order_by(accounts.c.id)
    )
    return {row.id: row.rolled if row.seq > row.rolled else None for row in found}


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
    parts = [_of_days(whose, begins.date(), ends.date()), *_of_the_rest(whose, begins, ends)]
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


def _of_the_rest(whose: Whose, since: datetime, until: datetime) -> list[Query]:
    behind = [_of_account(account_id, seq + 1) for account_id, seq in whose.marks.items() if seq is not None]
    if not behind:
        return []
    rest = charged_by(or_(*behind))
    day = utc_day(rest.c.created_at).label("day")
    return [
        select(rest.c.sender, day, rest.c.kind, rest.c.credits, rest.c.messages).where(
            whose.has(rest), rest.c.created_at >= since, rest.c.created_at < until
        )
    ]


def charged_by(condition: ColumnElement[bool]) -> FromClause:
    """What those entries that meet a condition charged and gave back, each with its charge, which may be a bulk job's.

    Materialized, so that every planner begins with the entries, and not with all charges of a sender or a time.
    """
    columns = entries.c.account_id, charges.c.sender, charges.c.created_at, charges.c.kind
    return (
        select(*columns, _credits.label("credits"), _messages.label("messages"))
        .join_from(entries, charges, charges.c.job_id == _job_id)
        .where(condition, is_usage)
        .cte("charged")
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
