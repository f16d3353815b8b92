"""The history of the schema (Alembic), and how to migrate a database."""

from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, inspect, text

from models.database.engine import Database
from models.errors import DatabaseAheadError, DatabaseBehindError

NEWEST: Final = "0010"
"""The revision of the newest migration in `versions/`, which this code was written for."""
KNOWN: Final = frozenset(f"{number:04}" for number in range(1, int(NEWEST) + 1))
"""The revisions of all migrations in `versions/`, which are numbered without a gap."""


def migrate(url: str, revision: str = "head") -> None:
    """Migrate the database at `url` to the newest schema. Safe at any time, and for several processes at once.

    Raises
    ------
    DatabaseAheadError
        If a newer release has migrated it. Nothing is changed then.

    """
    database = Database(url, pool_size=1)
    try:
        with database.engine.connect() as connection:
            if database.is_sqlite:
                _suspend_foreign_keys(connection)
            with connection.begin():
                _upgrade(connection, revision)
    finally:
        database.close()


def _upgrade(connection: Connection, revision: str) -> None:
    # Only here, for a tenth of a second of imports is long for the processes that only ask `check_migrated`.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    is_sqlite = connection.dialect.name == "sqlite"
    if not is_sqlite:
        # Processes that migrate at the same time take turns. The number only has to be ours.
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7057461)")
    _require_known(_current_revision(connection))
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
    if is_sqlite and (broken := connection.exec_driver_sql("PRAGMA foreign_key_check").all()):
        msg = f"the migration would leave rows whose foreign keys match nothing: {broken[:10]}"
        raise RuntimeError(msg)


def _suspend_foreign_keys(connection: Connection) -> None:
    """Allow tables to be recreated while others refer to them (https://www.sqlite.org/lang_altertable.html).

    SQLite accepts this outside of a transaction only, so the driver is told directly.
    """
    driver: Any = connection.connection.dbapi_connection
    driver.execute("PRAGMA foreign_keys = OFF")


def check_migrated(database: Database) -> None:
    """Make sure that the schema is the one this code was written for.

    Raises
    ------
    DatabaseBehindError, DatabaseAheadError
        Naming both versions and what to do.

    """
    with database.snapshot() as connection:
        current = _current_revision(connection)
    _require_known(current)
    if current != NEWEST:
        sentence = f"The database is at migration {current or 'none'}, this code needs {NEWEST}: run `postage migrate`."
        raise DatabaseBehindError(sentence)


def _require_known(current: str | None) -> None:
    if current is not None and current not in KNOWN:
        sentence = (
            f"The database is at migration {current}, and this code knows migrations up to {NEWEST} only: upgrade it "
            "to the release that migrated the database, or restore the backup from before that migration."
        )
        raise DatabaseAheadError(sentence)


def _current_revision(connection: Connection) -> str | None:
    """Read the revision where Alembic keeps it (https://alembic.sqlalchemy.org/en/latest/tutorial.html)."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
