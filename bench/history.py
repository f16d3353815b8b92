"""A long history in a database of Postage: charges that were sent in batches, and their entries, by plain SQL.

Rows are like one that Postage made itself (`SAMPLE`): what is not named here is as it is there, so that a new column
needs no change. They go in oldest first, as they would have come. Indexes are built when nearly all are there, which
takes a tenth of the time; the newest come in through the indexes, which leaves those as in a database at work.

Entries are counted and hashed once all charges are there, account by account, as `money/chain.py` says.
"""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import namedtuple_row

from bench.workers import SideError
from models.money.chain import entry_hash

SAMPLE: Final = "bench-sample"
DAYS: Final = 90
CHUNK: Final = 1_000_000
NEWEST: Final = 30
"""Of so many rows the newest comes in through the indexes: enough to meet nearly every page of theirs."""
BATCH: Final = 100
"""Charges of one account that are paid by one entry."""
HOT_SENDERS: Final = 20
OTHERS: Final = 1_000

# Every second batch is of one pool; the others go round a thousand owners.
NUMBERED: Final = f"""
    SELECT g, batch, account.id AS account_id, sender, member.owner_version,
           md5(%(salt)s || g)::uuid::text AS job_id,
           md5('d' || g) || md5('e' || g) AS digest,
           md5(%(salt)s || 'batch' || batch) AS charged_by,
           %(oldest)s::timestamptz + (batch::float8 * {BATCH} / %(rows)s) * interval '{DAYS} days' AS at
    FROM (
        SELECT g, batch, CASE WHEN batch %% 2 = 0 THEN 'user-' || g %% {HOT_SENDERS}
                              ELSE 'owner-' || (batch / 2) %% {OTHERS} END AS sender
        FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS g,
             LATERAL (SELECT (g - 1) / {BATCH} AS batch) AS counted_in
    ) AS counted
    JOIN users AS member ON member.id = sender
    JOIN accounts AS account ON account.org_id = member.org_id AND account.owner_id = member.credit_owner_id
                            AND account.kind = 'email'
    ORDER BY g
"""
COLUMNS: Final = {
    "job_id": "made.job_id",
    "sender": "made.sender",
    "owner_version": "made.owner_version",
    "account_id": "made.account_id",
    "digest": "made.digest",
    "charged_by": "made.charged_by",
    "lease_id": "made.charged_by",
    "carrier_reference": "'250 2.0.0 Ok: queued as ' || upper(left(md5('r' || g), 11))",
    "created_at": "made.at",
    "final_at": "made.at + interval '50 milliseconds'",
}
# What each batch paid for, with the digest that chain.content_of gives.
PAID: Final = f"""
    SELECT sample.org_id, made.account_id, made.charged_by AS cause_id, made.at,
           -sum(sample.credits)::bigint AS amount,
           encode(sha256(convert_to(string_agg(line, E'\\n' ORDER BY line COLLATE "C"), 'UTF8')), 'hex') AS content
    FROM ({NUMBERED}) AS made, sample_of_charges AS sample,
         LATERAL (SELECT concat_ws(' ', made.job_id, made.digest, made.sender, sample.credits) AS line) AS paid
    GROUP BY sample.org_id, made.batch, made.account_id, made.charged_by, made.at
    ORDER BY made.batch
"""
ENTRY: Final = ("org_id", "account_id", "seq", "amount", "balance_after", "debt_after", "cause_kind", "cause_id", "at",
                "content", "hash")  # fmt: skip
BALANCES: Final = """
    UPDATE accounts SET seq = newest.seq, available = newest.balance_after, hash = newest.hash
    FROM (SELECT DISTINCT ON (org_id, account_id) * FROM entries ORDER BY org_id, account_id, seq DESC) AS newest
    WHERE accounts.org_id = newest.org_id AND accounts.id = newest.account_id
"""


def fill(url: str, rows: int, *, say: Callable[[str], None]) -> None:
    """Add `rows` charges of the past days, with their entries and balances.

    Raises
    ------
    SideError
        If there is no message to make them like.

    """
    began = time.monotonic()
    given = {"rows": rows, "oldest": datetime.now(UTC) - timedelta(days=DAYS), "salt": f"bench-{rows}-"}
    newest = rows // NEWEST
    with _connected(url) as connection:
        _take_sample(connection)
        for numbers, indexed in ((range(1, rows - newest + 1), False), (range(rows - newest + 1, rows + 1), True)):
            for done in _fill_charges(connection, given, numbers, indexed=indexed):
                say(f"history: {done} after {time.monotonic() - began:.0f} s …")
            if not indexed:
                connection.execute("VACUUM (ANALYZE)")
                connection.execute("CHECKPOINT")
        for done in _fill_entries(connection, given):
            say(f"history: {done} after {time.monotonic() - began:.0f} s …")
        connection.execute("VACUUM (ANALYZE) entries")
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


def _take_sample(connection: psycopg.Connection[Any]) -> None:
    """Keep the message that all charges are made like."""
    ours = connection.execute(
        "CREATE TEMPORARY TABLE sample_of_charges AS"
        f" SELECT * FROM charges WHERE job_id = '{SAMPLE}' AND state = 'sent'"
    )
    if ours.rowcount != 1:
        msg = f"{SAMPLE}, which the history is made like, is not among the charges, or was not sent"
        raise SideError(msg)


def _fill_charges(
    connection: psycopg.Connection[Any], given: dict[str, Any], numbers: range, *, indexed: bool
) -> Iterator[str]:
    """Add charges, `indexed` one by one or all at the end; says what is done."""
    later = [] if indexed else _take_indexes_away(connection, "charges")
    insert = _insert_charges(connection)
    for first in numbers[::CHUNK]:
        last = min(first + CHUNK - 1, numbers[-1])
        connection.execute(insert, {**given, "first": first, "last": last})
        yield f"{last:,} of {given['rows']:,} charges"
    for number, statement in enumerate(later, 1):
        connection.execute(statement)  # type: ignore[arg-type]
        yield f"{number} of {len(later)} indexes and constraints"


def _insert_charges(connection: psycopg.Connection[Any]) -> sql.Composed:
    """Make an INSERT of numbered charges: of each column what `COLUMNS` says, or else what the sample has."""
    found = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'charges'::regclass AND attnum > 0 AND NOT attisdropped"
        " AND attgenerated = '' ORDER BY attnum"
    )
    names = [name for (name,) in found]
    values = [
        sql.SQL(COLUMNS[name]) if name in COLUMNS else sql.SQL("sample.{}").format(sql.Identifier(name))  # type: ignore[arg-type]
        for name in names
    ]
    return sql.SQL(
        "INSERT INTO charges ({names}) SELECT {values} FROM ({numbered}) AS made, sample_of_charges AS sample"
    ).format(
        names=sql.SQL(", ").join(map(sql.Identifier, names)),
        values=sql.SQL(", ").join(values),
        numbered=sql.SQL(NUMBERED),
    )


def _fill_entries(connection: psycopg.Connection[Any], given: dict[str, Any]) -> Iterator[str]:
    """Add an entry for each batch, and bring the balances to the last ones; says what is done.

    The hash of an entry begins with that of the one before, so it is computed here, one by one.
    """
    connection.row_factory = namedtuple_row
    found = connection.execute("SELECT org_id, id, seq, available, debt, hash FROM accounts").fetchall()
    last = {(row.org_id, row.id): row[2:] for row in found}
    for first in range(1, given["rows"] + 1, CHUNK):
        upto = min(first + CHUNK - 1, given["rows"])
        batches = connection.execute(PAID, {**given, "first": first, "last": upto}).fetchall()
        with connection.cursor().copy(f"COPY entries ({', '.join(ENTRY)}) FROM STDIN") as copy:
            for paid in batches:
                seq, available, debt, before = last[paid.org_id, paid.account_id]
                entry = {**paid._asdict(), "seq": seq + 1, "balance_after": available + paid.amount,
                         "debt_after": debt, "cause_kind": "charge"}  # fmt: skip
                entry["hash"] = entry_hash(before, **entry)
                copy.write_row([entry[name] for name in ENTRY])
                last[paid.org_id, paid.account_id] = entry["seq"], entry["balance_after"], debt, entry["hash"]
        yield f"entries of {upto:,} charges"
    connection.execute(BALANCES)


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
