"""The ledger: accounts and entries, and the only code that changes a balance.

An entry is one move of credits into or out of an account, stored for ever with the balance that it leaves. `post` makes
moves in three steps: lock the accounts, add up, write the entries and the balances. It runs inside the caller's
transaction, and neither commits, logs nor calls out.

Lock order everywhere: order, users by id, charges by job id, accounts by id. Accounts come last because every charge
needs them, so that they are locked for the shortest time.
"""

import functools
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Connection, Executable, bindparam, select, update

from models.database.json_rows import array_param, in_array, rows_from, rows_param
from models.database.schema import UtcDateTime, accounts, entries
from models.database.statements import chained, execute_chain, insert, insert_for
from models.messages.fields import KINDS


class Move(NamedTuple):
    """Credits into (positive) or out of (negative) an account. No two moves ever have the same `cause`."""

    account_id: int
    amount: int
    cause: str


class Balance(NamedTuple):
    """What an account holds, and the number of its last entry."""

    available: int
    seq: int


def open_accounts(connection: Connection, owner: str) -> None:
    """Open an empty account of each kind for a new user.

    It belongs into the transaction that makes the user: accounts opened later would be missing for a charge meanwhile.
    """
    opened = [{"owner_id": owner, "kind": kind, "available": 0, "seq": 0} for kind in KINDS]
    connection.execute(insert(connection, accounts), opened)


def account_ids(connection: Connection, owners: Collection[str]) -> dict[tuple[str, str], int]:
    """Return the ids of the owners' accounts by (owner, kind)."""
    query = select(accounts.c.owner_id, accounts.c.kind, accounts.c.id).where(accounts.c.owner_id.in_(owners))
    return {(row.owner_id, row.kind): row.id for row in connection.execute(query)}


def post(connection: Connection, moves: Sequence[Move], now: datetime) -> dict[str, int]:
    """Make the moves in their order, except those that would take a balance below zero.

    Returns the causes of the moves that were not made, each with the balance that was insufficient.
    """
    if not moves:
        return {}
    balances = _lock(connection, {move.account_id for move in moves})
    insufficient: dict[str, int] = {}
    made: list[dict[str, Any]] = []
    for move in moves:
        before = balances[move.account_id]
        after = Balance(before.available + move.amount, before.seq + 1)
        if after.available < 0:
            insufficient[move.cause] = before.available
            continue
        balances[move.account_id] = after
        made.append(
            {
                "account_id": move.account_id,
                "seq": after.seq,
                "amount": move.amount,
                "balance_after": after.available,
                "cause": move.cause,
            }
        )
    _write(connection, balances, made, now)
    return insufficient


def _lock(connection: Connection, ids: Collection[int]) -> dict[int, Balance]:
    """Lock accounts in id order until the transaction ends, and return their balances by id."""
    found = connection.execute(_lock_accounts(connection.dialect.name), {"ids": array_param(connection, ids)})
    return {row.id: Balance(row.available, row.seq) for row in found}


@functools.cache
def _lock_accounts(dialect: str) -> Executable:
    return (
        select(accounts.c.id, accounts.c.available, accounts.c.seq)
        .where(in_array(dialect, accounts.c.id, "ids"))
        .order_by(accounts.c.id)
        .with_for_update(key_share=True)
    )


def _write(
    connection: Connection, balances: Mapping[int, Balance], made: Sequence[Mapping[str, Any]], now: datetime
) -> None:
    """Write entries, and the balances that they leave."""
    if not made:
        return
    moved = sorted({entry["account_id"] for entry in made})
    left = [{"id": account_id, **balances[account_id]._asdict()} for account_id in moved]
    parameters = {
        **rows_param(connection, left, "new_balances"),
        **rows_param(connection, made, "new_entries"),
        "now": now,
    }
    execute_chain(connection, _write_balances_and_entries(connection.dialect.name), parameters)


@functools.cache
def _write_balances_and_entries(dialect: str) -> Sequence[Executable]:
    new_balances = rows_from(
        dialect, {"id": BigInteger(), "available": BigInteger(), "seq": BigInteger()}, "new_balances"
    )
    update_balances = (
        update(accounts)
        .where(accounts.c.id == new_balances.c.id)
        .values(available=new_balances.c.available, seq=new_balances.c.seq)
    )
    columns = ("account_id", "seq", "amount", "balance_after", "cause")
    new_entries = rows_from(dialect, {name: entries.c[name].type for name in columns}, "new_entries")
    rows = select(*(new_entries.c[name] for name in columns), bindparam("now", type_=UtcDateTime).label("at"))
    insert_entries = insert_for(dialect, entries).from_select([*columns, "at"], rows)
    return chained(dialect, update_balances, insert_entries, first_name="moved_accounts")
