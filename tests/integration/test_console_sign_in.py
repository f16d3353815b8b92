"""Signing in to the console: nobody gets in who should not, and nobody stays in who should no longer."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import select, text

from models.database.engine import Database
from models.database.schema import metadata, sign_in_failures
from models.users.passwords import LENGTH_MAX
from models.users.sessions import LINK_LIFE, SESSION_IDLE, SESSION_MAX
from models.users.throttling import FORGOTTEN_AFTER, LIMITS, count_attempt, forgive_attempt
from tasks.erasing import erase_overdue
from tasks.signing_in import SignInRefusedError, link_for, sign_in_by_link
from tests.factories import save_people
from tests.fakes import NOON, answer, make_context
from tests.integration.console_client import PASSWORD, Browser, ConsoleOfTest, console_on
from tests.integration.templates import database_filled_by
from worker.console.screens import SCREENS

people = database_filled_by(save_people)
people_on_sqlite = database_filled_by(save_people, "sqlite")
PATHS = [screen.path.replace("{user_id}", "peter") for screen in SCREENS] + ["/password"]


@pytest.fixture
def console(people_on_sqlite: Database) -> Iterator[ConsoleOfTest]:
    """Give a console in which john and peter have passwords."""
    with console_on(people_on_sqlite) as console:
        for user in ("john", "peter"):
            console.set_password(user)
        yield console


def is_in(browser: Browser) -> bool:
    """Whether somebody is signed in."""
    return browser.get("/overview").status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_somebody_who_is_not_signed_in_is_asked_to(console: ConsoleOfTest, path: str) -> None:
    asked = console.browser().get(path)

    assert (asked.status_code, asked.headers["location"]) == (303, f"/sign-in?next={path.replace('/', '%2F')}")


@pytest.mark.parametrize(("path", "accept"), [("/overview.json", "*/*"), ("/overview", "application/json")])
def test_a_program_that_is_not_signed_in_is_refused(console: ConsoleOfTest, path: str, accept: str) -> None:
    asked = console.browser().get(path, accept=accept)

    assert (asked.status_code, asked.json()["reason"]) == (401, "not_permitted")


def test_a_user_signs_in_and_goes_on_where_they_wanted_to(console: ConsoleOfTest) -> None:
    browser = console.browser()

    signed_in = browser.sign_in("john", next="/orders?of=self")

    assert (signed_in.status_code, signed_in.headers["location"]) == (303, "/orders?of=self")
    assert "HttpOnly" in signed_in.headers["set-cookie"]
    assert is_in(browser)


def test_a_session_that_was_signed_out_is_over_for_whoever_has_its_token(console: ConsoleOfTest) -> None:
    browser, thief = console.browser("john"), console.browser()
    assert browser.token
    thief.keep(browser.token)
    assert is_in(thief)

    browser.submit("/sign-out")

    assert not is_in(browser)
    assert not is_in(thief)


def test_an_unknown_user_is_told_the_same_as_one_with_another_password(console: ConsoleOfTest) -> None:
    wrong, unknown, without = (console.browser().sign_in(user, "something else") for user in ("john", "nobody", "mary"))

    assert wrong.status_code == unknown.status_code == without.status_code == 403
    assert wrong.text == unknown.text.replace("nobody", "john") == without.text.replace("mary", "john")


@pytest.mark.parametrize("password", ["", "x" * (LENGTH_MAX + 1), f"{PASSWORD} ", "\ud800", "\0"])
def test_no_other_text_is_the_password(console: ConsoleOfTest, password: str) -> None:
    assert console.browser().post("/sign-in", user="john", password=password.encode("utf-8", "replace").decode()
                                  ).status_code == 403  # fmt: skip


def test_a_session_begins_with_a_token_that_nobody_has_seen(console: ConsoleOfTest) -> None:
    """Whatever token a browser comes with, an attacker may have put it there."""
    attacker, browser = console.browser("peter"), console.browser()
    assert attacker.token
    browser.keep(attacker.token)

    browser.sign_in("john")

    assert browser.token not in (None, attacker.token)
    assert not is_in(attacker)


@pytest.mark.parametrize("site", ["cross-site", "same-site", "none", None])
def test_a_form_that_another_site_has_sent_does_nothing(console: ConsoleOfTest, site: str | None) -> None:
    browser = console.browser("john")

    assert browser.post("/sign-out", site, form_token=browser.form_token).status_code == 403
    assert console.browser().post("/sign-in", site, user="john", password=PASSWORD).status_code == 403
    assert is_in(browser)


@pytest.mark.parametrize(
    ("origin", "status"), [("http://127.0.0.1:5580", 303), ("https://evil.example", 403), ("null", 403)]
)
def test_an_older_browser_is_known_by_the_origin_of_the_form(console: ConsoleOfTest, origin: str, status: int) -> None:
    form = {"user": "john", "password": PASSWORD}

    assert console.browser().client.post("/sign-in", data=form, headers={"origin": origin}).status_code == status


def test_a_form_of_another_session_does_nothing(console: ConsoleOfTest) -> None:
    browser, attacker = console.browser("john"), console.browser("peter")

    for token in (attacker.form_token, "", browser.token or ""):
        assert browser.post("/sign-out", form_token=token).status_code == 403
    assert is_in(browser)


@pytest.mark.parametrize(
    "elsewhere",
    [
        *("https://evil.example", "//evil.example", "/\\evil.example", "\\\\evil.example", "javascript:alert(1)"),
        *("/\t/evil.example", "/%0d%0aSet-Cookie:a=b\r\nX: y", "evil.example", "", "/a b"),
    ],
)
def test_nobody_is_led_elsewhere_after_signing_in(console: ConsoleOfTest, elsewhere: str) -> None:
    assert console.browser().sign_in("john", next=elsewhere).headers["location"] == "/overview"
    assert console.browser("john").client.get("/sign-in", params={"next": elsewhere}).headers["location"] == "/overview"


# -- failures ---------------------------------------------------------------------------------------------------------


def test_failures_slow_down_also_whoever_knows_the_password(console: ConsoleOfTest) -> None:
    for _ in range(LIMITS["user"].free):
        assert console.browser().sign_in("john", "wrong").status_code == 403

    slowed = console.browser(address="198.51.100.7").sign_in("john")
    console.clock.forward(timedelta(seconds=1))
    later = console.browser().sign_in("john")

    assert (slowed.status_code, slowed.headers["retry-after"]) == (429, "1")
    assert later.status_code == 303


def test_waits_double_and_end(people: Database) -> None:
    waits = []
    now = NOON
    with people.engine.begin() as connection:
        for _ in range(16):
            while wait_s := count_attempt(connection, "john", "192.0.2.1", now):
                waits.append(wait_s)
                now += timedelta(seconds=wait_s)
        is_free = count_attempt(connection, "john", "192.0.2.1", now + FORGOTTEN_AFTER + timedelta(seconds=1))

    assert waits[:7] == [1, 2, 4, 8, 16, 32, 60]
    assert set(waits[7:]) == {60}
    assert is_free == 0


def test_guesses_at_many_users_slow_down_by_address(people: Database) -> None:
    with people.engine.begin() as connection:
        waits = [count_attempt(connection, f"user-{number}", "2001:db8::1", NOON) for number in range(21)]
        neighbour = count_attempt(connection, "user-x", "2001:db8::2", NOON)
        stranger = count_attempt(connection, "user-y", "2001:db8:0:1::1", NOON)

    assert waits == [0.0] * 20 + [1.0]
    assert (neighbour, stranger) == (1.0, 0.0)


def test_somebody_with_a_password_cannot_clear_the_failures_of_their_address(people: Database) -> None:
    with people.engine.begin() as connection:
        for number in range(20):
            count_attempt(connection, f"user-{number}", "192.0.2.1", NOON)
            count_attempt(connection, "peter", "198.51.100.1", NOON - timedelta(minutes=20))
        forgive_attempt(connection, "peter", "192.0.2.1")
        assert count_attempt(connection, "peter", "192.0.2.1", NOON) == 0.0  # the one that was taken back

        assert count_attempt(connection, "peter", "192.0.2.1", NOON) > 0


def test_attempts_at_the_same_time_are_counted_each(people: Database) -> None:
    def attempt(_number: int) -> float:
        return people.write(lambda connection: count_attempt(connection, "john", "192.0.2.1", NOON))

    with ThreadPoolExecutor(8) as pool:
        waits = list(pool.map(attempt, range(24)))

    assert waits.count(0.0) == LIMITS["user"].free


def test_the_table_of_failures_does_not_grow_for_ever(people_on_sqlite: Database) -> None:
    context = make_context(people_on_sqlite)
    with people_on_sqlite.engine.begin() as connection:
        for number in range(50):
            count_attempt(connection, "x" * number, f"192.0.2.{number}", NOON - FORGOTTEN_AFTER)

    erase_overdue(context)

    with people_on_sqlite.engine.begin() as connection:
        assert connection.execute(select(sign_in_failures)).all() == []


# -- sessions ---------------------------------------------------------------------------------------------------------


def test_a_session_that_is_not_used_ends(console: ConsoleOfTest) -> None:
    browser = console.browser("john")
    console.clock.forward(SESSION_IDLE - timedelta(minutes=1))
    assert is_in(browser)

    console.clock.forward(SESSION_IDLE)

    assert not is_in(browser)


def test_a_session_that_is_used_all_the_time_ends_too(console: ConsoleOfTest) -> None:
    browser, hours = console.browser("john"), 0
    while is_in(browser):
        console.clock.forward(timedelta(hours=1))
        hours += 1

    assert timedelta(hours=hours) == SESSION_MAX


def test_a_new_password_ends_every_other_session(console: ConsoleOfTest) -> None:
    here, elsewhere = console.browser("john"), console.browser("john")
    link = link_for(console.context, "john")

    changed = here.submit("/password", old=PASSWORD, new="a longer password", again="a longer password")

    assert (changed.status_code, changed.headers["location"]) == (303, "/password?changed")
    assert (is_in(here), is_in(elsewhere)) == (True, False)
    assert console.browser().get(f"/link/{link}").status_code == 404
    assert console.browser().sign_in("john").status_code == 403
    assert console.browser().sign_in("john", "a longer password").status_code == 303


@pytest.mark.parametrize(
    ("old", "new", "again", "status"),
    [
        ("something else", "a longer password", "a longer password", 403),
        (PASSWORD, "a longer password", "another password", 400),
        (PASSWORD, "short", "short", 400),
        (PASSWORD, "x" * 300, "x" * 300, 400),
    ],
)
def test_a_password_stays_that_cannot_be_changed(
    console: ConsoleOfTest, old: str, new: str, again: str, status: int
) -> None:
    here, elsewhere = console.browser("john"), console.browser("john")

    refused = here.submit("/password", old=old, new=new, again=again)

    assert refused.status_code == status
    assert 'role="alert"' in refused.text
    assert is_in(elsewhere)
    assert console.browser().sign_in("john").status_code == 303


def test_the_password_of_an_open_session_cannot_be_guessed_at_any_speed(console: ConsoleOfTest) -> None:
    browser = console.browser("john")
    new = {"new": "a longer password", "again": "a longer password"}
    statuses = [browser.submit("/password", old=f"guess {number}", **new).status_code for number in range(6)]

    assert statuses == [403] * 5 + [429]


def test_an_erased_user_is_signed_out_and_stays_out(console: ConsoleOfTest) -> None:
    browser, link = console.browser("peter"), link_for(console.context, "peter")

    erased = answer(console.context, "users.erase", {"erasure_id": "e", "actor": "john", "user": "peter"})

    assert erased["status"] == "done"
    assert not is_in(browser)
    assert console.browser().get(f"/link/{link}").status_code == 404
    assert console.browser().sign_in("peter").status_code == 403


def test_a_change_of_role_counts_at_once(console: ConsoleOfTest) -> None:
    browser = console.browser("john")
    assert browser.get("/users").status_code == 200

    answer(console.context, "roles.save", {"organization": "acme", "role": "admin", "rights": []})

    assert browser.get("/users").status_code == 403


# -- links ------------------------------------------------------------------------------------------------------------


def test_a_link_signs_in_once_however_often_it_is_looked_at(console: ConsoleOfTest) -> None:
    path = f"/link/{link_for(console.context, 'mary')}"
    first, second = console.browser(), console.browser()
    assert [first.get(path).status_code for _ in range(3)] == [200] * 3

    first.post(path)
    refused = second.post(path)

    assert (is_in(first), refused.status_code, is_in(second)) == (True, 403, False)


def test_a_link_expires(console: ConsoleOfTest) -> None:
    path = f"/link/{link_for(console.context, 'mary')}"
    console.clock.forward(LINK_LIFE)
    browser = console.browser()

    assert (browser.get(path).status_code, browser.post(path).status_code, is_in(browser)) == (404, 403, False)


def test_two_who_use_a_link_at_the_same_time_are_not_both_signed_in(people: Database) -> None:
    context = make_context(people)
    token = link_for(context, "mary")

    def use(_number: int) -> bool:
        try:
            return bool(sign_in_by_link(context, token))
        except SignInRefusedError:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(use, range(8))) == 1


def test_the_database_holds_nothing_to_sign_in_with(console: ConsoleOfTest) -> None:
    browser, link = console.browser("john"), link_for(console.context, "mary")

    with console.context.database.engine.begin() as connection:
        stored = "".join(str(connection.execute(text(f"SELECT * FROM {table}")).all()) for table in metadata.tables)

    assert "$argon2id$" in stored
    assert [secret for secret in (PASSWORD, browser.token, link) if not secret or secret in stored] == []


def test_what_has_expired_is_deleted(console: ConsoleOfTest) -> None:
    console.browser("john")
    link_for(console.context, "mary")
    console.clock.forward(SESSION_MAX)

    erased = erase_overdue(console.context)

    assert erased == 2
