"""How far each account was checked, and what of it is checked again next.

Behind its mark an account is new. What lies before the mark is checked again in a circle: each audit takes the accounts
whose whole history was checked longest ago, as much of them as the budget allows, and continues there next time. So a
change to what was checked before is found after one circle at the latest.

While a finding alarms, its account is held: mark and circle stay where they are, so the next audit looks there again.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    Row,
    and_,
    bindparam,
    case,
    func,
    literal,
    or_,
    select,
    tuple_,
    update,
)

from models.database.json_rows import rows_from, rows_param
from models.database.schema import (
    UtcDateTime,
    accounts,
    adjustments,
    audit_marks,
    charges,
    entries,
    findings,
    orders,
    usage_marks,
)
from models.database.statements import insert
from models.money.accounts import AccountKey
from models.money.chain import GENESIS
from models.reports.audit_scope import BEGINNING, END, EVERY_ENTRY, Stretch, of_stretch
from models.reports.findings import is_holding
from models.reports.rollup import is_usage_entry, rolled_seq, same_account

CIRCLE_ACCOUNTS = 1_000
"""Accounts that one audit checks again, at most."""

_is_held = select(findings.c.id).where(
    is_holding, findings.c.org_id == accounts.c.org_id, findings.c.account_id == accounts.c.id
).exists()  # fmt: skip
_is_behind = or_(
    audit_marks.c.seq.is_(None),
    audit_marks.c.seq != accounts.c.seq,
    rolled_seq != func.coalesce(audit_marks.c.usage_seq, 0),
)
"""Whether an account has moved, or more of its usage was rolled up, since its mark was set."""


# -- what is new ------------------------------------------------------------------------------------------------------


def new_stretches(connection: Connection, since: datetime) -> list[Stretch]:
    """Return what is new: the entries behind the marks, and the charges and orders of the time since then."""
    happened = [
        _has_any(charges, charges.c.account_id == accounts.c.id, charges.c.created_at >= since),
        _has_any(orders, orders.c.owner_id == accounts.c.owner_id, orders.c.at >= since),
        _has_any(adjustments, adjustments.c.owner_id == accounts.c.owner_id, adjustments.c.at >= since),
    ]
    query = (
        select(accounts.c.org_id, accounts.c.id, accounts.c.seq.label("last_seq"), *_MARK, _is_held.label("is_held"))
        .outerjoin_from(accounts, audit_marks, same_account(audit_marks))
        .outerjoin(usage_marks, same_account(usage_marks))
        .where(or_(_is_behind, _is_held, *happened))
    )
    return [_new_stretch(row, since) for row in connection.execute(query)]


_MARK = (audit_marks.c.seq, audit_marks.c.balance, audit_marks.c.debt, audit_marks.c.hash, audit_marks.c.since)


def _has_any(table: Any, *conditions: ColumnElement[bool]) -> ColumnElement[bool]:  # noqa: ANN401  a table
    return select(literal(1)).select_from(table).where(table.c.org_id == accounts.c.org_id, *conditions).exists()


def _new_stretch(row: Row[Any], since: datetime) -> Stretch:
    is_marked = row.seq is not None
    return Stretch(
        org_id=row.org_id,
        account_id=row.id,
        after_seq=row.seq if is_marked else -1,
        to_seq=EVERY_ENTRY,
        last_seq=row.last_seq,
        balance=row.balance if is_marked else 0,
        debt=row.debt if is_marked else 0,
        hash=row.hash if is_marked else GENESIS,
        end_hash=None,
        since=BEGINNING if not is_marked else min(since, row.since) if row.is_held else since,
    )


# -- what is checked again --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Again:
    """A stretch that is checked again. It ends the round of its account if `is_last`, which began at `whole_at`."""

    stretch: Stretch
    is_last: bool
    whole_at: datetime


def next_again(connection: Connection, budget: int) -> list[Again]:
    """Return what is checked again: what is held, and the accounts checked longest ago, as far as the budget allows.

    An entry counts one, and what it charged or gave back one a credit.
    """
    held = connection.execute(_candidates().where(_is_held, audit_marks.c.held_seq.is_not(None))).all()
    oldest = _candidates().where(~_is_held).order_by(audit_marks.c.whole_at, audit_marks.c.org_id,
                                                     audit_marks.c.account_id)  # fmt: skip
    waiting = _within(connection.execute(oldest.limit(CIRCLE_ACCOUNTS)).all(), budget)
    ends = {(row.org_id, row.id): (row.held_seq, row.held_at) for row in held}
    ends |= _ends(connection, waiting, budget)
    chosen = [row for row in (*held, *waiting) if (row.org_id, row.id) in ends]
    before = _entries_before(connection, chosen)
    checked = [_again(row, ends[row.org_id, row.id], before.get((row.org_id, row.id))) for row in chosen]
    # Days wait for the next circle where too much is not rolled up: all of that is read with them.
    return [
        replace(each, stretch=each.stretch.with_days()) if row.not_rolled_up <= budget else each
        for each, row in zip(checked, chosen, strict=True)
    ]


def _candidates() -> Any:  # noqa: ANN401  a query
    again = (audit_marks.c.whole_at, func.coalesce(audit_marks.c.again_seq, -1).label("again_seq"),
             func.coalesce(audit_marks.c.again_at, literal(BEGINNING, UtcDateTime)).label("again_at"),
             audit_marks.c.held_seq, audit_marks.c.held_at)  # fmt: skip
    not_rolled_up = (accounts.c.seq - rolled_seq).label("not_rolled_up")
    return (
        select(accounts.c.org_id, accounts.c.id, *_MARK, *again, not_rolled_up)
        .join_from(audit_marks, accounts, same_account(audit_marks))
        .outerjoin(usage_marks, same_account(usage_marks))
    )


def _within(candidates: Sequence[Row[Any]], budget: int) -> list[Row[Any]]:
    """Return the first candidates, until their entries alone are as many as the budget allows."""
    chosen = []
    for row in candidates:
        if budget <= 0:
            break
        chosen.append(row)
        budget -= row.seq - row.again_seq
    return chosen


def _ends(
    connection: Connection, waiting: Sequence[Row[Any]], budget: int
) -> dict[tuple[int, int], tuple[int, datetime | None]]:
    """Return how far each account comes within the budget: its last entry and the time of it, or None if to its end."""
    names = ("rank", "org_id", "account_id", "after_seq", "to_seq")
    given = rows_from(connection.dialect.name, dict.fromkeys(names, BigInteger()), "waiting")
    rows = [
        {
            "rank": rank,
            "org_id": row.org_id,
            "account_id": row.id,
            "after_seq": row.again_seq,
            "to_seq": min(row.seq, row.again_seq + budget),
        }
        for rank, row in enumerate(waiting)
    ]
    weight = case((is_usage_entry, 1 + func.abs(entries.c.amount)), else_=1)
    weighed = (
        select(
            given.c.org_id,
            given.c.account_id,
            entries.c.seq,
            entries.c.at,
            weight.label("weight"),
            func.sum(weight).over(order_by=(given.c.rank, entries.c.seq)).label("sum"),
        )
        .join_from(
            given,
            entries,
            and_(of_stretch(given, entries), entries.c.seq > given.c.after_seq, entries.c.seq <= given.c.to_seq),
        )
        .subquery("weighed")
    )
    reached = (
        select(weighed.c.org_id, weighed.c.account_id, func.max(weighed.c.seq), func.max(weighed.c.at))
        .where(weighed.c.sum - weighed.c.weight < bindparam("budget", type_=Integer))
        .group_by(weighed.c.org_id, weighed.c.account_id)
    )
    found = connection.execute(reached, {**rows_param(connection, rows, "waiting"), "budget": budget})
    last_entries = {(row[0], row[1]): (row[2], row[3]) for row in found}
    ends: dict[tuple[int, int], tuple[int, datetime | None]] = {}
    last = max((rank for rank, row in enumerate(waiting) if (row.org_id, row.id) in last_entries), default=len(waiting))
    for rank, row in enumerate(waiting):
        key = (row.org_id, row.id)
        if rank == last and last_entries[key][0] < row.seq:
            ends[key] = last_entries[key][0], max(row.again_at, last_entries[key][1])
            break
        ends[key] = row.seq, None  # also where its entries are gone, which is found then
        if rank == last:
            break
    return ends


def _entries_before(connection: Connection, chosen: Sequence[Row[Any]]) -> dict[tuple[int, int], Row[Any]]:
    """Return the entries behind which stretches begin, by account."""
    keys = [(row.org_id, row.id, row.again_seq) for row in chosen if row.again_seq >= 0]
    if not keys:
        return {}
    key = tuple_(entries.c.org_id, entries.c.account_id, entries.c.seq)
    found = connection.execute(select(entries).where(key.in_(keys)))
    return {(row.org_id, row.account_id): row for row in found}


def _again(row: Row[Any], end: tuple[int, datetime | None], before: Row[Any] | None) -> Again:
    to_seq, until = end
    is_first, is_last = row.again_seq < 0, until is None
    stretch = Stretch(
        org_id=row.org_id,
        account_id=row.id,
        after_seq=row.again_seq,
        to_seq=to_seq,
        last_seq=to_seq,
        balance=before.balance_after if before else 0 if is_first else None,
        debt=before.debt_after if before else 0 if is_first else None,
        hash=before.hash if before else GENESIS if is_first else None,
        end_hash=row.hash if to_seq == row.seq else None,
        since=row.again_at,
        until=until or END,
    )
    return Again(stretch, is_last, row.whole_at)


# -- moving on --------------------------------------------------------------------------------------------------------


def move_circle(
    connection: Connection, checked: Sequence[Again], held: Collection[AccountKey], now: datetime
) -> dict[AccountKey, datetime]:
    """Move on behind what was checked again and is not held.

    Returns the accounts whose round ended, each with the time at which it began.
    """
    if not checked:
        return {}
    # The clock may have been put back: what was checked last still comes last.
    newest = connection.execute(select(func.max(audit_marks.c.whole_at))).scalar() or now
    now = max(now, newest)
    rows = [{**_moved(again, now, is_held=again.stretch.account in held), "org_id": again.stretch.org_id,
             "account_id": again.stretch.account_id} for again in checked]  # fmt: skip
    names = ("whole_at", "again_seq", "again_at", "held_seq", "held_at")
    types = {name: audit_marks.c[name].type for name in ("org_id", "account_id", *names)}
    moved = rows_from(connection.dialect.name, types, "moved")
    connection.execute(
        update(audit_marks).where(of_stretch(moved, audit_marks)).values({name: moved.c[name] for name in names}),
        rows_param(connection, rows, "moved"),
    )
    return {each.stretch.account: each.whole_at for each in checked
            if each.is_last and each.stretch.account not in held}  # fmt: skip


def _moved(again: Again, now: datetime, *, is_held: bool) -> dict[str, Any]:
    stretch = asdict(again.stretch)
    if is_held:
        return {
            "whole_at": again.whole_at,
            "again_seq": stretch["after_seq"],
            "again_at": stretch["since"],
            "held_seq": stretch["to_seq"],
            "held_at": None if again.is_last else stretch["until"],
        }
    if again.is_last:
        return {"whole_at": now}
    return {"whole_at": again.whole_at, "again_seq": stretch["to_seq"], "again_at": stretch["until"]}


def move_marks(connection: Connection, now: datetime, since: datetime, *, whole: bool) -> None:
    """Note how far the accounts that are not held were checked. Nothing of the ledger is locked."""
    whole_at = literal(now, UtcDateTime)
    moved = (
        select(
            accounts.c.org_id,
            accounts.c.id,
            accounts.c.seq,
            accounts.c.available,
            accounts.c.debt,
            accounts.c.hash,
            usage_marks.c.seq,
            literal(since, UtcDateTime),
            whole_at,
        )
        .outerjoin_from(accounts, audit_marks, same_account(audit_marks))
        .outerjoin(usage_marks, same_account(usage_marks))
        .where(literal(whole) | _is_behind, ~_is_held)
    )
    columns = ("seq", "balance", "debt", "hash", "usage_seq", "since")
    marks = insert(connection, audit_marks).from_select(["org_id", "account_id", *columns, "whole_at"], moved)
    changed: dict[str, Any] = {name: marks.excluded[name] for name in columns}
    if whole:
        changed |= {"whole_at": now, **dict.fromkeys(("again_seq", "again_at", "held_seq", "held_at"))}
    connection.execute(
        marks.on_conflict_do_update(index_elements=[audit_marks.c.org_id, audit_marks.c.account_id], set_=changed)
    )


def check_first(connection: Connection) -> None:
    """Let the circle begin with the accounts in which an audit of the whole history has found something."""
    found = select(findings.c.org_id, findings.c.account_id).where(
        findings.c.by_whole, findings.c.resolved_at.is_(None), findings.c.acknowledged_at.is_(None)
    )
    connection.execute(
        update(audit_marks)
        .where(tuple_(audit_marks.c.org_id, audit_marks.c.account_id).in_(found))
        .values(whole_at=BEGINNING)
    )
