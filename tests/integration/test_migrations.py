"""The schema's history ends where the tables in the code are, on both databases."""

import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, select, text
from sqlalchemy.exc import OperationalError

from models.database import migrations
from models.database.engine import Database
from models.database.migrations import KNOWN, NEWEST, check_migrated, migrate
from models.database.schema import APPEND_ONLY, charges, decisions, metadata
from models.errors import DatabaseAheadError, DatabaseBehindError
from models.sends.leases import end_expired, lock_orphaned
from models.sends.unknown import unknown_keys
from tests.factories import balance, buy, save_people
from tests.fakes import NOON
from tests.servers import PostgresServer


def make_empty(request: pytest.FixtureRequest, tmp_path: Path, *, is_sqlite: bool) -> str:
    """Give the URL of a database without tables, gone after the test."""
    if is_sqlite:
        return f"sqlite:///{tmp_path / 'empty.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    name = f"empty_{secrets.token_hex(8)}"
    server.create_database(name)
    request.addfinalizer(lambda: server.drop_database(name))
    return server.url(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give the URL of a database without tables, once of either kind."""
    return make_empty(request, tmp_path, is_sqlite=request.param == "sqlite")


@pytest.fixture
def unmigrated(request: pytest.FixtureRequest, tmp_path: Path, database: Database) -> Iterator[Database]:
    """Give a database without tables, of the same kind as `database`."""
    unmigrated = Database(make_empty(request, tmp_path, is_sqlite=database.is_sqlite))
    yield unmigrated
    unmigrated.close()


def checks(connection: Connection) -> dict[str, dict[str, str]]:
    """Give the CHECK constraints of every table: alembic does not compare them."""
    inspector = inspect(connection)
    return {
        table: {str(check["name"]): check["sqltext"] for check in inspector.get_check_constraints(table)}
        for table in inspector.get_table_names()
        if table != "alembic_version"
    }


def test_the_migrated_schema_is_the_one_in_the_code(database: Database) -> None:
    with database.snapshot() as connection:
        options = {"compare_type": True, "compare_server_default": True}

        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


def test_the_migrated_schema_has_the_check_constraints_of_the_code(database: Database, unmigrated: Database) -> None:
    with unmigrated.engine.begin() as connection:
        metadata.create_all(connection)
        in_code = checks(connection)

    with database.snapshot() as connection:
        assert checks(connection) == in_code


def test_the_code_names_the_newest_migration() -> None:
    """It is written down, for Alembic takes long to import and every process asks for it when it starts."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))

    assert ScriptDirectory.from_config(config).get_heads() == [migrations.NEWEST]


def test_migrating_twice_changes_nothing(database: Database, database_url: str) -> None:
    save_people(database)
    buy(database, "john", email=3)

    migrate(database_url)

    check_migrated(database)
    assert balance(database, "john") == 3


def test_an_empty_database_gets_every_table(empty_url: str) -> None:
    migrate(empty_url)

    database = Database(empty_url)
    check_migrated(database)
    with database.snapshot() as connection:
        tables = set(inspect(connection).get_table_names())
    database.close()
    assert tables == {*metadata.tables, "alembic_version"}


BEFORE_LEASES = """
    INSERT INTO roles VALUES ('org', 'owner', true, true);
    INSERT INTO users VALUES ('john', 'org', 'John', 'john@x.test', 'owner', NULL, 'john', true, true, '2026-01-05');
    INSERT INTO accounts (id, owner_id, kind, available, seq) VALUES (1, 'john', 'email', 5, 6);
    INSERT INTO entries (account_id, seq, amount, balance_after, cause, at)
    VALUES (1, 1, 8, 8, 'purchase:o:email', '2026-01-05 11:00'), (1, 2, -1, 7, 'charge:held-1', '2026-01-05 12:00'),
           (1, 3, -1, 6, 'charge:held-2', '2026-01-05 12:00'), (1, 4, -1, 5, 'charge:parked', '2026-01-05 12:00'),
           (1, 5, -1, 4, 'charge:back', '2026-01-05 12:00'), (1, 6, 1, 5, 'refund:back', '2026-01-05 12:02');
    INSERT INTO charges (job_id, task, kind, sender, digest, account_id, credits, refunded, state, attempts,
                         lease_until, deaths, holder, handed_at, content, created_at, final_at)
    VALUES ('held-1', 'email.send', 'email', 'john', 'd', 1, 1, 0, 'sending', 1, '2026-01-05 12:05', 0, 'h', NULL, '{}',
            '2026-01-05 12:00', NULL),
           ('held-2', 'email.send', 'email', 'john', 'd', 1, 1, 0, 'sending', 1, '2026-01-05 12:05', 0, 'h', NULL, '{}',
            '2026-01-05 12:00', NULL),
           ('parked', 'email.send', 'email', 'john', 'd', 1, 1, 0, 'unknown', 1, NULL, 0, 'g', '2026-01-05 12:01', '{}',
            '2026-01-05 12:00', NULL),
           ('back', 'email.send', 'email', 'john', 'd', 1, 1, 1, 'failed', 1, NULL, 0, 'g', NULL, NULL,
            '2026-01-05 12:00', '2026-01-05 12:02');
    INSERT INTO decisions (id, job_id, decision, operator, at) VALUES (1, 'back', 'refund', 'mary', '2026-01-05 12:02')
"""
"""Charges as they were before leases had a table: held, unknown, and refunded by an operator."""


def test_charges_from_before_the_leases_table_are_migrated(empty_url: str) -> None:
    migrate(empty_url, "0002")
    database = Database(empty_url)
    with database.engine.begin() as connection:
        for statement in BEFORE_LEASES.split(";"):
            connection.exec_driver_sql(statement)

    migrate(empty_url)

    with database.engine.begin() as connection:
        [lease_id] = end_expired(connection, NOON + timedelta(minutes=5), 9)
        held = [charge.job_id for charge in lock_orphaned(connection, [lease_id])]
    with database.snapshot() as connection:
        unknown = [job_id for _, job_id in unknown_keys(connection)]
        refunded_at = connection.execute(
            select(charges.c.refunded_at).where(charges.c.refunded_at.is_not(None))
        ).scalar_one()
        decided = connection.execute(select(decisions.c.job_id)).scalar_one()
    database.close()
    assert (lease_id, held) == ((1, "h"), ["held-1", "held-2"])
    assert unknown == ["parked"]
    assert (refunded_at, decided) == (NOON + timedelta(minutes=2), "back")


def test_an_account_that_disagrees_with_its_entries_is_not_migrated(empty_url: str) -> None:
    """The error says which one, and the database is left as it was."""
    migrate(empty_url, "0002")
    database = Database(empty_url)
    with closing(database):
        with database.engine.begin() as connection:
            for statement in BEFORE_LEASES.split(";"):
                connection.exec_driver_sql(statement)
            connection.exec_driver_sql("UPDATE accounts SET available = 6")
        migrate(empty_url, "0005")

        with pytest.raises(RuntimeError, match=r"email account of john holds 6 after 6 entries.*leaves 5"):
            migrate(empty_url)

        with pytest.raises(DatabaseBehindError, match="0005"):
            check_migrated(database)


def test_several_threads_may_migrate_at_the_same_time(empty_url: str) -> None:
    faults: list[BaseException] = []

    def run() -> None:
        try:
            migrate(empty_url)
        except BaseException as fault:  # noqa: BLE001  shown by the assertion
            faults.append(fault)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert faults == []


@pytest.mark.timeout(30)
def test_a_read_only_sqlite_file_is_not_waited_for(tmp_path: Path) -> None:
    """Unlike a file that others have locked, it will not become writable."""
    file = tmp_path / "theirs.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE theirs (id int)")
    database = Database(f"sqlite:///file:{file}?mode=ro&uri=true")

    with closing(database), pytest.raises(OperationalError, match="readonly"), database.engine.begin():
        pass


def test_an_empty_database_is_behind_and_the_error_says_what_to_do(empty_url: str) -> None:
    database = Database(empty_url)
    try:
        with pytest.raises(DatabaseBehindError) as behind:
            check_migrated(database)
    finally:
        database.close()

    assert "is at migration none" in str(behind.value)
    assert "postage migrate" in str(behind.value)


@pytest.mark.parametrize("revision", ["9999", "0003b", "ae1027a6acf"])
def test_a_database_of_a_newer_release_is_refused_and_left_as_it_is(
    database: Database, database_url: str, revision: str
) -> None:
    """So that a worker does not start on it, and `postage migrate` says what to do."""
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})

    for step in (lambda: check_migrated(database), lambda: migrate(database_url)):
        with pytest.raises(DatabaseAheadError) as ahead:
            step()
        assert f"is at migration {revision}, and this code knows migrations up to {NEWEST}" in str(ahead.value)
        assert "upgrade it to the release" in str(ahead.value)
        assert "restore the backup" in str(ahead.value)
    with database.snapshot() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one() == revision


def test_migrations_are_numbered_without_a_gap() -> None:
    files = Path(migrations.__file__).parent.glob("versions/[0-9]*.py")

    assert {file.name[:4] for file in files} == KNOWN


def test_every_append_only_table_exists() -> None:
    assert set(APPEND_ONLY) <= set(metadata.tables)
