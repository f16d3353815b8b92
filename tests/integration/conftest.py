"""Fixtures of the tests that run several parts together."""

from collections.abc import Iterator

import pytest
import structlog
from redis import Redis

from models.database.engine import Database
from tests.factories import stock
from tests.integration import smtp_server
from tests.integration.audited import have_a_busy_day
from tests.integration.templates import Templates, database_filled_by


@pytest.fixture(scope="session", autouse=True)
def _short_tracebacks() -> Iterator[None]:
    """Log tracebacks without the values of variables: writing those takes longer than the tests."""
    *before, _ = processors = structlog.get_config()["processors"]
    renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*before, renderer])
    yield
    structlog.configure(processors=processors)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Undo what a command that runs in this process does to the logging, or later tests see no logs."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture
def redis(valkey_url: str) -> Iterator[Redis]:
    """Give a client of the empty broker."""
    with Redis.from_url(valkey_url) as client:
        yield client


@pytest.fixture(params=[smtp_server.USUAL["EHLO"], smtp_server.PIPELINING], ids=["one-by-one", "pipelined"])
def with_and_without_pipelining(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let scripted mail servers not offer PIPELINING, and offer it."""
    monkeypatch.setitem(smtp_server.USUAL, "EHLO", request.param)


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Templates:
    """Give the databases that were filled already, to be copied."""
    return Templates(tmp_path_factory.mktemp("templates"))


def fill_stock(database: Database) -> None:
    """Save people, of whom john owns 10 email and 10 SMS credits and peter uses them."""
    stock(database, email=10, sms=10)


stocked = database_filled_by(fill_stock)
"""A database in which john owns 10 email and 10 SMS credits, and peter uses them."""
stocked_postgres = database_filled_by(fill_stock, "postgresql")
"""The same, on PostgreSQL only."""
busy = database_filled_by(have_a_busy_day)
"""A database after a day on which nearly everything happened that can."""
