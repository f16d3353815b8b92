"""The command `postage dead` for dead letters: list, show and replay."""

from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import Result
from redis import Redis

from models.database.engine import Database
from tests.factories import email_job, purchase_order, sms_job
from tests.fakes import NEVER, answer
from tests.integration.commands import Run, open_app, printed, runner_of
from tests.integration.queued import NO_BROKER, jobs_on, wait_for_no_broker
from tests.integration.sending import pass_time, scripted_context
from tests.integration.stored import letters_of
from tests.integration.templates import url_of
from worker.cli.dead import PRIVATE, dead


@pytest.fixture
def run(stocked: Database, valkey_url: str) -> Iterator[Run]:
    """Give `postage dead` with a real broker."""
    with open_app(url_of(stocked), valkey_url) as app:
        yield runner_of(dead, app)


def rows(result: Result) -> list[tuple[Any, ...]]:
    """Give the letters of a list as (kind, task, key, reason)."""
    return [(row["kind"], row["task"], row["key"], row["reason"]) for row in printed(result)["rows"]]


@pytest.fixture
def three_letters(stocked: Database) -> Database:
    """Give a database with a refused email, a failed text an hour later, and a refused purchase an hour after that."""
    context = scripted_context(stocked, NEVER)
    answer(context, "email.send", email_job("mail", sender="nobody"))
    pass_time(context)
    answer(context, "sms.send", sms_job("text"))
    pass_time(context)
    answer(context, "credits.purchase", purchase_order(buyer="nobody", email=1))
    return stocked


def test_dead_letters_are_listed_newest_first_without_their_contents(run: Run, three_letters: Database) -> None:
    listed, shown = run("list", "--json"), run("list")

    assert rows(listed) == [
        ("refused", "credits.purchase", "order-1", "unknown_user"),
        ("failed", "sms.send", "text", "carrier_refused"),
        ("refused", "email.send", "mail", "unknown_user"),
    ]
    assert (listed.exit_code, shown.exit_code) == (0, 0)
    assert "order-1" in shown.stdout
    for private in ("ada@example.test", "Hello", "+31612345678", "Acme"):
        assert private not in listed.stdout + shown.stdout


def test_the_list_can_be_narrowed_by_kind_and_time(run: Run, three_letters: Database) -> None:
    assert [row[2] for row in rows(run("list", "--kind", "failed", "--json"))] == ["text"]
    assert [row[2] for row in rows(run("list", "--since", "2026-01-05T13:00:00Z", "--json"))] == ["order-1", "text"]
    assert printed(run("list", "--json"))["next"] is None
    assert run("list", "--since", "yesterday").exit_code == 2


def test_a_letter_is_shown_whole_with_a_warning(run: Run, three_letters: Database) -> None:
    [letter_id] = [row["id"] for row in printed(run("list", "--kind", "failed", "--json"))["rows"]]

    whole, shown = run("show", letter_id, "--json"), run("show", letter_id)

    assert printed(whole)["job"] == sms_job("text")
    assert PRIVATE in whole.stderr
    assert PRIVATE in shown.stderr
    assert '"text": "Hello Ada"' in shown.stdout


@pytest.mark.parametrize("letter_id", ["7", "-1", "99999999999999999999999", "x", "q0123456789abcdef", "²"])
def test_an_id_that_does_not_exist_is_refused_in_a_sentence(run: Run, letter_id: str) -> None:
    arguments = ("--", letter_id)
    shown, replayed = run("show", *arguments), run("replay", *arguments)

    assert (shown.exit_code, replayed.exit_code) == (1, 1)
    assert "There is no" in shown.stderr
    assert "There is no" in replayed.stdout


def test_a_letter_is_replayed_onto_its_queue(run: Run, three_letters: Database, redis: Redis) -> None:
    [letter_id] = [row["id"] for row in printed(run("list", "--kind", "failed", "--json"))["rows"]]

    replayed = run("replay", letter_id)
    again = run("replay", letter_id, "--json")

    assert (replayed.exit_code, again.exit_code) == (0, 0)
    assert f"{letter_id}: sms.send is enqueued again, as text:r1." in replayed.stdout
    assert printed(again)["rows"] == [{"id": letter_id, "task": "sms.send", "replayed_as": "text:r1", "detail": None}]
    assert jobs_on(redis, "sms") == [sms_job("text:r1")] * 2
    [row] = printed(run("list", "--kind", "failed", "--json"))["rows"]
    assert row["replayed_as"] == "text:r1"


def test_all_letters_that_were_not_replayed_yet_are_replayed(run: Run, three_letters: Database, redis: Redis) -> None:
    only_refused = run("replay", "--all", "--kind", "refused", "--json")
    rest = run("replay", "--all", "--json")
    nothing = run("replay", "--all")

    assert [row["replayed_as"] for row in printed(only_refused)["rows"]] == ["mail:r1", "order-1"]
    assert [row["replayed_as"] for row in printed(rest)["rows"]] == ["text:r1"]
    assert "Nothing to replay." in nothing.stdout
    assert [redis.llen(queue) for queue in ("email", "sms", "billing")] == [1, 1, 1]


@pytest.mark.parametrize("arguments", [(), ("7", "--all"), ("7", "--kind", "failed")])
def test_a_replay_needs_either_ids_or_all(sqlite_url: str, arguments: tuple[str, ...]) -> None:
    with open_app(sqlite_url, NO_BROKER) as app:
        assert runner_of(dead, app)("replay", *arguments).exit_code == 2


def test_letters_are_listed_but_not_replayed_without_a_broker(three_letters: Database) -> None:
    with open_app(url_of(three_letters), NO_BROKER) as app:
        wait_for_no_broker(app)
        run = runner_of(dead, app)

        listed = run("list", "--json")
        replayed = run("replay", str(letters_of(three_letters)[0].id))

    assert (listed.exit_code, len(printed(listed)["rows"])) == (0, 3)
    assert "broker does not answer" in printed(listed)["detail"]
    assert replayed.exit_code == 1
    assert "The broker does not answer" in replayed.stderr
    assert [letter.replayed_as for letter in letters_of(three_letters)] == [None] * 3
