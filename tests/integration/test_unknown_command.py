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

    first = printed(run("list", "--json"))
    second = printed(run("list", "--next", first["next"], "--json"))

    assert (len(first["rows"]), first["more"]) == (100, True)
    assert ([row["job_id"] for row in second["rows"]], second["more"], second["next"]) == (["job-100"], False, None)


def test_150_unknown_messages_are_settled_page_by_page(run: Run, stocked: Database) -> None:
    """Each page is settled before the next one is asked for."""
    buy(stocked, "john", email=150)
    names = [f"job-{number:03}" for number in range(150)]
    leave_unknown(stocked, *names)

    settled, cursor = [], []
    while not settled or cursor:
        listed = printed(run("list", *cursor, "--json"))
        page = [row["job_id"] for row in listed["rows"]]
        assert run("refund", *page).exit_code == 0
        settled += page
        cursor = ["--next", listed["next"]] if listed["next"] else []

    assert settled == names
    assert balance(stocked, "john") == 160
    assert printed(run("list", "--json"))["rows"] == []
    assert findings(stocked) == []


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


@pytest.fixture
def unknown_in_two(stocked: Database) -> Database:
    """Give a database in which job-1 is unknown in `acme` and in `other`, and job-2 in `other`."""
    buy(stocked, "olga", email=5)
    leave_unknown(stocked, "job-1")
    leave_unknown(stocked, "job-1", "job-2", sender="olga")
    return stocked


@pytest.mark.parametrize("command", ["refund", "resend"])
def test_an_id_that_is_unknown_in_two_organizations_is_left_alone(
    run: Run, unknown_in_two: Database, command: str
) -> None:
    decided = run(command, "job-1", "job-2", "--json")
    shown = run(command, "job-1")

    assert (decided.exit_code, shown.exit_code) == (1, 1)
    assert [job["job_id"] for job in printed(decided)["settled"]] == ["job-2"]
    [ambiguous] = printed(decided)["ambiguous"]
    assert (ambiguous["job_id"], ambiguous["organizations"]) == ("job-1", ["acme", "other"])
    assert "job-1: It is unknown in acme and other: say which one you mean by --organization." in shown.stdout
    assert decisions_of(unknown_in_two) == [("job-2", command, "someone", None)]
    assert (balance(unknown_in_two, "john"), charge_of(unknown_in_two).state) == (9, State.UNKNOWN)


def test_the_organization_says_which_of_two_jobs_is_meant(run: Run, unknown_in_two: Database) -> None:
    refunded = run("refund", "job-1", "--organization", "other", "--json")
    again = run("refund", "job-1", "--organization", "other", "--json")

    assert (refunded.exit_code, again.exit_code) == (0, 1)
    assert [job["paid_by"] for job in printed(refunded)["settled"]] == ["olga"]
    assert [job["status"] for job in printed(again)["not_unknown"]] == ["failed"]
    assert (balance(unknown_in_two, "john"), balance(unknown_in_two, "olga")) == (9, 4)
    assert charge_of(unknown_in_two).state is State.UNKNOWN
    assert findings(unknown_in_two) == []


def test_all_may_be_all_of_one_organization(run: Run, unknown_in_two: Database) -> None:
    refunded = run("refund", "--all", "--organization", "other")

    assert refunded.exit_code == 0
    assert (balance(unknown_in_two, "john"), balance(unknown_in_two, "olga")) == (9, 5)


def test_an_organization_that_does_not_exist_is_refused(run: Run, unknown_in_two: Database) -> None:
    refused = run("refund", "--all", "--organization", "nobody")

    assert refused.exit_code == 1
    assert "There is no organization nobody." in refused.stderr
    assert decisions_of(unknown_in_two) == []


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
