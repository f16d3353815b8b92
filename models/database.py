"""The database: how connections begin, and transactions that are run again as a whole after what passes."""

import functools
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

import structlog
import tenacity
from sqlalchemy import ColumnElement, Connection, Engine, Table, create_engine, event, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from tenacity.nap import sleep_using_event

POSTGRES_SESSION = " ".join(
    f"-c {setting}"
    for setting in (
        # A wait that long is a fault; it ends the transaction, which is then run again.
        "lock_timeout=15s",
        "statement_timeout=60s",
        "idle_in_transaction_session_timeout=60s",
        # Statements are planned once for a connection, often while the tables are small and reading all of them is
        # cheapest; the plan stays when they have grown.
        "enable_seqscan=off",
    )
)
"""How every connection begins."""
SQLITE_BUSY_S = 60.0
"""SQLite has one writer at a time; the others wait for it this long."""
PASSING = frozenset(
    {
        *("40001", "40P01", "55P03"),  # a race was lost: serialization failure, deadlock, lock not available
        *("57P01", "57P02", "57P03", "25006"),  # shut down, crashed, starting up, read-only because of a fail-over
        *("57014", "57P05", "25P03", "53300"),  # cancelled for taking too long, idle too long, too many connections
    }
)
"""SQLSTATEs after which the same transaction may succeed; so it may after all of class 08 (connection exceptions)."""

T = TypeVar("T")
log = structlog.get_logger(__name__)


class Database:
    """One database and its pool of connections. Safe for threads; make it after a fork, not before."""

    def __init__(self, url: str, pool_size: int = 10, wait_s: float = 300.0) -> None:
        self.wait_s = wait_s
        self.closing = threading.Event()
        parsed = make_url(url)
        # Parameters are data of customers and must not appear in the text of an exception.
        options: dict[str, Any] = {"pool_size": pool_size, "max_overflow": 0, "hide_parameters": True}
        if parsed.get_backend_name() == "sqlite":
            options["connect_args"] = {"timeout": SQLITE_BUSY_S, "check_same_thread": False}
        else:
            parsed = parsed.set(drivername="postgresql+psycopg")
            options["connect_args"] = {"options": POSTGRES_SESSION, "connect_timeout": 10}
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
        """Run `work` in a transaction that writes, and again as a whole when it lost a race or its connection.

        A connection that is lost during COMMIT leaves open whether the transaction happened: `work` must bear to be run
        again after it did. While the database cannot be reached this waits, for `wait_s` at most.
        """
        return self._patiently(functools.partial(self._once, self.engine, work))

    def look(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction that only reads and sees one state of things; patient like `transact`."""
        return self._patiently(functools.partial(self._once, self._reading, work))

    def _once(self, engine: Engine, work: Callable[[Connection], T]) -> T:
        with engine.begin() as connection:
            return work(connection)

    def _patiently(self, once: Callable[[], T]) -> T:
        patient = tenacity.Retrying(
            retry=tenacity.retry_if_exception(passes),
            wait=tenacity.wait_random_exponential(multiplier=0.02, max=5.0),
            stop=tenacity.stop_after_delay(self.wait_s) | tenacity.stop_when_event_set(self.closing),
            before_sleep=_say_waiting,
            sleep=sleep_using_event(self.closing),
            reraise=True,
        )
        result: T = patient(once)
        return result

    def close(self) -> None:
        """Close every connection, and let nobody wait for the database any more."""
        self.closing.set()
        self.engine.dispose()


def passes(error: BaseException) -> bool:
    """Whether the same transaction may succeed when it is run again: a race was lost, or the database was gone."""
    if isinstance(error, PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.Error):
        return _is_locked(error.orig)
    state = getattr(error.orig, "sqlstate", None)
    if state is None:  # no answer at all: refused, reset, timed out
        return isinstance(error, (OperationalError, InterfaceError))
    return state in PASSING or state.startswith("08")


def _is_locked(error: BaseException) -> bool:
    """Whether SQLite says that somebody else has the database."""
    return isinstance(error, sqlite3.Error) and "database is locked" in str(error)


def _say_waiting(state: tenacity.RetryCallState) -> None:
    if state.attempt_number in (6, 12) or state.attempt_number % 24 == 0:
        log.warning("the database does not answer, or many wait for it; trying on", attempts=state.attempt_number)


def search_by_index(connection: Connection) -> None:
    """Tell PostgreSQL's planner what it cannot know: that behind a mark there are few rows. Until the transaction ends.

    It has no statistics on what an entry's number exceeds its account's mark by. It guesses a third of all entries, and
    would read every one of them.
    """
    if connection.dialect.name != "postgresql":
        return
    for plan in ("seqscan", "hashjoin", "mergejoin"):
        connection.exec_driver_sql(f"SET LOCAL enable_{plan} = off")


def insert(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that knows ON CONFLICT, of the connection's dialect.

    Ask for RETURNING to learn what went in: `rowcount` says -1 here on both databases.
    """
    return insert_in(connection.dialect.name, table)


def insert_in(dialect: str, table: Table) -> postgresql.Insert | sqlite.Insert:
    """The same for a dialect by its name."""
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


def lock_past(
    connection: Connection,
    key: ColumnElement[T],
    at: ColumnElement[datetime],
    until: datetime,
    limit: int,
    *conditions: ColumnElement[bool],
) -> list[T]:
    """The keys of rows whose time has come by `until`, longest ago first, locked until the transaction ends.

    Not those that others lock: they are being seen to.
    """
    past = select(key).where(at <= until, *conditions).order_by(at).limit(limit).with_for_update(skip_locked=True)
    return list(connection.execute(past).scalars())


@tenacity.retry(
    retry=tenacity.retry_if_exception(_is_locked),
    wait=tenacity.wait_random(0.005, 0.02),
    stop=tenacity.stop_after_delay(SQLITE_BUSY_S),
    reraise=True,
)
def _use_wal(connection: sqlite3.Connection) -> None:
    """Keep a write-ahead log. SQLite does not wait for others here: who opens a new file at once is told of a lock."""
    connection.execute("PRAGMA journal_mode = WAL")


def _prepare_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401  a raw DBAPI connection
    # The driver must not begin transactions by itself: _begin_sqlite says which kind.
    connection.isolation_level = None
    _use_wal(connection)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA recursive_triggers = ON")  # else REPLACE would slip past the append-only triggers


def _begin_sqlite(connection: Connection) -> None:
    # A writer must take the lock at its first word: SQLite has no FOR UPDATE, and a reader that turns writer can
    # find that what it read is no longer true.
    reads = connection.get_execution_options().get("postage_reads")
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
