"""A long history in a database of Postage: charges that were sent, and the entries they left, by plain SQL.

Rows are like one that Postage made itself (`SAMPLE`): what is not named here is as it is there, so that a new column
needs no change. They go in oldest first, as they would have come. Indexes are built when nearly all are there, which
takes a tenth of the time; the newest come in through the indexes, which leaves those as in a database at work.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
from psycopg import sql

from bench.workers import SideError

SAMPLE: Final = "bench-sample"
DAYS: Final = 90
CHUNK: Final = 1_000_000
NEWEST: Final = 30
"""Of so many rows the newest comes in through the indexes: enough to meet nearly every page of theirs."""
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
COLUMNS: Final = {
    "charges": {
        "job_id": "made.job_id",
        "sender": "made.sender",
        "account_id": "made.account_id",
        "digest": "md5('d' || g) || md5('e' || g)",
        "lease_id": "md5('h' || g)",
        "carrier_reference": "'250 2.0.0 Ok: queued as ' || upper(left(md5('r' || g), 11))",
        "created_at": "made.at",
        "final_at": "made.at + interval '50 milliseconds'",
    },
    "entries": {
        "account_id": "made.account_id",
        "seq": "made.seq",
        "balance_after": "made.balance_after",
        "cause": "'charge:' || made.job_id",
        "at": "made.at",
    },
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
    """Add `rows` charges of the past days, with their entries and balances; charges and entries at the same time.

    Raises
    ------
    SideError
        If there is no message to make them like.

    """
    began = time.monotonic()
    given = {"rows": rows, "oldest": datetime.now(UTC) - timedelta(days=DAYS), "salt": f"bench-{rows}-"}
    newest = rows // NEWEST

    def fill_one(table: str, numbers: range, *, indexed: bool) -> None:
        with _connected(url) as connection:
            for done in _fill_table(connection, table, given, numbers, indexed=indexed):
                say(f"history: {table}: {done} after {time.monotonic() - began:.0f} s …")

    with ThreadPoolExecutor() as threads, _connected(url) as connection:
        for numbers, indexed in ((range(1, rows - newest + 1), False), (range(rows - newest + 1, rows + 1), True)):
            filled = [threads.submit(fill_one, table, numbers, indexed=indexed) for table in COLUMNS]
            for one in filled:
                one.result()
            if not indexed:
                connection.execute("VACUUM (ANALYZE)")
                connection.execute("CHECKPOINT")
        connection.execute(BALANCES)
    say(f"history: {rows:,} charges made in {time.monotonic() - began:.0f} s.")


def warm(url: str) -> None:
    """Have the indexes in which ids land at random in memory, as in a database at work: other sides came between."""
    with _connected(url) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS pg_prewarm")
        connection.execute(
            "SELECT pg_prewarm(indexrelid) FROM pg_index"
            " WHERE indrelid IN ('charges'::regclass, 'entries'::regclass) AND indisunique"
        )


def _connected(url: str) -> psycopg.Connection[Any]:
    connection = psycopg.connect(url, autocommit=True)
    connection.execute("SET session_replication_role = replica")  # foreign keys hold by construction
    connection.execute("SET synchronous_commit = off")
    connection.execute("SET work_mem = '256MB'")
    connection.execute("SET maintenance_work_mem = '512MB'")
    return connection


def _fill_table(
    connection: psycopg.Connection[Any], table: str, given: dict[str, Any], numbers: range, *, indexed: bool
) -> Iterator[str]:
    """Add rows of one table, `indexed` one by one or all at the end; says what is done."""
    ours = connection.execute(f"CREATE TEMPORARY TABLE sample_of_{table} AS {SAMPLES[table]}")
    if ours.rowcount != 1:
        msg = f"{SAMPLE}, which the history is made like, is not among the {table}, or was not sent"
        raise SideError(msg)
    later = [] if indexed else _take_indexes_away(connection, table)
    insert = _insert(connection, table)
    for first in numbers[::CHUNK]:
        last = min(first + CHUNK - 1, numbers[-1])
        connection.execute(insert, {**given, "first": first, "last": last})
        yield f"{last:,} of {given['rows']:,}"
    for number, statement in enumerate(later, 1):
        connection.execute(statement)  # type: ignore[arg-type]
        yield f"{number} of {len(later)} indexes and constraints"


def _insert(connection: psycopg.Connection[Any], table: str) -> sql.Composed:
    """Make an INSERT of numbered rows: of each column what `COLUMNS` says, or else what the sample has."""
    columns = COLUMNS[table]
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


def _take_indexes_away(connection: psycopg.Connection[Any], table: str) -> list[str]:
    """Take indexes, keys, and what refers to them away; gives the statements that make them again."""
    constraints = connection.execute(
        "SELECT conrelid::regclass::text, quote_ident(conname), pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE (conrelid = %(table)s::regclass AND contype IN ('p', 'u')) OR confrelid = %(table)s::regclass"
        " ORDER BY contype = 'f'",
        {"table": table},
    ).fetchall()
    indexes = connection.execute(
        "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index"
        " WHERE indrelid = %(table)s::regclass"
        " AND NOT EXISTS (SELECT 1 FROM pg_constraint WHERE conindid = indexrelid AND contype IN ('p', 'u'))",
        {"table": table},
    ).fetchall()
    for owner, name, _ in reversed(constraints):
        connection.execute(f"ALTER TABLE {owner} DROP CONSTRAINT {name}")  # type: ignore[arg-type]
    for name, _ in indexes:
        connection.execute(f"DROP INDEX {name}")  # type: ignore[arg-type]
    return [
        *(definition for _, definition in indexes),
        *(f"ALTER TABLE {owner} ADD CONSTRAINT {name} {definition}" for owner, name, definition in constraints),
    ]
