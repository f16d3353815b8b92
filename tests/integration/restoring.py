"""How a PostgreSQL database is made what it was before a test, in a tenth of the time of another copy."""

from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql

SCHEMA: Final = """
    SELECT array_agg(what ORDER BY what) FROM (
        SELECT attrelid::regclass || '.' || attname || ' ' || atttypid::regtype || ' ' || attnotnull AS what
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        WHERE relnamespace = 'public'::regnamespace AND attnum > 0
        UNION ALL SELECT conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace
        UNION ALL SELECT pg_get_indexdef(indexrelid) FROM pg_index
        WHERE indrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace)
        UNION ALL SELECT pg_get_triggerdef(oid) || ' ' || tgenabled::text FROM pg_trigger
    ) AS everything
"""
"""Columns, constraints, indexes and triggers, as text."""
OTHERS: Final = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


@dataclass(frozen=True)
class Content:
    """The schema of a database, the rows of each table as COPY writes them, and the last value of each sequence."""

    schema: list[str]
    rows: dict[str, bytes]
    sequences: list[tuple[str, int | None]]

    @classmethod
    def of(cls, url: str) -> "Content":
        """Read what is in a database."""
        with psycopg.connect(url, autocommit=True) as connection:
            tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
            sequences: Any = connection.execute("SELECT sequencename, last_value FROM pg_sequences").fetchall()
            return cls(_schema(connection), {table: _read(connection, table) for (table,) in tables}, sequences)

    def restore(self, url: str) -> bool:
        """Make a database hold this again. Whoever is connected to it is sent away.

        Returns False, and restores nothing, if its schema was changed.
        """
        with psycopg.connect(url) as connection:
            connection.execute(OTHERS)
            if _schema(connection) != self.schema:
                return False
            # Neither triggers nor foreign keys are checked: what is restored was checked when it was written.
            connection.execute("SET session_replication_role = replica")
            for table in self.rows:
                connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)))
            for table, rows in self.rows.items():
                if rows:
                    with connection.cursor().copy(sql.SQL("COPY {} FROM STDIN").format(sql.Identifier(table))) as copy:
                        copy.write(rows)
            for name, last_value in self.sequences:
                connection.execute("SELECT setval(%s, %s, %s)", (name, last_value or 1, last_value is not None))
        return True


def _schema(connection: psycopg.Connection[Any]) -> list[str]:
    found: list[str] = connection.execute(SCHEMA).fetchall()[0][0]
    return found


def _read(connection: psycopg.Connection[Any], table: str) -> bytes:
    with connection.cursor().copy(sql.SQL("COPY {} TO STDOUT").format(sql.Identifier(table))) as copy:
        return b"".join(copy)
