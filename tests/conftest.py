"""What tests share: real servers, started once a test process, and a fresh migrated database for each test."""

import gc
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import structlog

from tests.compiled import statements_compiled_once
from tests.restoring import DatabasePool
from tests.servers import PostgresServer, ValkeyServer

if TYPE_CHECKING:
    from models.database.engine import Database

hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.load_profile("default")

TEMPLATE = "template_migrated"


def pytest_collection_finish() -> None:
    """Let the garbage collector leave alone what was imported and collected: it stays until the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _statements_compiled_once() -> Iterator[None]:
    """Compile each statement once in this process."""
    with statements_compiled_once():
        yield


@pytest.fixture(scope="session", autouse=True)
def _loggers_not_kept() -> Iterator[None]:
    """Keep no logger as it was when it was first used: what a command sets up would hide its lines from later tests."""
    configure = structlog.configure

    def configure_without_keeping(*args: Any, **options: Any) -> None:
        configure(*args, **{**options, "cache_logger_on_first_use": False})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structlog, "configure", configure_without_keeping)
        yield


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """Give a PostgreSQL that does not wait for the disk."""
    with PostgresServer(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """Give a Valkey on TCP that keeps nothing on disk."""
    with ValkeyServer(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def valkey_url(valkey: ValkeyServer) -> str:
    """Give the URL of an empty Valkey."""
    valkey.flush()
    return valkey.url()


@pytest.fixture(scope="session")
def migrated_postgres(postgres: PostgresServer) -> PostgresServer:
    """Give the PostgreSQL with a migrated database to copy."""
    from models.database.migrations import migrate  # noqa: PLC0415  only tests with a database need it

    postgres.create_database(TEMPLATE)
    migrate(postgres.url(TEMPLATE))
    return postgres


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a migrated SQLite file to copy."""
    from models.database.migrations import migrate  # noqa: PLC0415  only tests with a database need it

    file = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    migrate(f"sqlite:///{file}")
    gather(file)
    return file


def gather(file: Path) -> None:
    """Have all of a SQLite database in its one file, to copy it."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@pytest.fixture
def sqlite_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    """Give the URL of a fresh migrated SQLite file."""
    return f"sqlite:///{shutil.copyfile(migrated_sqlite, tmp_path / 'postage.db')}"


@pytest.fixture(scope="session")
def postgres_databases(migrated_postgres: PostgresServer) -> DatabasePool:
    """Give the empty migrated PostgreSQL databases."""
    return DatabasePool(migrated_postgres, TEMPLATE)


@pytest.fixture
def postgres_url(postgres_databases: DatabasePool) -> Iterator[str]:
    """Give the URL of an empty migrated PostgreSQL database."""
    with postgres_databases.database() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Give the URL of a fresh migrated database, once of either kind."""
    url: str = request.getfixturevalue({"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param])
    return url


@pytest.fixture
def database(database_url: str) -> Iterator["Database"]:
    """Give a fresh migrated database, closed after the test."""
    from models.database.engine import Database  # noqa: PLC0415  only tests with a database need it

    database = Database(database_url)
    yield database
    database.close()
