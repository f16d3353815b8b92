"""The command `postage unknown`: list, refund and resend."""

from collections.abc import Iterator

import pytest

from models.database.engine import Database
from models.sends.charges import State
from tests.factories import balance, buy
from tests.integration.commands import Run, open_app, printed, runner_of
from tests.integration.queued import NO_BROKER
from tests.integration.sending import THREE, leave_unknown
from tests.integration.stored import charge_of, decisions_of, findings
from tests.integration.templates import url_of
from worker.cli.unknown import unknown


@pytest.fixture
def run(stocked: Database) -> Iterator[Run]:
    """Give `postage unknown`, which needs no broker."""
    with open_app(url_of(stocked), NO_BROKER) as app:
        yield runner_of(unknown, app)


def test_unknown_messages_are_listed(run: Run, stocked: Database) -> None:
    leave_unknown(stocked, "job-1", "job-2", to=THREE)

    listed = run("list", "--json")
    shown = run("list")

    assert [row["job_id"] for row in printed(listed)["rows"]] == ["job-1", "job-2"]
    row = printed(listed)["rows"][0]
    assert (row["paid_by"], row["credits"], row["attempts"]) == ("john", 3, 1)
    assert (listed.exit_code, shown.exit_code) == (0, 0)
    assert "job-2" in shown.stdout
    assert "ada@" not in listed.stdout + shown.stdout


def test_a_page_has_a_hundred_rows_and_says_whether_more_follow(run: Run, stocked: Database) -> None:
    buy(stocked, "john", email=100)
    leave_unknown(stocked, *(f"job-{number:03}" for number in range(101)))

    first, second = printed(run("list", "--json")), printed(run("list", "--page", "2", "--json"))

    assert (len(first["rows"]), first["more"]) == (100, True)
    assert ([row["job_id"] for row in second["rows"]], second["more"]) == (["job-100"], False)


def test_a_refund_is_recorded_with_who_decided(run: Run, stocked: Database) -> None:
    leave_unknown(stocked, "job-1", "job-2")

    mine = run("refund", "job-1")
    named = run("refund", "job-2", "--as", "ops:anna", "--note", "asked the carrier")

    assert (mine.exit_code, named.exit_code) == (0, 0)
    assert "job-1: 1 of 1 credits went back to john." in mine.stdout
    assert decisions_of(stocked) == [
        ("job-1", "refund", "someone", None),
        ("job-2", "refund", "ops:anna", "asked the carrier"),
    ]


def test_the_exit_code_is_1_if_one_of_the_jobs_is_not_unknown(run: Run, stocked: Database) -> None:
    leave_unknown(stocked, "job-1")

    resent = run("resend", "job-1", "nobody", "--json")
    again = run("resend", "job-1")

    assert resent.exit_code == 1
    assert [job["job_id"] for job in printed(resent)["settled"]] == ["job-1"]
    assert [(job["job_id"], job["status"]) for job in printed(resent)["not_unknown"]] == [("nobody", "not_found")]
    assert again.exit_code == 1
    assert "job-1: It is not unknown" in again.stdout


def test_all_settles_every_unknown_message(run: Run, stocked: Database) -> None:
    buy(stocked, "john", email=100)
    leave_unknown(stocked, *(f"job-{number}" for number in range(103)))

    refunded = run("refund", "--all", "--json")
    again = run("refund", "--all")

    assert (refunded.exit_code, again.exit_code) == (0, 0)
    assert len(printed(refunded)["settled"]) == 103
    assert "Nothing is unknown." in again.stdout
    assert balance(stocked, "john") == 110
    assert findings(stocked) == []


@pytest.mark.parametrize("arguments", [(), ("job-1", "--all")])
def test_a_decision_needs_either_ids_or_all(run: Run, stocked: Database, arguments: tuple[str, ...]) -> None:
    leave_unknown(stocked, "job-1")

    refused = run("refund", *arguments)

    assert refused.exit_code == 2
    assert "say --all" in refused.stderr
    assert charge_of(stocked).state is State.UNKNOWN


def test_a_decision_needs_the_name_of_an_operator(run: Run, stocked: Database) -> None:
    leave_unknown(stocked, "job-1")

    refused = run("refund", "job-1", USER="")

    assert refused.exit_code == 2
    assert "--as" in refused.stderr
    assert charge_of(stocked).state is State.UNKNOWN
