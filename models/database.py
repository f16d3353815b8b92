"""The database: how connections begin, and transactions that are run again as a whole when they only lost a race."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import tenacity
from sqlalchemy import Connection, Engine, Table, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

POSTGRES_SESSION = "-c lock_timeout=15s -c statement_timeout=60s -c idle_in_transaction_session_timeout=60s"
"""A wait that long is a fault; it ends the transaction, which is then run again."""
SQLITE_BUSY_S = 60.0
"""SQLite has one writer at a time; the others wait for it this long."""
LOST_RACES = frozenset({"40001", "40P01", "55P03"})
"""SQLSTATEs after which the same transaction may succeed: serialization failure, deadlock, lock not available."""

T = TypeVar("T")


class Database:
    """One database and its pool of connections. Safe for threads; make it after a fork, not before."""

    def __init__(self, url: str, pool_size: int = 10) -> None:
        parsed = make_url(url)
        # Parameters are data of customers and must not appear in the text of an exception.
        options: dict[str, Any] = {"pool_size": pool_size, "max_overflow": 0, "hide_parameters": True}
        if parsed.get_backend_name() == "sqlite":
            options["connect_args"] = {"timeout": SQLITE_BUSY_S, "check_same_thread": False}
        else:
            parsed = parsed.set(drivername="postgresql+psycopg")
            options["connect_args"] = {"options": POSTGRES_SESSION, "connect_timeout": 10}
            options["pool_pre_ping"] = True
        self.engine: Engine = create_engine(parsed, **options)
        # Everything that is read together is of one moment.
        snapshot = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self._reading = self.engine.execution_options(postage_reads=True, **snapshot)
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)

    @property
    def is_sqlite(self) -> bool:
        """Whether this is the embedded kind of database."""
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """One transaction that writes: committed at the end, rolled back by any exception."""
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One transaction that only reads, and sees one state of things."""
        with self._reading.connect() as connection, connection.begin():
            yield connection

    def transact(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction that writes, and again as a whole when it lost a race for a lock."""
        return self._again(functools.partial(self._once, work))

    def _once(self, work: Callable[[Connection], T]) -> T:
        with self.begin() as connection:
            return work(connection)

    def _again(self, once: Callable[[], T]) -> T:
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(lost_a_race),
            wait=tenacity.wait_random_exponential(multiplier=0.02, max=1.0),
            stop=tenacity.stop_after_attempt(12),
            reraise=True,
        )(once)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def lost_a_race(error: BaseException) -> bool:
    """Whether the same transaction, run again, may succeed: nothing of it was written."""
    if not isinstance(error, DBAPIError):
        return False
    return getattr(error.orig, "sqlstate", None) in LOST_RACES or "database is locked" in str(error.orig)


def insert(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that knows ON CONFLICT, of the connection's dialect.

    Ask for RETURNING to learn what went in: `rowcount` says -1 here on both databases.
    """
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def _prepare_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401  a raw DBAPI connection
    # The driver must not begin transactions by itself: _begin_sqlite says which kind.
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA recursive_triggers = ON")  # else REPLACE would slip past the append-only triggers


def _begin_sqlite(connection: Connection) -> None:
    # A writer must take the lock at its first word: SQLite has no FOR UPDATE, and a reader that turns writer can
    # find that what it read is no longer true.
    reads = connection.get_execution_options().get("postage_reads")
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
