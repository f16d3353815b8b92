"""The command `postage erase`."""

from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from models.database.engine import Database
from tests.factories import save_people
from tests.integration.commands import Run, open_app, printed, runner_of
from worker.cli.main import postage


@pytest.fixture
def run(sqlite_url: str, valkey_url: str) -> Iterator[Run]:
    """Give `postage`, with a real broker, and john, peter and mary."""
    database = Database(sqlite_url)
    save_people(database)
    database.close()
    with open_app(sqlite_url, valkey_url) as app, capture_logs():
        yield runner_of(postage, app)


def test_a_user_is_erased_by_somebody_who_may(run: Run) -> None:
    shown = run("erase", "mary", "--by", "john", "--erasure-id", "erasure-7")

    assert (shown.exit_code, shown.stdout) == (0, "erasure-7: mary is erased.\n")
    assert "mary@acme.test" not in run("users", "john", "--json").stdout
    [erasure] = [row for row in printed(run("changes", "john", "--json"))["rows"] if row["kind"] == "erasure"]
    assert (erasure["subject"], erasure["actor"]) == ("mary", "john")


def test_an_erasure_gets_an_id_of_its_own(run: Run) -> None:
    ids = [printed(run("erase", user, "--by", "john", "--json"))["erasure_id"] for user in ("mary", "peter")]

    assert len(set(ids)) == 2


def test_a_refused_erasure_says_why(run: Run) -> None:
    refused = run("erase", "mary", "--by", "peter")

    assert refused.exit_code == 1
    assert "not_permitted" in refused.stderr
    assert "mary@acme.test" in run("users", "john", "--json").stdout


def test_it_must_be_said_who_erases(run: Run) -> None:
    assert run("erase", "mary").exit_code == 2
