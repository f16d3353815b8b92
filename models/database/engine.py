"""Connections and transactions. A transaction that failed for a passing reason is run again as a whole.

A statement that takes too long is not run again: it would take as long, and load a busy database once more.

The time of a transaction that writes is told by the database, in the answer to its BEGIN (decision 0027).
"""

import functools
import hashlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

import structlog
import tenacity
from sqlalchemy import Connection, Engine, ExceptionContext, create_engine, event, func, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from tenacity.nap import sleep_using_event

POSTGRES_SESSION = " ".join(
    f"-c {setting}"
    for setting in (
        # A wait that long is a fault. It ends the transaction, which is then run again.
        "lock_timeout=15s",
        "statement_timeout=60s",
        "idle_in_transaction_session_timeout=60s",
        # A connection plans a statement once, often while tables are small and reading all of them is cheapest. It
        # would keep that plan after they have grown.
        "enable_seqscan=off",
    )
)
"""The settings with which every PostgreSQL connection begins."""
SQLITE_BUSY_S = 60.0
"""How long a writer waits for the one other writer that SQLite allows, in seconds."""
TRANSIENT_SQLSTATES = frozenset(
    {
        *("40001", "40P01", "55P03"),  # serialization failure, deadlock, lock not available
        *("57P01", "57P02", "57P03"),  # shut down, crashed, starting up
        *("57P05", "25P03"),  # the connection was idle for too long, as when this process stood still: a new one is not
        "53300",  # too many connections, of which somebody closes one
    }
)
"""SQLSTATEs after which the same transaction may succeed; so it may after all of class 08 (connection exceptions)."""
READ_ONLY = "25006"
"""The SQLSTATE of a write to a standby. It is transient during a fail-over, but on a new connection only."""
CANCELED, TIMED_OUT = "57014", "25P04"
"""SQLSTATEs of statements that PostgreSQL has canceled, and of transactions that took longer than a
`transaction_timeout` (since PostgreSQL 17) that somebody set for our role."""
BY_A_PERSON = "due to user request"
"""What PostgreSQL says of a statement that a person canceled, and not a timeout. Nothing else tells them apart. Servers
that speak another language than English say it differently; there it counts as a timeout."""

_TIME = "transaction_time"
"""Under which a connection holds when its transaction began."""

T = TypeVar("T")
log = structlog.get_logger(__name__)


class Database:
    """One database and its connection pool. Safe for threads; make it after a fork, not before.

    `wait_s` is how long a transaction waits for a database that cannot be reached, in seconds. Setting `closing` ends
    every such wait.
    """

    def __init__(self, url: str, pool_size: int = 10, wait_s: float = 300.0) -> None:
        self.wait_s = wait_s
        self.closing = threading.Event()
        parsed = make_url(url)
        # Parameters are customers' data and must not appear in the text of an exception.
        options: dict[str, Any] = {"pool_size": pool_size, "max_overflow": 0, "hide_parameters": True}
        if parsed.get_backend_name() == "sqlite":
            options["connect_args"] = {"timeout": SQLITE_BUSY_S, "check_same_thread": False}
        else:
            parsed = parsed.set(drivername="postgresql+psycopg")
            # Without an encoding, text of a database in SQL_ASCII would come as bytes, before that can be refused.
            options["connect_args"] = {"options": POSTGRES_SESSION, "connect_timeout": 10, "client_encoding": "utf8"}
            options["isolation_level"] = "AUTOCOMMIT"  # the driver must not begin transactions: _begin_postgres does
        self.engine: Engine = create_engine(parsed, **options)
        isolated = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        read_only = {} if self.is_sqlite else {"postgresql_readonly": True}
        self._isolated = self.engine.execution_options(**isolated)
        self._snapshots = self._isolated.execution_options(postage_reads=True, **read_only)
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        else:
            event.listen(self.engine, "handle_error", _leave_standby)
            event.listen(self.engine, "begin", _begin_postgres)

    @property
    def is_sqlite(self) -> bool:
        """Whether this is SQLite, the embedded database."""
        return self.engine.dialect.name == "sqlite"

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction that writes, and again as a whole after a lost race or a lost connection.

        A connection lost during COMMIT leaves open whether the transaction happened, so `work` must be safe to run
        again after it did.
        """
        return self._retrying(functools.partial(_run_once, self.engine, work))

    def write_isolated(self, work: Callable[[Connection], T]) -> T:
        """Run `work` like `write`, in a transaction that sees one state of the data."""
        return self._retrying(functools.partial(_run_once, self._isolated, work))

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction that only reads and sees one state of the data; retried like `write`."""
        return self._retrying(functools.partial(_run_once, self._snapshots, work))

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Give a transaction that only reads and sees one state of the data, without retries."""
        with self._snapshots.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def rehearsal(self) -> Iterator["Rehearsal"]:
        """Give a database to which everything can be written, and which forgets it all at the end of the block."""
        with self.engine.connect() as connection, connection.begin() as transaction:
            yield Rehearsal(connection)
            transaction.rollback()

    def _retrying(self, run: Callable[[], T]) -> T:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_transient),
            wait=tenacity.wait_random_exponential(multiplier=0.02, max=5.0),
            stop=tenacity.stop_after_delay(self.wait_s) | tenacity.stop_when_event_set(self.closing),
            before_sleep=_log_retry,
            sleep=sleep_using_event(self.closing),
            reraise=True,
        )
        result: T = retrying(run)
        return result

    def close(self) -> None:
        """Close every connection, and end every wait for the database."""
        self.closing.set()
        self.engine.dispose()


class Rehearsal(Database):
    """A database whose transactions are steps of one transaction, which is rolled back. It belongs to one thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` once. What it has written is undone if it raises."""
        with self._connection.begin_nested():
            return work(self._connection)

    write_isolated = read = write


def _run_once(engine: Engine, work: Callable[[Connection], T]) -> T:
    with engine.begin() as connection:
        return work(connection)


def utc_now() -> datetime:
    """Return the time by the clock of this machine."""
    return datetime.now(UTC)  # noqa: TID251  the one place: SQLite has no other clock


def transaction_time(connection: Connection) -> datetime:
    """Return when the transaction began, by the clock of the database: PostgreSQL's, or for SQLite this machine's.

    It stays the same until the transaction ends. Transactions that write know it without another round trip.
    """
    began_at: datetime | None = connection.info.get(_TIME)
    if began_at is None:
        began_at = connection.execute(select(func.now())).scalar_one()
    return began_at.astimezone(UTC)


def is_transient(error: BaseException) -> bool:
    """Whether the same transaction may succeed when run again: it lost a race, or the database could not be reached."""
    if isinstance(error, PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.Error):
        return _is_locked(error.orig)
    state = _sqlstate(error)
    if state is None:  # no answer at all: refused, reset, timed out
        return isinstance(error, (OperationalError, InterfaceError))
    if state == CANCELED:
        return not is_too_slow(error)
    return state in TRANSIENT_SQLSTATES or state == READ_ONLY or state.startswith("08")


def is_too_slow(error: BaseException) -> bool:
    """Whether the database ended a statement because it took too long, so that the next try would end like it."""
    if not isinstance(error, DBAPIError):
        return False
    state = _sqlstate(error)
    return state == TIMED_OUT or (state == CANCELED and BY_A_PERSON not in str(error.orig))


def _sqlstate(error: DBAPIError) -> str | None:
    state: str | None = getattr(error.orig, "sqlstate", None)
    return state


def _leave_standby(context: ExceptionContext) -> None:
    """Drop the pooled connections to a server that takes no writes: the next ones may lead to the new primary."""
    if getattr(context.original_exception, "sqlstate", None) == READ_ONLY:
        context.is_disconnect = True


def _is_locked(error: BaseException) -> bool:
    """Whether SQLite says that another connection has locked the database."""
    return isinstance(error, sqlite3.Error) and "database is locked" in str(error)


def _log_retry(state: tenacity.RetryCallState) -> None:
    if state.attempt_number in (6, 12) or state.attempt_number % 24 == 0:
        log.warning("database unavailable or overloaded; retrying", attempts=state.attempt_number)


@tenacity.retry(
    retry=tenacity.retry_if_exception(_is_locked),
    wait=tenacity.wait_random(0.005, 0.02),
    stop=tenacity.stop_after_delay(SQLITE_BUSY_S),
    reraise=True,
)
def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to a write-ahead log.

    SQLite's own timeout does not cover this, so processes that open a new file at the same time wait here.
    """
    connection.execute("PRAGMA journal_mode = WAL")


def _prepare_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401  a raw DBAPI connection
    # The driver must not begin transactions by itself: _begin_sqlite says which kind.
    connection.isolation_level = None
    _use_wal(connection)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")  # what is erased is overwritten; some builds leave it in the file
    connection.execute("PRAGMA recursive_triggers = ON")  # else REPLACE would bypass the append-only triggers
    connection.create_function("sha256_hex", 1, _sha256_hex, deterministic=True)
    connection.create_aggregate("lines_digest", 1, _LinesDigest)


class _LinesDigest:
    """The aggregate `lines_digest` (statements.py) of SQLite."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def step(self, line: str) -> None:
        self._lines.append(line)

    def finalize(self) -> str | None:
        return _sha256_hex("\n".join(sorted(self._lines))) if self._lines else None


def _sha256_hex(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _begin_sqlite(connection: Connection) -> None:
    # SQLite has no FOR UPDATE. A writer must take the lock at its first statement, because what a reader has read may
    # no longer be true by the time it becomes a writer.
    reads = connection.get_execution_options().get("postage_reads")
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
    connection.info[_TIME] = utc_now()


def _begin_postgres(connection: Connection) -> None:
    # The driver begins what sees one state of the data, because no statement may come before such a BEGIN. For all else
    # it would spend a round trip on BEGIN alone. PostgreSQL makes one transaction of both statements.
    driver: Any = connection.connection.driver_connection
    connection.info[_TIME] = _tell_time_and_begin(connection) if driver.autocommit else None


def _tell_time_and_begin(connection: Connection) -> datetime:
    # Without parameters the driver sends both in one message.
    told = connection.exec_driver_sql("SELECT now(); BEGIN", execution_options={"no_parameters": True})
    time: datetime = told.scalar_one()
    return time
