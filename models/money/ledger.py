"""The ledger: accounts and entries, and the only code that changes a balance.

An entry is what one transaction did to one account, stored for ever with the balance that it leaves. `post` changes the
balances and writes the entries in one statement. It runs inside the caller's transaction, and neither commits, logs nor
calls out.

Lock order everywhere: users (users.py), the order, charges by job id, accounts by id. Accounts come last because every
charge needs them, so that they are locked for the shortest time.
"""

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, Connection, Executable, Integer, String, bindparam, select, update
from sqlalchemy import cast as sql_cast

from models.database.json_rows import rows_from, rows_param
from models.database.schema import UtcDateTime, accounts, entries, organizations
from models.database.statements import execute_chain, insert, insert_for, is_among, sha256_hex, sql_literal
from models.messages.fields import KINDS
from models.money.accounts import AccountKey
from models.money.chain import GENESIS, entry_hash, microseconds

CauseKind = Literal["charge", "refund", "purchase", "reversal", "adjustment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Credits into (positive) or out of (negative) an account, and what this does to its debt.

    No two moves of an account have the same cause. `content` is the digest of what is paid for (chain.py).
    """

    account: AccountKey
    amount: int
    cause_kind: CauseKind
    cause_id: str
    content: str
    debt: int = 0


class Balance(NamedTuple):
    """What an account holds, and what it owes."""

    available: int
    debt: int


def open_accounts(connection: Connection, org_id: int, owner: str, now: datetime) -> None:
    """Open an empty account of each kind for a new user, each with the entry from which its chain begins.

    It belongs into the transaction that makes the user: accounts opened later would be missing for a charge meanwhile.
    """
    last: int = connection.execute(
        update(organizations)
        .where(organizations.c.id == org_id)
        .values(accounts=organizations.c.accounts + len(KINDS))
        .returning(organizations.c.accounts)
    ).scalar_one()
    for account_id, kind in enumerate(KINDS, last - len(KINDS) + 1):
        opening = {"org_id": org_id, "account_id": account_id, "seq": 0, "amount": 0, "balance_after": 0,
                   "debt_after": 0, "cause_kind": "opening", "cause_id": "", "at": now, "content": ""}  # fmt: skip
        hash_ = entry_hash(GENESIS, **opening)  # type: ignore[arg-type]
        connection.execute(insert(connection, entries).values(**opening, hash=hash_))
        connection.execute(
            insert(connection, accounts).values(
                org_id=org_id, id=account_id, owner_id=owner, kind=kind, available=0, debt=0, seq=0, hash=hash_
            )
        )


def lock_accounts(connection: Connection, keys: Collection[AccountKey]) -> dict[AccountKey, Balance]:
    """Lock accounts, in the order of their keys, until the transaction ends, and return their balances."""
    its_key = (accounts.c.org_id, accounts.c.id)
    found = connection.execute(
        select(*its_key, accounts.c.available, accounts.c.debt)
        .where(is_among(its_key, keys))
        .order_by(*its_key)
        .with_for_update(key_share=True)
    )
    return {AccountKey(row.org_id, row.id): Balance(row.available, row.debt) for row in found}


def post(connection: Connection, moves: Sequence[Move], now: datetime) -> set[AccountKey]:
    """Make the moves, one an account, except those that would take a balance below zero.

    Returns the accounts that were moved.
    """
    if not moves:
        return set()
    if len(moves) > 1:  # one statement may lock them in any order, and two of them each other's
        lock_accounts(connection, {move.account for move in moves})
    rows = [
        {
            "org_id": move.account.org_id,
            "account_id": move.account.account_id,
            "amount": move.amount,
            "debt": move.debt,
            "cause_kind": move.cause_kind,
            "cause_id": move.cause_id,
            "content": move.content,
        }
        for move in moves
    ]
    parameters = {**rows_param(connection, rows, "moves"), "now": now, "at": str(microseconds(now))}
    moved = execute_chain(connection, _move_and_enter(connection.dialect.name), parameters)
    return {AccountKey(*row) for row in moved}


_ENTRY = ("org_id", "account_id", "seq", "amount", "balance_after", "debt_after", "cause_kind", "cause_id", "content",
          "hash")  # fmt: skip


@functools.cache
def _move_and_enter(dialect: str) -> Sequence[Executable]:
    """Return the statements that change the balances, and write an entry for each account that was moved.

    PostgreSQL runs them as one; SQLite, which has no writing WITH, finds the moved accounts by their missing entries.
    """
    types: dict[str, Any] = {
        **{name: entries.c[name].type for name in ("org_id", "account_id", "amount", "cause_kind", "cause_id",
                                                   "content")},
        "debt": BigInteger(),
    }  # fmt: skip
    moves = rows_from(dialect, types, "moves")
    after = accounts.c.available + moves.c.amount
    move_accounts = (
        update(accounts)
        .where(accounts.c.org_id == moves.c.org_id, accounts.c.id == moves.c.account_id, after >= sql_literal(0))
        .values(
            available=after,
            debt=accounts.c.debt + moves.c.debt,
            seq=accounts.c.seq + sql_literal(1),
            hash=_hash_of(moves, after),
        )
    )
    entered = (accounts.c.org_id, accounts.c.id, accounts.c.seq, moves.c.amount, accounts.c.available, accounts.c.debt,
               moves.c.cause_kind, moves.c.cause_id, moves.c.content, accounts.c.hash)  # fmt: skip
    labelled = [column.label(name) for column, name in zip(entered, _ENTRY, strict=True)]
    at = bindparam("now", type_=UtcDateTime).label("at")
    if dialect == "postgresql":
        moved = move_accounts.returning(*labelled).cte("moved")
        new_entries = select(*moved.c, at)
    else:
        is_entered = (
            (entries.c.org_id == accounts.c.org_id)
            & (entries.c.account_id == accounts.c.id)
            & (entries.c.seq == accounts.c.seq)
        )
        new_entries = (
            select(*labelled, at)
            .join_from(accounts, moves, (accounts.c.org_id == moves.c.org_id) & (accounts.c.id == moves.c.account_id))
            .where(~select(entries.c.seq).where(is_entered).exists())
        )
    enter = (
        insert_for(dialect, entries)
        .from_select([*_ENTRY, "at"], new_entries)
        .returning(entries.c.org_id, entries.c.account_id)
    )
    return [enter] if dialect == "postgresql" else [move_accounts, enter]


def _hash_of(moves: Any, after: ColumnElement[int]) -> ColumnElement[str]:  # noqa: ANN401  a FROM with its columns
    """Return the hash of the new entry, as `chain.entry_hash` does."""
    fields = (accounts.c.hash, accounts.c.org_id, accounts.c.id, accounts.c.seq + sql_literal(1), moves.c.amount, after,
              accounts.c.debt + moves.c.debt, moves.c.cause_kind, moves.c.cause_id, bindparam("at", type_=String),
              moves.c.content)  # fmt: skip
    text: ColumnElement[str] = accounts.c.hash
    for field in fields[1:]:
        is_number = isinstance(field.type, Integer)
        text = text + sql_literal("|") + (sql_cast(field, String) if is_number else field)
    return sha256_hex(text)
