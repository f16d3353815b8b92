"""The screens that look back, and the one that buys: statement, messages, plans, changes, roles."""

import re
from collections.abc import Iterator

import pytest
from celery.states import SUCCESS
from redis import Redis

from models.database.engine import Database
from tests.factories import balance
from tests.fakes import answer
from tests.integration.conftest import fill_stock
from tests.integration.console_client import ConsoleOfTest, console_on
from tests.integration.queued import body_of, messages_on
from tests.integration.stories import live_through_everything
from tests.integration.templates import database_filled_by

PLAN = {"plan": "small", "name": "Small <b>&", "credits": {"email": 1200, "sms": 3}, "price": 900, "currency": "EUR"}


ANNA = {"user_id": "anna", "organization": "acme", "name": "Anna", "email": "anna@acme.test", "role": "buyer"}
ADJUSTMENT = {"adjustment_id": "a-1", "actor": "anna", "owner": "john", "credits": {"email": 1}, "reason": "<i>amends"}
REVERSAL = {"reversal_id": "r-1", "kind": "chargeback", "reason": "the bank took it back"}
JOBS = ("in-part", "never", "unknown", "bulk", "bulk/1", "cancelled", "poor", "wrong", "later", "held", "waits")

lived = database_filled_by(live_through_everything, "sqlite", scope="module")
stocked_on_sqlite = database_filled_by(fill_stock, "sqlite")


@pytest.fixture(scope="module")
def console(lived: Database) -> Iterator[ConsoleOfTest]:
    """Give a console that tests look at, and leave as it is."""
    with console_on(lived) as console:
        context = console.context
        answer(context, "plans.save", PLAN | {"actor": "john"})
        answer(context, "roles.save", {"organization": "acme", "role": "buyer", "rights": ["adjust_credits"]})
        answer(context, "users.save", ANNA)
        answer(context, "credits.adjust", ADJUSTMENT)
        [order] = answer(context, "views.orders", {"viewer": "john"})["rows"]
        answer(context, "credits.reverse", REVERSAL | {"order_id": order["order_id"]})
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
    causes = {entry["cause_kind"] for account in twin["accounts"] for entry in account["entries"]}
    assert causes == {"opening", "purchase", "charge", "refund", "adjustment", "reversal"}


def test_a_statement_as_csv_has_the_entries_of_both_accounts(console: ConsoleOfTest) -> None:
    browser = console.browser("john")
    accounts = browser.get("/statement.json").json()["accounts"]

    header, *lines = browser.get("/statement.csv").text.splitlines()

    assert header.startswith("kind,seq,at,")
    assert [line.split(",")[:2] for line in lines] == [
        [account["kind"], str(entry["seq"])] for account in accounts for entry in account["entries"]
    ]


@pytest.mark.parametrize("job_id", JOBS)
def test_every_story_is_shown_as_it_is_told(console: ConsoleOfTest, job_id: str) -> None:
    browser = console.browser("john")
    page = browser.get(f"/messages/story?job_id={job_id}")
    told = browser.get(f"/messages/story.json?job_id={job_id}").json()

    assert page.status_code == 200
    assert all(event["text"].split(":")[0].replace("'", "&#39;") in page.text for event in told["story"])
    assert ("hx-get" in page.text) == (told["status"] in ("sending", "retrying"))


def test_a_page_that_looks_again_is_not_replaced_when_the_session_has_ended(console: ConsoleOfTest) -> None:
    asked_again = console.browser().get("/messages/story?job_id=held", **{"hx-request": "true"})

    assert asked_again.status_code == 401
    assert 'hx-status:4xx="swap:none"' in console.browser("john").get("/messages/story?job_id=held").text


OF_ACME = ["/messages/story{}?job_id=in-part", "/statement/entry{}?entry=email/5"]


@pytest.mark.parametrize("kind", ["", ".json", ".csv"])
@pytest.mark.parametrize("path", OF_ACME)
def test_what_belongs_to_another_organization_is_not_there(console: ConsoleOfTest, path: str, kind: str) -> None:
    assert console.browser("olga").get(path.format(kind)).status_code == 404


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/statement?next=x", 400),
        ("/statement?page=2", 400),
        ("/statement?since=yesterday", 400),
        ("/statement/entry", 404),
        ("/statement/entry?entry=post/1", 400),
        ("/statement/entry?entry=email/999", 404),
        ("/messages?of=all", 400),
        ("/messages/story", 404),
        ("/messages/story?job_id=no+id", 400),
        ("/messages/story?job_id=nothing", 404),
        ("/changes?subject=no+id", 400),
        ("/changes?next=x", 400),
    ],
)
def test_an_address_that_is_not_right_is_refused_with_a_sentence(
    console: ConsoleOfTest, path: str, status: int
) -> None:
    page = console.browser("john").get(path)

    assert page.status_code == status
    assert '<p class="lead">' in page.text


def test_somebody_of_another_pool_may_not_read_a_story(console: ConsoleOfTest) -> None:
    assert console.browser("mary").get("/messages/story?job_id=in-part").status_code == 403


NEED_RIGHTS = ["/changes", "/roles", "/users"]


@pytest.mark.parametrize("path", NEED_RIGHTS)
@pytest.mark.parametrize("kind", ["", ".json", ".csv"])
def test_a_right_is_asked_for_whatever_the_form_of_the_answer(console: ConsoleOfTest, path: str, kind: str) -> None:
    assert console.browser("john").get(path + kind).status_code == 200
    assert console.browser("mary").get(path + kind).status_code == 403


def test_changes_show_what_was_before_and_can_be_narrowed(console: ConsoleOfTest) -> None:
    browser = console.browser("john")

    page = browser.get("/changes?subject=peter").text

    assert "Credit owner of" in page
    assert '<td class="value">peter</td>' in page
    assert '<td class="value">john</td>' in page
    assert {row["subject"] for row in browser.get("/changes.json?subject=peter").json()["rows"]} == {"peter"}
    assert browser.get("/changes.csv").text.splitlines()[0] == "kind,subject,actor,old,new,at"
    assert "olga" not in browser.get("/changes").text


def test_roles_are_those_of_the_organization(console: ConsoleOfTest) -> None:
    rows = console.browser("john").get("/roles.json").json()["rows"]

    assert [(row["role"], row["rights"], row["users"]) for row in rows] == [
        ("admin", ["view_user_list", "edit_user"], 1),
        ("buyer", ["adjust_credits"], 1),
        ("member", [], 2),
    ]


def test_a_name_is_text_whatever_it_contains(console: ConsoleOfTest) -> None:
    browser = console.browser("john")
    [adjusted] = [
        f"email/{entry['seq']}"
        for entry in browser.get("/statement.json").json()["accounts"][0]["entries"]
        if entry["cause_kind"] == "adjustment"
    ]
    plans, changes, entry = (
        browser.get(path).text for path in ("/plans", "/changes", f"/statement/entry?entry={adjusted}")
    )

    assert "Small &lt;b&gt;&amp;" in plans
    assert "Small &lt;b&gt;&amp;" in changes
    assert "&lt;i&gt;amends" in entry
    assert "<b>" not in plans + changes
    assert "<i>" not in entry


# -- buying -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def shop(stocked_on_sqlite: Database, valkey_url: str) -> Iterator[ConsoleOfTest]:
    """Give a console with a broker, where peter may buy, and spends the credits of john."""
    with console_on(stocked_on_sqlite, valkey_url) as shop:
        answer(shop.context, "plans.save", PLAN)
        answer(shop.context, "roles.save", {"organization": "acme", "role": "member", "rights": ["adjust_credits"]})
        yield shop


def form_on(page: str) -> dict[str, str]:
    """Give the hidden fields of the form of an order."""
    form = dict(re.findall(r'name="(\w+)" value="([^"]*)"', page[page.index('action="/plans"') :]))
    del form["form_token"]
    return form


def test_a_form_that_is_sent_twice_buys_once(shop: ConsoleOfTest, stocked_on_sqlite: Database, redis: Redis) -> None:
    browser = shop.browser("peter")
    form = form_on(browser.get("/plans?plan=small").text)

    first, second = browser.submit("/plans", **form), browser.submit("/plans", **form)
    enqueued = [body_of(message)[0][0] for message in messages_on(redis, "billing")]
    answers = [answer(shop.context, "credits.purchase", message) for message in enqueued]

    assert first.status_code == second.status_code == 303
    assert first.headers["location"] == second.headers["location"]
    assert {str(each) for each in enqueued} == {str({"order_id": form["order_id"], "buyer": "peter", "plan": "small"})}
    assert {(each["status"], each["owner"]) for each in answers} == {("done", "john")}
    assert balance(stocked_on_sqlite, "john") == 10 + 1200
    assert "no worker has answered yet" in browser.get(f"/plans{first.headers['location']}").text


@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")  # Celery's result backend calls it
@pytest.mark.parametrize(("plan", "words"), [("small", "has added 1,200 email, 3 SMS to"), ("none", "no plan none")])
def test_the_answer_to_an_order_is_shown_to_the_buyer_alone(
    shop: ConsoleOfTest, redis: Redis, plan: str, words: str
) -> None:
    browser = shop.browser("peter")
    form = form_on(browser.get("/plans?plan=small").text)
    ordered = browser.submit("/plans", **form).headers["location"]
    [message] = messages_on(redis, "billing")
    [job], *_ = body_of(message)

    answered = answer(shop.context, "credits.purchase", job | {"plan": plan})
    shop.app.backend.store_result(message["headers"]["id"], answered, SUCCESS)

    assert words in browser.get(f"/plans{ordered}").text
    assert words not in shop.browser("john").get(f"/plans{ordered}").text
    browser.submit("/plans", **form)
    assert messages_on(redis, "billing") == [message]


def test_nobody_buys_without_the_right(console: ConsoleOfTest) -> None:
    browser = console.browser("john")

    assert "<form" not in browser.get("/plans?plan=small").text.split("<main")[1]
    refused = browser.submit("/plans", plan="small", order_id=f"console-{'0' * 32}", terms="1200/3/900/EUR")
    assert refused.status_code == 403


@pytest.mark.parametrize(
    ("changed", "status"), [({"order_id": "order-1"}, 400), ({"plan": "none"}, 409), ({"terms": "1/0/900/EUR"}, 409)]
)
def test_a_form_that_no_page_has_made_buys_nothing(
    shop: ConsoleOfTest, redis: Redis, changed: dict[str, str], status: int
) -> None:
    browser = shop.browser("peter")
    form = form_on(browser.get("/plans?plan=small").text)

    assert browser.submit("/plans", **form | changed).status_code == status
    assert messages_on(redis, "billing") == []


def test_who_has_no_billing_information_is_told_so_and_cannot_buy(shop: ConsoleOfTest) -> None:
    page = shop.browser("mary").get("/plans?plan=small").text

    assert "You have no billing information" in page
    assert "Place the order" not in page
