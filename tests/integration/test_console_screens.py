"""The screens of the console: what each shows, to whom, and as what."""

from collections.abc import Iterator

import pytest

from models.database.engine import Database
from tests.factories import email_job
from tests.fakes import answer
from tests.integration.console_client import ConsoleOfTest, console_on
from tests.integration.stories import live_through_everything
from tests.integration.templates import database_filled_by

Json = dict[str, object]

PLAN = {"plan": "small", "name": "Small <b>&", "credits": {"email": 1200, "sms": 3}, "price": 900, "currency": "EUR"}


def fill(database: Database) -> None:
    """Let everything happen that a story can tell, and save a plan whose name is HTML."""
    live_through_everything(database)


lived = database_filled_by(fill, "sqlite", scope="module")


@pytest.fixture(scope="module")
def console(lived: Database) -> Iterator[ConsoleOfTest]:
    """Give a console that tests look at, and leave as it is."""
    with console_on(lived) as console:
        context = console.context
        answer(context, "plans.save", PLAN | {"actor": "john"})
        answer(context, "roles.save", {"organization": "acme", "role": "buyer", "rights": ["adjust_credits"]})
        yield console


def test_a_statement_leads_to_what_is_behind_each_entry(console: ConsoleOfTest) -> None:
    browser = console.browser("peter")
    page, twin = browser.get("/statement").text, browser.get("/statement.json").json()

    for account in twin["accounts"]:
        for entry in account["entries"]:
            name = f"{account['kind']}/{entry['seq']}"
            assert f"/statement/entry?entry={name.replace('/', '%2F')}" in page
            behind = browser.get(f"/statement/entry?entry={name}")
            assert behind.status_code == 200
            assert entry["hash"] in behind.text
    assert "You are using the credits of john" in page
    assert twin["accounts"][0]["entries"]


def test_a_statement_as_csv_has_the_entries_of_both_accounts(console: ConsoleOfTest) -> None:
    browser = console.browser("john")
    accounts = browser.get("/statement.json").json()["accounts"]

    header, *lines = browser.get("/statement.csv").text.splitlines()

    assert header.startswith("kind,seq,at,")
    assert [line.split(",")[:2] for line in lines] == [
        [account["kind"], str(entry["seq"])] for account in accounts for entry in account["entries"]
    ]


@pytest.mark.parametrize("job_id", ["in-part", "never", "unknown", "bulk", "bulk/1", "cancelled", "poor", "wrong", "later", "held", "waits"])  # fmt: skip
def test_every_story_is_shown_as_it_is_told(console: ConsoleOfTest, job_id: str) -> None:
    browser = console.browser("john")
    page = browser.get(f"/messages/story?job_id={job_id}")
    told = browser.get(f"/messages/story.json?job_id={job_id}").json()

    assert page.status_code == 200
    assert all(event["text"].split(":")[0].replace("'", "&#39;") in page.text for event in told["story"])
    assert ("hx-get" in page.text) == (told["status"] in ("sending", "retrying"))


OF_ACME = ["/messages/story{}?job_id=in-part", "/statement/entry{}?entry=email/5"]


@pytest.mark.parametrize("kind", ["", ".json", ".csv"])
@pytest.mark.parametrize("path", OF_ACME)
def test_what_belongs_to_another_organization_is_not_there(console: ConsoleOfTest, path: str, kind: str) -> None:
    assert console.browser("olga").get(path.format(kind)).status_code == 404


def test_somebody_of_another_pool_may_not_read_a_story(console: ConsoleOfTest) -> None:
    assert console.browser("mary").get("/messages/story?job_id=in-part").status_code == 403
