"""PostgreSQL databases that are made again what they were before a test, in a tenth of the time of another copy."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql

from tests.servers import PostgresServer

USES_MAX: Final = 40
"""How often a database is restored: what was deleted stays in its files, and has to be read past."""
SCHEMA: Final = """
    SELECT array[
        (SELECT sum(xmin::text::bigint) FROM pg_attribute WHERE attrelid >= 16384),
        (SELECT sum(xmin::text::bigint) FROM pg_constraint WHERE oid >= 16384),
        (SELECT sum(xmin::text::bigint) FROM pg_index WHERE indexrelid >= 16384),
        (SELECT sum(xmin::text::bigint) FROM pg_trigger),
        (SELECT sum(xmin::text::bigint) FROM pg_proc WHERE oid >= 16384)
    ]
"""
"""A number that no change of columns, constraints, indexes, triggers and functions leaves as it was: which transactions
have written them. What has a smaller oid is PostgreSQL's own (access/transam.h: FirstNormalObjectId)."""
OTHERS: Final = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


@dataclass(frozen=True)
class Content:
    """What a database holds: its schema, the rows of each table as COPY writes them, and what empties it for these."""

    schema: list[int]
    rows: dict[str, bytes]
    emptying: str

    @classmethod
    def of(cls, url: str) -> "Content":
        """Read what is in a database."""
        with psycopg.connect(url, autocommit=True) as connection:
            tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
            sequences: Any = connection.execute("SELECT sequencename, last_value FROM pg_sequences").fetchall()
            rows = {table: _read(connection, table) for (table,) in tables}
            return cls(_schema(connection), rows, _emptying(connection, rows, sequences))

    def restore(self, url: str) -> bool:
        """Make a database hold this again. Whoever is connected to it is sent away.

        Returns False, and restores nothing, if its schema was changed.
        """
        with psycopg.connect(url) as connection:
            connection.execute(OTHERS)
            if _schema(connection) != self.schema:
                return False
            connection.execute(self.emptying)
            for table, rows in self.rows.items():
                if rows:
                    with connection.cursor().copy(sql.SQL("COPY {} FROM STDIN").format(sql.Identifier(table))) as copy:
                        copy.write(rows)
        return True


class DatabasePool:
    """Databases of one content. Each is used by one test at a time, and restored after it."""

    def __init__(self, server: PostgresServer, template: str, fill: Callable[[str], object] | None = None) -> None:
        """Copy them from `template`; `fill` is called with the URL of the first, and the others get what it wrote."""
        self._server = server
        self._template = template
        self._fill = fill
        self._content: Content | None = None
        self._restored: list[tuple[str, int]] = []

    @contextmanager
    def database(self) -> Iterator[str]:
        """Give the URL of a database, for the length of the block."""
        name, uses = self._restored.pop() if self._restored else (self._new(), 1)
        yield self._server.url(name)
        if uses < USES_MAX and self._content is not None and self._content.restore(self._server.url(name)):
            self._restored.append((name, uses + 1))
        else:
            self._server.drop_database(name)

    def _new(self) -> str:
        name = f"copy_{secrets.token_hex(8)}"
        self._server.create_database(name, template=self._template)
        url = self._server.url(name)
        if self._content is None:
            if self._fill is not None:
                self._fill(url)
            self._content = Content.of(url)
        elif self._fill is not None:
            self._content.restore(url)
        return name


def _schema(connection: psycopg.Connection[Any]) -> list[int]:
    found: list[int] = connection.execute(SCHEMA).fetchall()[0][0]
    return found


def _read(connection: psycopg.Connection[Any], table: str) -> bytes:
    with connection.cursor().copy(sql.SQL("COPY {} TO STDOUT").format(sql.Identifier(table))) as copy:
        return b"".join(copy)


def _emptying(
    connection: psycopg.Connection[Any], tables: dict[str, bytes], sequences: list[tuple[str, int | None]]
) -> str:
    """Return the statements that empty all tables and set all sequences back, to be sent at once.

    Neither triggers nor foreign keys are checked: what is restored was checked when it was written.
    """
    statements = [sql.SQL("SET session_replication_role = replica")]
    statements += [sql.SQL("DELETE FROM {}").format(sql.Identifier(table)) for table in tables]
    statements += [
        sql.SQL("SELECT setval({}, {}, {})").format(name, last_value or 1, last_value is not None)
        for name, last_value in sequences
    ]
    return sql.SQL(";").join(statements).as_string(connection)
