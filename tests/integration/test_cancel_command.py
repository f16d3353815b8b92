"""`postage cancel`: an operator says which job of which organization, and is told what became of it."""

from collections.abc import Iterator

import pytest

from tests.factories import balance, buy, email_job, save_people
from tests.integration.commands import Run, open_app, printed, runner_of
from worker.app import PostageApp
from worker.cli.cancel import cancel, purge


@pytest.fixture
def app(sqlite_url: str, valkey_url: str) -> Iterator[PostageApp]:
    """Give an app whose queue holds a job of the same id of two organizations, and one of john's alone."""
    with open_app(sqlite_url, valkey_url) as app:
        save_people(app.context.database)
        for owner in ("john", "olga"):
            buy(app.context.database, owner, email=5)
            app.send_task("email.send", args=[email_job("shared", sender=owner)], queue="email")
        app.send_task("email.send", args=[email_job("johns")], queue="email")
        yield app


@pytest.fixture
def run(app: PostageApp) -> Run:
    """Give a function that runs `postage cancel`."""
    return runner_of(cancel, app)


def test_an_id_that_several_organizations_use_needs_the_organization(run: Run) -> None:
    unclear = run("shared", "--json")
    told = run("shared", "--organization", "acme", "--json")

    assert unclear.exit_code == 1
    assert printed(unclear)["detail"] == "acme and other use the id shared: say --organization."
    assert (told.exit_code, printed(told)["cancelled"]) == (0, 1)


def test_one_organization_is_found_by_the_job_alone(run: Run, app: PostageApp) -> None:
    ended = run("johns", "--by", "ops", "--cancel-id", "stop-1")

    assert ended.exit_code == 0
    assert "stop-1: 1 message cancelled, 0 credits given back; too late for 0." in ended.stdout
    assert printed(run("johns", "--by", "ops", "--cancel-id", "stop-1", "--json"))["cancelled"] == 1  # as before
    assert balance(app.context.database, "john") == 5


@pytest.mark.parametrize("arguments", [("nothing",), ("--sender", "nobody"), ("johns", "--organization", "other")])
def test_what_does_not_exist_is_said(run: Run, arguments: tuple[str, ...]) -> None:
    ended = run(*arguments)

    assert ended.exit_code == 1
    assert "Refused (not_found): There is no" in ended.stderr


@pytest.mark.parametrize("arguments", [(), ("johns", "--sender", "john")])
def test_either_a_job_or_a_sender_is_named(run: Run, arguments: tuple[str, ...]) -> None:
    ended = run(*arguments)

    assert ended.exit_code == 2
    assert "Name one JOB, or say --sender." in ended.stderr


def test_a_purge_asks_first(app: PostageApp) -> None:
    ended = runner_of(purge, app)("email")

    assert ended.exit_code == 1
    assert "3 messages wait on email. Refuse all of them as cancelled?" in ended.stderr
