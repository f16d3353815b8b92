"""Transient faults of a real PostgreSQL: the whole transaction is run again, and its work is done once."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import psycopg
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from models.database.engine import Database, is_too_slow

DONE_S = 60


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    with closing(Database(postgres_url, pool_size=4, wait_s=DONE_S)) as database:
        with database.engine.begin() as connection:
            connection.execute(text("CREATE TABLE counters (id int PRIMARY KEY, value int NOT NULL)"))
            connection.execute(text("INSERT INTO counters VALUES (1, 0), (2, 0)"))
        yield database


@contextmanager
def administrator(url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def add(connection: Connection, counter: int) -> None:
    connection.execute(text("UPDATE counters SET value = value + 1 WHERE id = :id"), {"id": counter})


def counted(database: Database) -> list[int]:
    return database.read(
        lambda connection: list(connection.execute(text("SELECT value FROM counters ORDER BY id")).scalars())
    )


def test_both_transactions_of_a_deadlock_happen_once(database: Database) -> None:
    """PostgreSQL aborts one of them (40P01), and it is run again as a whole."""
    both_hold_one = threading.Barrier(2)
    tries: list[int] = []

    def move(first: int, second: int) -> None:
        met = False

        def work(connection: Connection) -> None:
            nonlocal met
            tries.append(first)
            connection.exec_driver_sql("SET LOCAL deadlock_timeout = '50ms'")
            add(connection, first)
            if not met:
                met = True
                both_hold_one.wait(DONE_S)
            add(connection, second)

        database.write(work)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(move, (1, 2), (2, 1)))

    assert counted(database) == [2, 2]
    assert len(tries) >= 3


def test_a_serialization_failure_is_run_again(database: Database) -> None:
    """40001: another transaction changed what was read; the next try sees the change."""
    seen: list[int] = []

    def work(connection: Connection) -> None:
        seen.append(connection.execute(text("SELECT value FROM counters WHERE id = 1")).scalar_one())
        if len(seen) == 1:
            with database.engine.begin() as other:
                add(other, 1)
        add(connection, 1)

    database.write_isolated(work)

    assert seen == [0, 1]
    assert counted(database) == [2, 0]


def test_a_connection_that_is_cut_is_replaced_and_nothing_is_half_done(database: Database, postgres_url: str) -> None:
    """As by a server that shuts down (57P01)."""
    tries = 0

    def work(connection: Connection) -> None:
        nonlocal tries
        tries += 1
        add(connection, 1)
        if tries == 1:
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            with administrator(postgres_url) as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        add(connection, 2)

    database.write(work)

    assert (tries, counted(database)) == (2, [1, 1])


def test_a_standby_that_is_not_yet_promoted_is_waited_for(database: Database) -> None:
    """It takes no writes until the fail-over is done (25006)."""
    tries = 0

    def work(connection: Connection) -> None:
        nonlocal tries
        tries += 1
        if tries <= 2:
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")
        add(connection, 1)

    database.write(work)

    assert (tries, counted(database)) == (3, [1, 0])


@contextmanager
def read_only_sessions(url: str) -> Iterator[None]:
    """Let sessions that begin within the block take no writes, as those of a standby."""
    name = url.rpartition("/")[2]
    with administrator(url) as other:
        other.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        yield
        other.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')


def test_a_standby_is_left_for_the_new_primary(database: Database, postgres_url: str) -> None:
    """A pooled connection would lead to the standby for ever."""
    with closing(Database(postgres_url, pool_size=4, wait_s=DONE_S)) as connected_before:
        with read_only_sessions(postgres_url):
            assert counted(connected_before) == [0, 0]
        connected_before.write(lambda connection: add(connection, 1))

    assert counted(database) == [1, 0]


@pytest.mark.usefixtures("database")
def test_a_connection_says_only_of_snapshots_whether_they_write(postgres_url: str) -> None:
    """A standby refuses READ WRITE, which SQLAlchemy says after a snapshot, with an error that is not transient."""
    with read_only_sessions(postgres_url), closing(Database(postgres_url, pool_size=1, wait_s=0)) as on_standby:
        assert counted(on_standby) == [0, 0]
        with pytest.raises(DBAPIError) as refused:
            on_standby.write(lambda connection: add(connection, 1))

    assert isinstance(refused.value.orig, psycopg.errors.ReadOnlySqlTransaction)


def test_a_server_with_no_connection_left_is_waited_for(postgres_url: str, database: Database) -> None:
    """53300: somebody else has the last one, and closes it after a while."""
    with administrator(postgres_url) as other:
        other.execute("DROP ROLE IF EXISTS crowded")
        other.execute("CREATE ROLE crowded LOGIN CONNECTION LIMIT 1")
        other.execute("GRANT ALL ON counters TO crowded")
        url = postgres_url.replace("postgres@", "crowded@")
        last = psycopg.connect(url)
        timer = threading.Timer(0.3, last.close)
        with closing(Database(url, pool_size=1, wait_s=DONE_S)) as crowded:
            with pytest.raises(psycopg.OperationalError, match="too many connections"):
                psycopg.connect(url)
            timer.start()
            crowded.write(lambda connection: add(connection, 1))
        timer.join()
        other.execute("DROP OWNED BY crowded")
        other.execute("DROP ROLE crowded")

    assert counted(database) == [1, 0]


@pytest.mark.parametrize("use", ["write", "read"])
def test_a_statement_that_takes_too_long_is_not_run_again(database: Database, use: str) -> None:
    """57014: it would take as long, and the database has enough to do."""
    tries = 0

    def work(connection: Connection) -> None:
        nonlocal tries
        tries += 1
        connection.exec_driver_sql("SET LOCAL statement_timeout = '50ms'")
        connection.exec_driver_sql("SELECT pg_sleep(10)")

    with pytest.raises(DBAPIError, match="statement timeout") as slow:
        getattr(database, use)(work)

    assert is_too_slow(slow.value)
    assert tries == 1


@pytest.mark.parametrize("use", ["write", "read"])
def test_a_transaction_that_takes_longer_than_its_role_may_is_not_run_again(database: Database, use: str) -> None:
    """25P04, which PostgreSQL 17 and later say."""
    tries = 0

    def work(connection: Connection) -> None:
        nonlocal tries
        tries += 1
        connection.exec_driver_sql("SET LOCAL transaction_timeout = '50ms'")
        connection.exec_driver_sql("SELECT pg_sleep(10)")

    with pytest.raises(DBAPIError, match="transaction timeout") as slow:
        getattr(database, use)(work)

    assert is_too_slow(slow.value)
    assert tries == 1


def test_a_statement_that_an_administrator_canceled_is_run_again(database: Database, postgres_url: str) -> None:
    """57014 as well, but the next one may end in time."""
    tries = 0

    def work(connection: Connection) -> None:
        nonlocal tries
        tries += 1
        add(connection, 1)
        if tries == 1:
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            with administrator(postgres_url) as other:
                timer = threading.Timer(0.1, other.execute, ["SELECT pg_cancel_backend(%s)", [pid]])
                timer.start()
                try:
                    connection.exec_driver_sql("SELECT pg_sleep(10)")
                finally:
                    timer.join()

    database.write(work)

    assert (tries, counted(database)) == (2, [1, 0])


def test_a_lock_that_is_not_given_in_time_is_waited_for(database: Database, postgres_url: str) -> None:
    """55P03, and not 57014: whoever holds it will end."""
    tries = 0
    with psycopg.connect(postgres_url) as other:
        other.execute("UPDATE counters SET value = value + 1 WHERE id = 1")

        def work(connection: Connection) -> None:
            nonlocal tries
            tries += 1
            if tries == 2:
                other.commit()
            connection.exec_driver_sql("SET LOCAL lock_timeout = '50ms'")
            add(connection, 1)

        database.write(work)

    assert (tries, counted(database)) == (2, [2, 0])


def test_a_process_that_stood_still_goes_on_with_a_new_connection(database: Database) -> None:
    """25P03: its transaction was idle for too long, as after SIGSTOP."""
    tries = 0

    def work(connection: Connection) -> None:
        nonlocal tries
        tries += 1
        add(connection, 1)
        if tries == 1:
            connection.exec_driver_sql("SET idle_in_transaction_session_timeout = '50ms'")
            time.sleep(0.3)
        add(connection, 2)

    database.write(work)

    assert (tries, counted(database)) == (2, [1, 1])


def test_a_pooled_connection_that_idled_for_too_long_is_replaced(database: Database) -> None:
    """57P05, if somebody set an `idle_session_timeout`."""
    database.write(lambda connection: connection.exec_driver_sql("SET idle_session_timeout = '50ms'"))
    time.sleep(0.3)
    database.write(lambda connection: add(connection, 1))

    assert counted(database) == [1, 0]


def test_a_pool_without_a_free_connection_is_waited_for(database: Database) -> None:
    database.engine.pool._timeout = 0.05  # type: ignore[attr-defined]
    held = [database.engine.connect() for _ in range(4)]
    timer = threading.Timer(0.3, held[0].close)
    timer.start()

    database.write(lambda connection: add(connection, 1))

    timer.join()
    for connection in held:
        connection.close()
    assert counted(database) == [1, 0]


def test_a_transaction_that_would_fail_again_is_not_run_again(database: Database) -> None:
    """A bug is loud at once."""
    tries = 0

    def work(connection: Connection) -> None:
        nonlocal tries
        tries += 1
        connection.execute(text("INSERT INTO counters VALUES (1, 0)"))

    with pytest.raises(DBAPIError):
        database.write(work)

    assert tries == 1


def test_a_transaction_is_retried_only_so_long(postgres_url: str, database: Database) -> None:
    """Then the fault itself is raised, and nothing is half done."""

    def work(connection: Connection) -> None:
        add(connection, 1)
        connection.exec_driver_sql("SET LOCAL lock_timeout = '10ms'")
        add(connection, 2)

    with (
        administrator(postgres_url) as other,
        other.transaction(),
        closing(Database(postgres_url, pool_size=1, wait_s=0.3)) as impatient,
    ):
        other.execute("SELECT FROM counters WHERE id = 2 FOR UPDATE")
        with pytest.raises(DBAPIError, match="lock timeout"):
            impatient.write(work)

    assert counted(database) == [0, 0]
