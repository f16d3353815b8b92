"""A deployment that flow tests share, and deployments of their own for tests that need one alone."""

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import TEMPLATE
from tests.flows.deployment import Deploy, Deployment
from tests.servers import PostgresServer, ValkeyServer


@pytest.fixture(scope="session")
def broker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the URL of the broker of the shared deployment, which no test empties."""
    with ValkeyServer(tmp_path_factory.mktemp("valkey-of-the-deployment")) as server:
        yield server.url()


@pytest.fixture(scope="session")
def deployment(
    migrated_postgres: PostgresServer, broker_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """Give a worker and beat that run as long as there are tests. Each test makes people of its own."""
    with (
        migrated_postgres.copy_of(TEMPLATE) as url,
        Deployment(tmp_path_factory.mktemp("deployment"), url, broker_url, beat=True) as deployment,
    ):
        yield deployment


@pytest.fixture
def deploy(tmp_path: Path, postgres_url: str) -> Iterator[Deploy]:
    """Give a function that makes a deployment with its own database and broker: `with deploy() as deployment`."""
    with ValkeyServer(tmp_path / "valkey") as broker:
        yield functools.partial(Deployment, tmp_path / "deployment", postgres_url, broker.url())
