"""A house that flow tests share, and servers of their own for those that must be alone."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import TEMPLATE
from tests.flows.house import Deployment
from tests.servers import PostgresServer, ValkeyServer


@pytest.fixture(scope="session")
def broker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give a broker that no other test empties."""
    with ValkeyServer(tmp_path_factory.mktemp("valkey-of-the-house")) as server:
        yield server.url()


@pytest.fixture(scope="session")
def house(
    migrated_postgres: PostgresServer, broker_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """Give a worker and beat that run as long as there are tests. Each test makes people of its own."""
    with (
        migrated_postgres.copy_of(TEMPLATE) as url,
        Deployment(tmp_path_factory.mktemp("house"), url, broker_url, beat=True) as house,
    ):
        yield house


OpenHouse = Callable[..., Deployment]


@pytest.fixture
def open_house(tmp_path: Path, postgres_url: str) -> Iterator[OpenHouse]:
    """Give a way to open a house with a database and a broker that nothing else uses: `with open_house() as house`."""
    with ValkeyServer(tmp_path / "valkey") as broker:
        yield functools.partial(Deployment, tmp_path / "house", postgres_url, broker.url())
