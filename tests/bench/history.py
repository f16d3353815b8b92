"""A long history in a database of Postage: charges that were sent, and the entries they left, by plain SQL.

Rows are like one that Postage made itself (`SAMPLE`): what is not named here is as it is there, so that a new column
needs no change. They go in oldest first, as they would have come; indexes are built afterwards, which takes a tenth of
the time.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
from psycopg import sql

from tests.bench.workers import SideError

SAMPLE: Final = "bench-sample"
DAYS: Final = 90
CHUNK: Final = 500_000
HOT_SENDERS: Final = 20
OTHERS: Final = 1_000

# Every second message is of one pool; the others go round a thousand owners. `place` counts within an account.
NUMBERED: Final = f"""
    SELECT g, owner, place, account.id AS account_id, account.seq + place AS seq,
           account.available - place AS balance_after, sender,
           md5(%(salt)s || g)::uuid::text AS job_id,
           %(oldest)s::timestamptz + (g::float8 / %(rows)s) * interval '{DAYS} days' AS at
    FROM (
        SELECT g, CASE WHEN g %% 2 = 0 THEN 'hot' ELSE 'owner-' || (g / 2) %% {OTHERS} END AS owner,
               CASE WHEN g %% 2 = 0 THEN g / 2 ELSE g / 2 / {OTHERS} + 1 END AS place,
               CASE WHEN g %% 2 = 0 THEN 'user-' || (g / 2) %% {HOT_SENDERS}
                    ELSE 'owner-' || (g / 2) %% {OTHERS} END AS sender
        FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS g
    ) AS counted
    JOIN accounts AS account ON account.owner_id = owner AND account.kind = 'email'
    ORDER BY g
"""
CHARGES: Final = {
    "job_id": "made.job_id",
    "sender": "made.sender",
    "account_id": "made.account_id",
    "digest": "md5('d' || g) || md5('e' || g)",
    "holder": "md5('h' || g)",
    "carrier_reference": "'250 2.0.0 Ok: queued as ' || upper(left(md5('r' || g), 11))",
    "created_at": "made.at",
    "final_at": "made.at + interval '50 milliseconds'",
}
ENTRIES: Final = {
    "account_id": "made.account_id",
    "seq": "made.seq",
    "balance_after": "made.balance_after",
    "cause": "'charge:' || made.job_id",
    "at": "made.at",
}
SAMPLES: Final = {
    "charges": f"SELECT * FROM charges WHERE job_id = '{SAMPLE}' AND state = 'sent'",
    "entries": f"SELECT * FROM entries WHERE cause = 'charge:{SAMPLE}'",
}
BALANCES: Final = """
    UPDATE accounts SET seq = newest.seq, available = newest.balance_after
    FROM (SELECT DISTINCT ON (account_id) account_id, seq, balance_after FROM entries
          ORDER BY account_id, seq DESC) AS newest
    WHERE accounts.id = newest.account_id
"""


def fill(url: str, rows: int, *, say: Callable[[str], None]) -> None:
    """Add `rows` charges of the past days, with their entries and balances.

    Raises
    ------
    SideError
        If there is no message to make them like.

    """
    began = time.monotonic()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")  # foreign keys hold by construction
        connection.execute("SET synchronous_commit = off")
        connection.execute("SET maintenance_work_mem = '512MB'")
        for table, ours in SAMPLES.items():
            if connection.execute(f"CREATE TEMPORARY TABLE sample_of_{table} AS {ours}").rowcount != 1:
                msg = f"{SAMPLE}, which the history is made like, is not among the {table}, or was not sent"
                raise SideError(msg)
        with _without_indexes(connection, ("charges", "entries"), say):
            inserts = [_insert(connection, "charges", CHARGES), _insert(connection, "entries", ENTRIES)]
            given = {"rows": rows, "oldest": datetime.now(UTC) - timedelta(days=DAYS), "salt": f"bench-{rows}-"}
            for first in range(1, rows + 1, CHUNK):
                last = min(first + CHUNK - 1, rows)
                for insert in inserts:
                    connection.execute(insert, {**given, "first": first, "last": last})
                say(f"{last:,} of {rows:,} charges of history after {time.monotonic() - began:.0f} s …")
        connection.execute(BALANCES)
        connection.execute("VACUUM (ANALYZE)")
        connection.execute("CHECKPOINT")
    say(f"{rows:,} charges of history made in {time.monotonic() - began:.0f} s.")


def _insert(connection: psycopg.Connection[Any], table: str, columns: dict[str, str]) -> sql.Composed:
    """Make an INSERT of numbered rows: of each column what `columns` says, or else what the sample has."""
    found = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
        " AND attgenerated = '' ORDER BY attnum", [table]
    )  # fmt: skip
    names = [name for (name,) in found]
    values = [
        sql.SQL(columns[name]) if name in columns else sql.SQL("sample.{}").format(sql.Identifier(name))  # type: ignore[arg-type]
        for name in names
    ]
    return sql.SQL(
        "INSERT INTO {table} ({names}) SELECT {values} FROM ({numbered}) AS made, {sample} AS sample"
    ).format(
        table=sql.Identifier(table),
        names=sql.SQL(", ").join(map(sql.Identifier, names)),
        values=sql.SQL(", ").join(values),
        numbered=sql.SQL(NUMBERED),
        sample=sql.Identifier(f"sample_of_{table}"),
    )


@contextmanager
def _without_indexes(
    connection: psycopg.Connection[Any], tables: Sequence[str], say: Callable[[str], None]
) -> Iterator[None]:
    """Take indexes, keys, and what refers to them away, and build them again afterwards."""
    constraints = connection.execute(
        "SELECT conrelid::regclass::text, quote_ident(conname), pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE (conrelid = ANY(%(tables)s::regclass[]) AND contype IN ('p', 'u'))"
        " OR confrelid = ANY(%(tables)s::regclass[]) ORDER BY contype = 'f'",
        {"tables": list(tables)},
    ).fetchall()
    indexes = connection.execute(
        "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index"
        " WHERE indrelid = ANY(%(tables)s::regclass[])"
        " AND NOT EXISTS (SELECT 1 FROM pg_constraint WHERE conindid = indexrelid AND contype IN ('p', 'u'))",
        {"tables": list(tables)},
    ).fetchall()
    for table, name, _ in reversed(constraints):
        connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")  # type: ignore[arg-type]
    for name, _ in indexes:
        connection.execute(f"DROP INDEX {name}")  # type: ignore[arg-type]
    yield
    for _, definition in indexes:
        say(f"{definition} …")
        connection.execute(definition)
    for table, name, definition in constraints:
        say(f"{table}: {definition} …")
        connection.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")  # type: ignore[arg-type]
