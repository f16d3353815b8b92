"""`views.statement`: the entries of an owner's accounts, newest first, and what is behind each of them.

Entries are listed by their numbers, without a gap, so that a page neither skips nor repeats one, whatever is entered
meanwhile. A page has what `money.chain` needs to check it without the database (`postage verify`).
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, FromClause, Row, select

from models.database.paging import PAGE_SIZE
from models.database.schema import accounts, adjustments, charges, entries, orders, reversals
from models.errors import Reason, Refused
from models.messages.answer import exact_time, iso_time
from models.messages.base import Json
from models.messages.views import ViewStatement
from models.money.accounts import AccountKey
from models.money.chain import GENESIS
from models.reports.rollup import entries_between, is_charged_by, is_refunded_by
from models.reports.views import ViewScope, order_row, reversal_row, reversals_of, scope_of
from models.sends.answers import wire_status
from models.sends.charges import State


def show_statement(connection: Connection, view: ViewStatement) -> Json:
    """Return a page of each account's entries, or one entry with what is behind it.

    Raises
    ------
    Refused
        `unknown_user`, or `not_found` for an entry that the accounts do not have.

    """
    scope = scope_of(connection, view)
    if view.entry is not None:
        return {**scope.heading(), **_explain(connection, scope, view.entry)}
    starts = _starts(view.next)
    pages = [
        _read_page(connection, account, view, starts.get(account.kind)) for account in _accounts_of(connection, scope)
    ]
    cursor = _next(pages)
    return {
        **scope.heading(),
        "accounts": [_page_json(page) for page in pages],
        "more": cursor is not None,
        "next": cursor,
    }


def _accounts_of(connection: Connection, scope: ViewScope) -> Sequence[Row[Any]]:
    query = select(accounts).where(accounts.c.org_id == scope.owner.org_id, accounts.c.owner_id == scope.owner.id)
    return connection.execute(query.order_by(accounts.c.kind)).all()


def _starts(cursor: str | None) -> dict[str, int]:
    """Return below which entry of each account a page begins."""
    parts = (part.split(":") for part in cursor.split(",")) if cursor else ()
    return {kind: int(seq) for kind, seq in parts}


def _next(pages: Sequence["_Page"]) -> str | None:
    """Return the cursor of the next page of all accounts, or None if no account has more."""
    if not any(page.more for page in pages):
        return None
    return ",".join(f"{page.account.kind}:{page.end}" for page in pages)


# -- pages ------------------------------------------------------------------------------------------------------------


class _Page(NamedTuple):
    """A page of one account's entries. Their chain begins after `hash_before`; the next page is below `end`."""

    account: Row[Any]
    entries: Sequence[Row[Any]]
    hash_before: str
    end: int
    more: bool


def _read_page(connection: Connection, account: Row[Any], view: ViewStatement, start: int | None) -> _Page:
    """Return the newest entries below `start` that are in the view's period."""
    key = AccountKey(account.org_id, account.id)
    first = _last_before(connection, key, view.since) + 1 if view.since else 0
    end = _last_before(connection, key, view.until) + 1 if view.until else account.seq + 1
    below = end if start is None else min(start, end)
    # One more than is shown: its hash is where the chain of the page begins.
    found = connection.execute(
        select(entries)
        .where(entries_between(key, first - 1, below - 1))
        .order_by(entries.c.seq.desc())
        .limit(PAGE_SIZE + 1)
    ).all()
    shown = [entry for entry in found[:PAGE_SIZE] if entry.seq >= first]
    before = found[len(shown)] if len(found) > len(shown) else None
    return _Page(
        account=account,
        entries=shown,
        hash_before=before.hash if before else GENESIS,
        end=shown[-1].seq if shown else below,
        more=before is not None and before.seq >= first,
    )


def _last_before(connection: Connection, account: AccountKey, time: datetime) -> int:
    """Return the number of the last entry made before a time, or -1. It reads only the entries made since."""
    query = select(entries.c.seq).where(entries_between(account, 0), entries.c.at < time)
    seq: int | None = connection.execute(query.order_by(entries.c.seq.desc()).limit(1)).scalar()
    return -1 if seq is None else seq


def _page_json(page: _Page) -> Json:
    return {
        **_account_row(page.account),
        "balance": page.account.available,
        "debt": page.account.debt,
        "hash_before": page.hash_before,
        "entries": [_entry_row(entry) for entry in page.entries],
    }


def _account_row(account: Row[Any]) -> Json:
    return {"owner": account.owner_id, "kind": account.kind, "org_id": account.org_id, "account_id": account.id}


def _entry_row(entry: Row[Any]) -> Json:
    """Return an entry with all that its hash is made of, beside the account."""
    return {
        "seq": entry.seq,
        "amount": entry.amount,
        "balance_after": entry.balance_after,
        "debt_after": entry.debt_after,
        "cause_kind": entry.cause_kind,
        "cause_id": entry.cause_id,
        "at": exact_time(entry.at),
        "content": entry.content,
        "hash": entry.hash,
    }


# -- what is behind an entry ------------------------------------------------------------------------------------------


def _explain(connection: Connection, scope: ViewScope, name: str) -> Json:
    kind, _, seq = name.partition("/")
    [account] = [account for account in _accounts_of(connection, scope) if account.kind == kind]
    its_key = AccountKey(account.org_id, account.id)
    entry = connection.execute(select(entries).where(entries_between(its_key, int(seq), int(seq)))).one_or_none()
    if entry is None:
        sentence = f"The {kind} account of {scope.owner.id} has no entry {seq}: its last one is {account.seq}."
        raise Refused(Reason.NOT_FOUND, sentence)
    reversal = _reversal(connection, entry) if entry.cause_kind == "reversal" else None
    order_id = reversal.order_id if reversal else entry.cause_id if entry.cause_kind == "purchase" else None
    return {
        "entry": {**_account_row(account), **_entry_row(entry)},
        "messages": _messages(connection, entry),
        "order": _order(connection, entry, order_id) if order_id else None,
        "reversal": {"order_id": reversal.order_id, **reversal_row(reversal)} if reversal else None,
        "adjustment": _adjustment(connection, entry) if entry.cause_kind == "adjustment" else None,
    }


def _messages(connection: Connection, entry: Row[Any]) -> list[Json]:
    """Return the messages that an entry paid for, or gave back: as many as are charged or settled together."""
    if entry.cause_kind not in ("charge", "refund"):
        return []
    is_charge = entry.cause_kind == "charge"
    moved, its_charges = (charges.c.credits, is_charged_by) if is_charge else (charges.c.refunded, is_refunded_by)
    found = connection.execute(
        select(charges.c.job_id, charges.c.sender, charges.c.state, charges.c.reason, charges.c.attempts,
               charges.c.created_at, moved.label("moved"))
        .join_from(entries, charges, its_charges(entries))
        .where(entries.c.org_id == entry.org_id, entries.c.account_id == entry.account_id, entries.c.seq == entry.seq)
        .order_by(charges.c.job_id)
    )  # fmt: skip
    return [
        {
            "job_id": row.job_id,
            "user": row.sender,
            "credits": row.moved,
            "status": wire_status(State(row.state), row.attempts, row.reason),
            "at": iso_time(row.created_at),
        }
        for row in found
    ]


def _caused(connection: Connection, table: FromClause, key: str, entry: Row[Any], key_value: str) -> Row[Any] | None:
    """Return the row of `table` in the entry's organization whose key is `key_value`."""
    return connection.execute(
        select(table).where(table.c.org_id == entry.org_id, table.c[key] == key_value)
    ).one_or_none()


def _reversal(connection: Connection, entry: Row[Any]) -> Row[Any] | None:
    return _caused(connection, reversals, "reversal_id", entry, entry.cause_id)


def _order(connection: Connection, entry: Row[Any], order_id: str) -> Json | None:
    order = _caused(connection, orders, "order_id", entry, order_id)
    return order_row(order, reversals_of(connection, [order])) if order else None


def _adjustment(connection: Connection, entry: Row[Any]) -> Json | None:
    made = _caused(connection, adjustments, "adjustment_id", entry, entry.cause_id)
    return made and {
        "adjustment_id": made.adjustment_id,
        "actor": made.actor_id,
        "owner": made.owner_id,
        "credits": {"email": made.email, "sms": made.sms},
        "reason": made.reason,
        "at": iso_time(made.at),
    }
