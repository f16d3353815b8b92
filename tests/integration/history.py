"""Long histories that are written at once, and how much of them a query reads."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Table, insert, literal, select, text, update

from models.database.engine import Database
from models.database.json_rows import rows_from, rows_param
from models.database.schema import accounts, charges, entries, users
from models.money.chain import Paid, content_of, entry_hash

SENT: dict[str, Any] = {"task": "email.send", "kind": "email", "digest": "d", "credits": 1, "refunded": 0,
                        "state": "sent",
        "attempts": 1, "crashes": 0}  # fmt: skip
"""What all charges of the history have in common, but for their sender."""


def write_sent_emails(database: Database, sender: str, times: Sequence[datetime]) -> None:
    """Write one email for each of these times, as the ledger would have done one by one.

    John has paid them, with all of the credits that he had bought in one order.
    """
    count = len(times)
    johns = (accounts.c.owner_id == "john") & (accounts.c.kind == "email")
    charged = [
        {"job_id": f"job-{n}", "charged_by": f"job-{n}", "created_at": at, "final_at": at}
        for n, at in enumerate(times, 1)
    ]
    with database.engine.begin() as connection:
        account = connection.execute(select(accounts).where(johns)).one()
        owner_version = connection.execute(select(users.c.owner_version).where(users.c.id == sender)).scalar_one()
        shared = {"org_id": account.org_id, "account_id": account.id}
        insert_rows(connection, charges, charged, **SENT, **shared, sender=sender, owner_version=owner_version)
        spent, last = [], account.hash
        for n, at in enumerate(times, 1):
            entry = {"seq": account.seq + n, "amount": -1, "balance_after": account.available - n, "debt_after": 0,
                     "cause_kind": "charge", "cause_id": f"job-{n}", "at": at,
                     "content": content_of([Paid(f"job-{n}", SENT["digest"], sender, 1)])}  # fmt: skip
            last = entry_hash(last, **shared, **entry)
            spent.append({**entry, "hash": last})
        insert_rows(connection, entries, spent, **shared)
        moved = {"seq": account.seq + count, "available": account.available - count, "hash": last}
        connection.execute(update(accounts).where(johns).values(**moved))


def insert_rows(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], **shared: Any) -> None:
    """Insert rows by one statement, which is much faster than row by row. `shared` is the same in all of them."""
    given = rows_from(connection.dialect.name, {name: table.c[name].type for name in rows[0]}, "given")
    values = {
        **{name: given.c[name] for name in rows[0]},
        **{name: literal(value, table.c[name].type) for name, value in shared.items()},
    }
    statement = insert(table).from_select(list(values), select(*values.values()))
    connection.execute(statement, rows_param(connection, rows, "given"))


def analyze(database: Database) -> None:
    """Let the planner know the history."""
    with database.engine.begin() as connection:
        connection.exec_driver_sql("ANALYZE")


def rows_read(connection: Connection) -> dict[str, int]:
    """Give how many rows of each table this session of PostgreSQL has read so far."""
    counts = connection.execute(
        text("SELECT relname, coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables")
    )
    return {table: int(count) for table, count in counts}
