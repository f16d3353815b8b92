"""The screens of the console: each shows what its view answers, to whom it is for, and no HTML of anybody's."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from models.database.engine import Database
from tasks.client import CONNECTING
from tests.factories import buy, email_job, save_people, share, sms_job
from tests.fakes import answer, make_context
from tests.integration.console_client import Browser, ConsoleOfTest, console_on
from tests.integration.templates import database_filled_by, url_of
from worker.app import create_app
from worker.console.app import create_console
from worker.console.screen import Screen
from worker.console.screens import SCREENS
from worker.console.security import POLICY
from worker.settings import Settings

NAMED = {"/statement/entry": "?entry=email/1", "/messages/story": "?job_id=mail-1"}
"""What screens of one thing show."""
PATHS = [screen.path.replace("{user_id}", "peter") + NAMED.get(screen.path, "") for screen in SCREENS]
EVIL = '"><script>alert(1)</script>{{ 6 * 7 }}'


def fill(database: Database) -> None:
    """Let peter use the credits of john, both send, and everybody have names that are HTML."""
    save_people(database)
    context = make_context(database)
    for user, organization, role in (
        ("john", "acme", "admin"),
        ("peter", "acme", "member"),
        ("olga", "other", "admin"),
    ):
        answer(
            context,
            "users.save",
            {
                "user_id": user,
                "organization": organization,
                "name": EVIL,
                "email": f"{user}@acme.test",
                "role": role,
                "billing": {"name": EVIL, "tax_id": "=1+1"},
            },
        )
    nina = {"user_id": "nina", "organization": "acme", "name": "Nina", "email": "nina@acme.test", "role": "admin"}
    answer(context, "users.save", nina)
    answer(
        context, "plans.save", {"plan": "small", "name": EVIL, "credits": {"email": 9}, "price": 900, "currency": "EUR"}
    )
    answer(context, "credits.purchase", {"order_id": "order-plan", "buyer": "john", "plan": "small"})
    buy(database, "john", email=1000, sms=50, order_id="order-john")
    share(database, "peter", "john")
    reversal = {"reversal_id": "r", "order_id": "order-plan", "kind": "refund", "reason": EVIL}
    answer(context, "credits.reverse", reversal)
    answer(context, "email.send", email_job("mail-1", "peter"))
    answer(context, "sms.send", sms_job("text-1", "john"))


filled = database_filled_by(fill, "sqlite", scope="module")
filled_on_postgres = database_filled_by(fill, "postgresql", scope="module")


@pytest.fixture(scope="module")
def console(filled: Database) -> Iterator[ConsoleOfTest]:
    """Give a console that tests only look at."""
    with console_on(filled) as console:
        yield console


@pytest.fixture(scope="module")
def john(console: ConsoleOfTest) -> Browser:
    """Give a browser in which john, an admin, is signed in."""
    return console.browser("john")


@pytest.fixture(scope="module")
def peter(console: ConsoleOfTest) -> Browser:
    """Give a browser in which peter, a member who uses the credits of john, is signed in."""
    return console.browser("peter")


# -- every page -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*PATHS, "/password", "/users/peter/credit-owner?owner=peter", "/nope"])
def test_a_page_has_its_headers_and_no_script_of_its_own(john: Browser, path: str) -> None:
    page = john.get(path)

    assert page.headers["content-security-policy"] == POLICY
    assert (page.headers["x-frame-options"], page.headers["cache-control"]) == ("DENY", "no-store")
    assert (page.headers["x-content-type-options"], page.headers["referrer-policy"]) == ("nosniff", "no-referrer")
    assert re.findall(r"<script(?! src=\"/static)|<style|\sstyle=|\son\w+=|javascript:", page.text) == []


@pytest.mark.parametrize("path", PATHS)
def test_names_are_text_on_a_page(john: Browser, path: str) -> None:
    page = john.get(path)

    assert page.status_code == 200
    assert "<script>alert" not in page.text
    assert ">42" not in page.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;{{ 6 * 7 }}" in page.text


@pytest.mark.parametrize("path", PATHS)
def test_a_page_has_one_title_and_its_tables_have_captions(john: Browser, path: str) -> None:
    page = john.get(path).text

    titles = re.findall(r"<h1>(.+?)</h1>", page)
    assert len(titles) == 1
    assert f"<title>{titles[0]} · Postage</title>" in page
    assert page.count("<table") == page.count("<caption")
    assert re.findall(r"<th(?! scope=)(?:>|\s)", page) == []


@pytest.mark.parametrize("screen", [screen for screen in SCREENS if screen.task], ids=lambda screen: screen.name)
@pytest.mark.parametrize("how", [".json", "accept"])
def test_the_json_of_a_screen_is_the_answer_of_its_view(
    console: ConsoleOfTest, john: Browser, screen: Screen, how: str
) -> None:
    query = "?since=2026-01-01"
    got = (
        john.get(f"{screen.path}.json{query}")
        if how == ".json"
        else john.get(screen.path + query, accept="application/json")
    )

    message = {"viewer": "john"} | ({} if screen.name == "billing" else {"since": "2026-01-01"})
    message |= {"by": "message"} if screen.name == "messages" else {}
    assert got.json() == json.loads(json.dumps(answer(console.context, screen.task, message)))


def test_files_that_are_the_same_for_everybody_may_be_kept(console: ConsoleOfTest) -> None:
    style = console.browser().get("/static/console.css")

    assert (style.status_code, style.headers["cache-control"]) == (200, "public, max-age=3600")
    assert console.browser().get("/static/../app.py").status_code == 404


def test_the_console_answers_under_its_own_names_only(console: ConsoleOfTest) -> None:
    """Otherwise the name of a stranger's site could be made to lead here (DNS rebinding)."""
    browser = console.browser()

    assert browser.get("/sign-in", host="evil.example").status_code == 400
    assert browser.get("/sign-in", host="localhost:5580").status_code == 200


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nope", 404), ("POST", "/overview", 405)])
def test_what_is_not_there_is_told_in_a_sentence(john: Browser, method: str, path: str, status: int) -> None:
    told = john.client.request(method, path, headers={"sec-fetch-site": "same-origin"})

    assert told.status_code == status
    assert '<p class="lead">' in told.text


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"x" * 20_001, "application/x-www-form-urlencoded", 413),
        (b"a=\xff&%ff", "application/x-www-form-urlencoded", 400),
        (b"&".join(b"a=b" for _ in range(60)), "application/x-www-form-urlencoded", 400),
        (b"{}", "application/json", 415),
    ],
)
def test_what_is_no_form_is_refused(console: ConsoleOfTest, body: bytes, kind: str, status: int) -> None:
    headers = {"content-type": kind, "sec-fetch-site": "same-origin"}

    assert console.browser().client.post("/sign-in", content=body, headers=headers).status_code == status


def test_a_bug_is_told_without_its_words_and_with_the_headers(filled: Database) -> None:
    def fail(_asked: object) -> Any:
        raise KeyError("secret")

    with console_on(filled, screens=[Screen(name="billing", path="/billing", answer=fail)]) as console:
        told = console.browser("john").get("/billing")

    assert (told.status_code, "secret" in told.text) == (500, False)
    assert told.headers["content-security-policy"] == POLICY
    assert "try again" in told.text


def test_a_database_that_is_away_is_told_in_a_sentence() -> None:
    app = create_app(
        Settings(database_url="postgresql://u@127.0.0.1:1/x", broker_url="redis://127.0.0.1:1/0", database_wait_s=0)
    )
    browser = Browser(create_console(app))
    browser.keep("some-token")
    try:
        told = browser.get("/overview")
    finally:
        app.close_context()

    assert (told.status_code, told.headers["retry-after"]) == (503, "10")
    assert "try again in a moment" in told.text


# -- who sees what ----------------------------------------------------------------------------------------------------


def test_the_navigation_shows_what_somebody_may_see(john: Browser, peter: Browser) -> None:
    assert 'href="/users"' in john.get("/overview").text
    assert 'href="/users"' not in peter.get("/overview").text


@pytest.mark.parametrize("path", [path for path in PATHS if path.startswith("/users")])
def test_somebody_without_the_right_is_told_which_one(peter: Browser, path: str) -> None:
    for address in (path, f"{path}.json"):
        refused = peter.get(address)
        assert refused.status_code == 403
        assert "view_user_list" in refused.text


@pytest.mark.parametrize("path", [path for path in PATHS if path.startswith("/users/")])
@pytest.mark.parametrize("suffix", ["", ".json"])
def test_users_of_other_organizations_are_as_unknown_as_nobody(console: ConsoleOfTest, path: str, suffix: str) -> None:
    olga = console.browser("olga")
    theirs, nobodys = (olga.get(path.replace("peter", user) + suffix) for user in ("peter", "nobody"))

    assert theirs.status_code == nobodys.status_code == 404
    hidden = re.compile(r"peter|nobody|\w{64}")
    assert hidden.sub("", theirs.text) == hidden.sub("", nobodys.text)


@pytest.mark.parametrize("path", PATHS[:5])
def test_another_organization_is_on_no_page(console: ConsoleOfTest, path: str) -> None:
    olga = console.browser("olga")

    assert re.findall(r"john|peter|order-|acme", olga.get(path).text.replace("olga@acme.test", "")) == []


def test_a_credit_user_is_reminded_on_each_page_of_the_pool(john: Browser, peter: Browser) -> None:
    for path in ("/overview", "/usage", "/orders"):
        assert "You are using the credits of john" in peter.get(path).text
        assert "You are using the credits of" not in john.get(path).text


def test_billing_information_is_the_viewers_own(peter: Browser, console: ConsoleOfTest) -> None:
    assert "=1+1" in peter.get("/billing?viewer=john&of=owner").text
    assert "You have no billing information yet" in console.browser("mary").get("/billing").text


# -- what they show ---------------------------------------------------------------------------------------------------


def test_the_overview_shows_what_is_left(john: Browser) -> None:
    page = john.get("/overview").text

    assert re.findall(r'<p class="big">([\d,]+)</p>', page) == ["999", "49"]
    assert "1,000" in page
    assert "10.00 EUR" in page


def test_usage_is_shown_by_day_and_by_member(john: Browser) -> None:
    by_day, by_member = (
        john.get(f"/usage?since=2026-01-01&until=2026-01-08{group}").text for group in ("", "&group=member")
    )

    assert '<th scope="row">5 Jan</th>' in by_day
    assert '<rect class="bar email" x=' in by_day
    assert re.findall(r'<th scope="row">(john|peter)</th>', by_member) == ["john", "peter"]


def test_a_period_without_usage_says_so_and_what_to_do(john: Browser, peter: Browser) -> None:
    nothing = john.get("/usage?since=2020-01-01&until=2020-02-01").text

    assert "Nobody has used any credits in this period." in nothing
    assert '<a href="/usage?">Show the last 30 days</a>' in nothing
    assert "You have used no credits" in peter.get("/usage?of=self&since=2020-01-01&until=2020-02-01").text


@pytest.mark.parametrize(
    "query", ["since=foo", "page=0", "page=x", "page=99999999999999999999", "next=foo", "of=nobody", "until=%00"]
)
def test_a_wrong_address_is_refused_with_a_sentence(john: Browser, query: str) -> None:
    for suffix in ("", ".json", ".csv"):
        assert john.get(f"/usage{suffix}?{query}").status_code == 400


def test_lists_are_csv_too_and_no_cell_is_a_formula(john: Browser) -> None:
    orders, users = john.get("/orders.csv"), john.get("/users.csv")

    assert orders.headers["content-type"] == "text/csv; charset=utf-8"
    assert orders.headers["content-disposition"].startswith('attachment; filename="orders-')
    assert orders.text.splitlines()[0].startswith("order_id,buyer,owner,plan,credits.email,credits.sms,amount")
    assert len(orders.text.splitlines()) == 3
    assert len(users.text.splitlines()) == 5
    assert john.get("/overview.csv").status_code == 404


def test_pages_look_the_same_on_postgresql(filled_on_postgres: Database, john: Browser) -> None:
    with console_on(filled_on_postgres) as console:
        browser = console.browser("john")
        pages = {path: browser.get(path).text for path in ("/overview", "/usage?since=2026-01-01", "/orders", "/users")}

    hidden = re.compile(r"\w{64}")
    assert {path: hidden.sub("", page) for path, page in pages.items()} == {
        path: hidden.sub("", john.get(path).text) for path in pages
    }


# -- the credit owner -------------------------------------------------------------------------------------------------


@pytest.fixture
def changing(valkey_url: str, tmp_path_factory: pytest.TempPathFactory, filled: Database) -> Iterator[ConsoleOfTest]:
    """Give a console with a broker, in which a change goes as far as its queue."""
    with console_on(filled, valkey_url) as console:
        yield console


def test_only_those_can_be_chosen_who_may_pay(john: Browser) -> None:
    page = john.get("/users/mary/credit-owner").text
    choices = re.findall(r'value="(john|mary|peter)" required( disabled)?', page)

    assert choices == [("john", ""), ("mary", ""), ("peter", " disabled")]
    assert "uses the credits of john and has none to share" in page
    assert '<button class="main">Change' not in john.get("/users/mary/credit-owner?owner=peter").text


def test_a_change_of_owner_goes_to_the_queue_and_its_answer_to_who_asked(changing: ConsoleOfTest, redis: Redis) -> None:
    john, other_admin = changing.browser("john"), changing.browser("nina")
    preview = john.get("/users/mary/credit-owner?owner=john").text
    [change_id] = re.findall(r'name="change_id" value="([\w-]+)"', preview)

    sent = john.submit("/users/mary/credit-owner", change_id=change_id, owner="john")
    waiting = john.get(f"/users/mary/credit-owner?change={change_id}").text
    with changing.app.connection_for_read() as connection:
        message = connection.default_channel.basic_get("billing")
        [[job], _, _] = message.decode()
    result = {"status": "SUCCESS", "result": {"status": "refused", "detail": "Not today."}, "children": []}
    redis.set(f"celery-task-meta-{message.headers['id']}", json.dumps(result))

    assert (sent.status_code, sent.headers["location"]) == (303, f"?change={change_id}")
    assert job == {"change_id": change_id, "actor": "john", "user": "mary", "owner": "john"}
    assert "no worker has answered yet" in waiting
    assert "Not today." in john.get(f"/users/mary/credit-owner?change={change_id}").text
    assert "Not today." not in other_admin.get(f"/users/mary/credit-owner?change={change_id}").text


def test_a_change_without_the_form_of_this_session_is_not_sent(changing: ConsoleOfTest) -> None:
    john, peter = changing.browser("john"), changing.browser("peter")
    change = {"change_id": "change-x", "owner": "john"}

    statuses = [
        john.post("/users/mary/credit-owner", **change).status_code,
        john.post("/users/mary/credit-owner", "cross-site", form_token=john.form_token, **change).status_code,
        peter.submit("/users/mary/credit-owner", **change).status_code,
        changing.browser().post("/users/mary/credit-owner", **change).status_code,
    ]

    assert statuses == [403, 403, 403, 401]
    with changing.app.connection_for_read() as connection:
        assert connection.default_channel.basic_get("billing") is None


def test_a_broker_that_is_away_is_told_in_a_sentence(console: ConsoleOfTest, john: Browser) -> None:
    console.app.conf.broker_transport_options = CONNECTING
    console.app.conf.task_publish_retry = False

    told = john.submit("/users/mary/credit-owner", change_id="change-y", owner="john")

    assert told.status_code == 503


def test_the_url_of_a_secure_console_makes_a_secure_cookie(filled: Database) -> None:
    app = create_app(
        Settings(database_url=url_of(filled), broker_url="redis://127.0.0.1:1/0", console_url="https://credits.example")
    )
    app._context = make_context(filled)
    browser = Browser(create_console(app))
    console = ConsoleOfTest(app, app.context)
    link = f"/link/{console_link(console)}"

    headers = {"host": "credits.example", "sec-fetch-site": "same-origin"}
    signed_in = browser.client.post(link, data={"a": "b"}, headers=headers)
    app.close()

    cookie = signed_in.headers["set-cookie"]
    assert cookie.startswith("__Host-postage=")
    assert "Secure" in cookie
    assert signed_in.headers["strict-transport-security"].startswith("max-age=")


def console_link(console: ConsoleOfTest) -> str:
    from tasks.signing_in import link_for  # noqa: PLC0415

    return link_for(console.context, "john")
