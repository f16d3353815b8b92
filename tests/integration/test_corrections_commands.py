"""The commands that correct a pool, and those that show what has moved it."""

import json
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from models.database.engine import Database
from models.database.paging import PAGE_SIZE
from tests.factories import balance, buy, email_job, save_people
from tests.fakes import answer, make_context
from tests.integration.commands import Run, open_app, printed, runner_of
from tests.integration.templates import database_filled_by, url_of
from worker.cli.main import postage


def let_john_spend(database: Database) -> None:
    """Let john, who may adjust balances, spend 4 of the 10 email credits of order-1."""
    save_people(database)
    context = make_context(database)
    rights = ["view_user_list", "edit_user", "adjust_credits"]
    answer(context, "roles.save", {"organization": "acme", "role": "admin", "rights": rights})
    buy(database, "john", email=10, order_id="order-1")
    answer(context, "email.send", email_job(to=[f"{number}@b.test" for number in range(4)]))


spent = database_filled_by(let_john_spend, "sqlite")


@pytest.fixture
def run(spent: Database, valkey_url: str) -> Iterator[Run]:
    """Give a function that runs `postage`."""
    with open_app(url_of(spent), valkey_url) as app, capture_logs():
        yield runner_of(postage, app)


REVERSE = ("reverse", "order-1", "--kind", "refund", "--reason", "By mistake.")
ADJUST = ("adjust", "john", "--as", "john", "--reason", "An outage.")


def test_an_order_is_reversed_and_leaves_a_debt_that_everybody_sees(run: Run) -> None:
    reversed_, overview, orders = run(*REVERSE), run("overview", "john"), run("orders", "john")

    assert reversed_.exit_code == 0
    assert "10 email credits of order order-1 taken back from john." in reversed_.stdout
    assert "Spent already: 4 email credits. The next purchases pay for that first." in reversed_.stdout
    assert "Owed: 4 email credits" in overview.stdout
    assert "refund: 10 email credits" in orders.stdout


def test_nothing_owed_is_not_mentioned(run: Run) -> None:
    assert "Owed" not in run("overview", "john").stdout
    assert "reversed" not in run("orders", "john").stdout


def test_a_part_of_an_order_is_reversed_once_under_its_id(run: Run) -> None:
    part = (*REVERSE, "--email", "3", "--reversal-id", "r-1", "--buyer", "john", "--json")

    answers = [printed(run(*part)) for _ in range(2)]

    assert answers[0] == answers[1]
    assert (answers[0]["credits"], answers[0]["reversal_id"]) == ({"email": 3, "sms": 0}, "r-1")


def test_a_refused_reversal_says_why_and_exits_with_1(run: Run) -> None:
    run(*REVERSE)

    again = run(*REVERSE)

    assert again.exit_code == 1
    assert "Refused (nothing_remaining): Order order-1 brought 10 email" in again.stderr


def test_credits_are_given_and_taken_by_hand(run: Run, spent: Database) -> None:
    given, taken = run(*ADJUST, "--sms", "7"), run(*ADJUST, "--email", "-6", "--json")

    assert "+7 SMS credits for john." in given.stdout
    assert printed(taken)["credits"] == {"email": -6, "sms": 0}
    assert (balance(spent, "john", "email"), balance(spent, "john", "sms")) == (0, 7)


def test_an_adjustment_of_nothing_is_refused(run: Run) -> None:
    result = run(*ADJUST)

    assert result.exit_code == 1
    assert "`credits`: must give or take at least one credit." in result.stderr


def test_a_statement_shows_what_moved_a_pool_and_an_entry_what_is_behind_it(run: Run) -> None:
    run(*REVERSE)
    run(*ADJUST, "--email", "2")

    statement = run("statement", "john").stdout
    behind = [run("entry", "john", f"email/{seq}").stdout for seq in range(1, 5)]

    assert [line.split()[0] for line in statement.splitlines() if line.startswith(" email/")] == [
        f"email/{seq}" for seq in (4, 3, 2, 1, 0)
    ]
    assert "email of john: 2 credits, 4 owed" in statement
    for shown, words in zip(behind, ("order-1", "job-1", "By mistake.", "An outage."), strict=True):
        assert words in shown


def test_a_whole_statement_is_a_page_a_line(run: Run, spent: Database) -> None:
    for number in range(PAGE_SIZE):
        buy(spent, "john", email=1, order_id=f"more-{number}")

    lines = run("statement", "john", "--all", "--json").stdout.splitlines()

    pages = [json.loads(line) for line in lines]
    seqs = [entry["seq"] for page in pages for entry in page["accounts"][0]["entries"]]
    assert seqs == list(range(PAGE_SIZE + 2, -1, -1))
    assert [page["more"] for page in pages] == [True, False]
    [one] = run("statement", "john", "--json").stdout.splitlines()
    assert json.loads(one) == pages[0]


def test_a_statement_continues_where_its_page_says(run: Run, spent: Database) -> None:
    for number in range(PAGE_SIZE):
        buy(spent, "john", email=1, order_id=f"more-{number}")

    first = run("statement", "john").stdout
    second = run("statement", "john", "--next", "email:3,sms:0").stdout

    assert "More: --next email:3,sms:0" in first
    assert "email/2 " in second
    assert "email/3 " not in second
    assert "More" not in second


@pytest.mark.parametrize("arguments", [("statement", "nobody"), ("statement", "nobody", "--json", "--all")])
def test_a_statement_of_nobody_is_refused(run: Run, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)

    assert result.exit_code == 1
    assert "unknown_user" in result.output


def test_an_entry_that_is_not_there_is_not_found(run: Run) -> None:
    result = run("entry", "john", "sms/5")

    assert result.exit_code == 1
    assert "has no entry 5: its last one is 0" in result.stderr
