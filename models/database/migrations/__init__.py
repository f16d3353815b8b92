"""The history of the schema (Alembic), and how to migrate a database."""

from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from models.database.engine import Database
from models.errors import DatabaseBehindError


def migrate(url: str, revision: str = "head") -> None:
    """Migrate the database at `url` to the newest schema. Safe at any time, and for several processes at once."""
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
    is_sqlite = connection.dialect.name == "sqlite"
    if not is_sqlite:
        # Processes that migrate at the same time take turns. The number only has to be ours.
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7057461)")
    config = _config()
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
    DatabaseBehindError
        Naming both versions and the command to run.

    """
    newest = ScriptDirectory.from_config(_config()).get_current_head()
    with database.snapshot() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    if current != newest:
        sentence = f"The database is at migration {current or 'none'}, this code needs {newest}: run `postage migrate`."
        raise DatabaseBehindError(sentence)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config
