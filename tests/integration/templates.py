"""Databases that are filled once in a test process, and copied or restored for each test that needs them."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import pytest

from models.database.engine import Database
from tests.conftest import TEMPLATE, gather
from tests.restoring import DatabasePool
from tests.servers import PostgresServer

Fill = Callable[[Database], object]


class Templates:
    """The databases that were filled in this process, each known by the function that filled it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[Fill, Path] = {}
        self._pools: dict[Fill, DatabasePool] = {}

    def copy_file(self, fill: Fill, migrated: Path, file: Path) -> None:
        """Copy the SQLite database that `fill` fills to `file`."""
        if fill not in self._files:
            filled: Path = shutil.copyfile(migrated, self._folder / f"{len(self._files)}.db")
            _fill(f"sqlite:///{filled}", fill)
            gather(filled)
            self._files[fill] = filled
        shutil.copyfile(self._files[fill], file)

    def pool(self, fill: Fill, server: PostgresServer) -> DatabasePool:
        """Give the PostgreSQL databases that `fill` has filled."""
        if fill not in self._pools:
            self._pools[fill] = DatabasePool(server, TEMPLATE, lambda url: _fill(url, fill))
        return self._pools[fill]


def _fill(url: str, fill: Fill) -> None:
    with closing(Database(url)) as database:
        fill(database)


def database_filled_by(fill: Fill, *kinds: str, scope: Literal["function", "module"] = "function") -> Any:
    """Make a fixture: a database that `fill` has filled, once of either kind, or of these kinds.

    Each test finds it as it was filled. Tests that leave nothing behind may share one for the `scope` of a module.
    """

    @pytest.fixture(params=kinds or ("sqlite", "postgresql"), scope=scope)
    def filled(
        request: pytest.FixtureRequest, templates: Templates, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Database]:
        if request.param == "sqlite":
            file = tmp_path_factory.mktemp("filled") / "postage.db"
            templates.copy_file(fill, request.getfixturevalue("migrated_sqlite"), file)
            with closing(Database(f"sqlite:///{file}")) as database:
                yield database
            return
        with (
            templates.pool(fill, request.getfixturevalue("migrated_postgres")).database() as url,
            closing(Database(url)) as database,
        ):
            yield database

    return filled


def url_of(database: Database) -> str:
    """Give the URL of a database."""
    return database.engine.url.render_as_string(hide_password=False)
