"""A deployment that the flow tests of a module share, and deployments of their own for tests that need one alone."""

import functools
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import TEMPLATE
from tests.flows.deployment import Deploy, Deployment
from tests.forking import end_forker
from tests.servers import PostgresServer, ValkeyServer


@pytest.fixture(scope="session", autouse=True)
def _forker_ended() -> Iterator[None]:
    """End the process that forks others."""
    yield
    end_forker()


@pytest.fixture(scope="module")
def broker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the URL of the broker of the shared deployment, which no test empties."""
    with ValkeyServer(tmp_path_factory.mktemp("valkey-of-the-deployment")) as server:
        yield server.url()
        gc.collect()  # Celery's results of the tests, which use the broker when their memory is freed


@pytest.fixture(scope="module")
def deployment(
    migrated_postgres: PostgresServer, broker_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """Give a worker and beat that all tests of a module use. Each test makes people of its own."""
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
