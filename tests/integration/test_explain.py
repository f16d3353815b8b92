"""`views.explain` and `postage explain`: who asked, whose credits and why, what carriers said, and how it ended."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from models.database.engine import Database
from models.database.schema import accounts, entries
from models.messages.answers import StoryAnswer
from models.reports.rollup import same_account
from models.sends.erasure import WORDS_ERASED
from tasks import upkeep
from tasks.context import Context
from tests.factories import buy, email_job, share
from tests.fakes import NOON, Clock, answer, later, make_context
from tests.integration.commands import Run, open_app, printed, runner_of
from tests.integration.queued import NO_BROKER
from tests.integration.sending import LATER, pass_time, read_back
from tests.integration.stories import AFTERWARDS, all_charges, live_through_everything, moved, story_of
from tests.integration.templates import database_filled_by, url_of
from tests.integration.test_carriers import CUT_OFF, DOWN, context_with, first_and_second
from tests.unit.test_docs import section, table
from worker.cli.explain import explain

Json = dict[str, Any]

JOBS = ("in-part", "never", "resent", "given-back", "unknown", "bulk", "bulk/1", "cancelled", "cancelled/0", "poor",
        "poor:r1", "wrong", "later", "held", "waits")  # fmt: skip


stories = database_filled_by(live_through_everything)
"""A database in which jobs have lived through everything that a story can tell."""


@pytest.fixture
def lived(stories: Database) -> Context:
    """Give a context afterwards."""
    return make_context(stories, clock=Clock(AFTERWARDS))


def told(context: Context, job_id: str, viewer: str = "john") -> list[Json]:
    """Give the story of a job as a viewer sees it."""
    answered = answer(context, "views.explain", {"viewer": viewer, "job_id": job_id})
    StoryAnswer.model_validate(answered)
    story: list[Json] = answered["story"]
    return story


def kinds(story: list[Json]) -> list[str]:
    return [event["kind"] for event in story]


def texts(story: list[Json]) -> str:
    return "\n".join(event["text"] for event in story)


# -- what is told -----------------------------------------------------------------------------------------------------


def test_attempts_and_credits_of_a_message_are_told_in_order(lived: Context) -> None:
    story = told(lived, "in-part", "peter")

    assert kinds(story) == ["asked", "charged", "attempt", "attempt", "attempt", "settled", "refunded"]
    assert [(one["attempt"], one["carrier"], one["outcome"]) for one in story if one["kind"] == "attempt"] == [
        (1, "mail", "not_now"),
        (2, "mail", "accepted"),
        (3, "mail", "accepted"),
    ]
    assert [one["at"] for one in story] == sorted(one["at"] for one in story)
    assert story[1]["owner_change"] == {
        "change_id": story[1]["owner_change"]["change_id"],
        "actor": "john",
        "owner": "john",
        "at": "2026-01-05T12:00:00.000+00:00",
    }
    assert "john paid 3 email credits, because peter spent those of john since 2026-01-05 12:00:00" in texts(story)
    assert "1 email credit went back to john, for 1 of 3 recipients; entry email/" in texts(story)


def test_a_message_that_was_taken_at_once_has_its_attempt_too(stocked: Database) -> None:
    """It left no note: what is told comes from its charge."""
    context = make_context(stocked)
    answer(context, "email.send", email_job())

    story = told(context, "job-1")

    assert kinds(story) == ["asked", "charged", "attempt", "settled"]
    assert (story[2]["carrier"], story[2]["outcome"], story[2]["attempt"]) == ("mail", "accepted", 1)
    assert "john paid 1 email credit of their own; entry email/2, which left 9." in texts(story)


@pytest.mark.parametrize(
    ("job_id", "expected", "words"),
    [
        ("never", ["attempt", "settled", "refunded", "dead_letter"], "went back to john, for all of it"),
        ("resent", ["attempt", "decided", "attempt", "settled"], "anna decided to send it again: asked …"),
        ("given-back", ["attempt", "decided", "settled", "refunded", "dead_letter"], "anna decided that it was not"),
        ("unknown", ["attempt", "in_doubt", "unknown"], "stays charged until a person decides"),
        ("cancelled/0", ["cancelled", "settled", "refunded"], "peter cancelled it (c-1)"),
        ("held", ["handed_over", "sending"], "mail is handed the message from then on"),
        ("waits", ["attempt", "waits"], "450 4.2.0 <…>: greylisted"),
    ],
)
def test_how_a_job_went_on_after_its_charge(lived: Context, job_id: str, expected: list[str], words: str) -> None:
    story = told(lived, job_id)

    assert kinds(story) == ["asked", "charged", *expected]
    assert words in texts(story)


def test_an_attempt_at_two_carriers_names_both(stocked: Database) -> None:
    _, _, routes = first_and_second(DOWN)
    context = context_with(stocked, *routes)
    answer(context, "email.send", email_job())

    tries = [one for one in told(context, "job-1") if one["kind"] == "attempt"]

    assert [(one["attempt"], one["carrier"], one["outcome"]) for one in tries] == [
        (1, "a", "not_now"),
        (1, "b", "accepted"),
    ]


def test_a_doubt_that_lasts_is_told_with_why(stocked: Database) -> None:
    """The carrier that may have the message is not set up any more when it would be asked again."""
    _, _, routes = first_and_second(CUT_OFF, is_idempotent=True)
    context = context_with(stocked, *routes)
    answer(context, "email.send", email_job())
    later(context_with(stocked, routes[1], clock=Clock(NOON + LATER)))

    unknown = told(context, "job-1")[-1]

    assert unknown["kind"] == "unknown"
    assert unknown["why"] == "a may have taken it, and is not set up any more, so it cannot be asked."


def test_a_job_that_was_refused_is_told_with_why_and_with_its_replay(lived: Context) -> None:
    first, replay = told(lived, "poor"), told(lived, "poor:r1")

    assert kinds(first) == ["asked", "refused", "dead_letter", "replayed"]
    assert (first[1]["reason"], first[3]["replayed_as"]) == ("insufficient_credits", "poor:r1")
    assert replay[0]["replay_of"] == "poor"
    assert kinds(told(lived, "wrong")) == ["asked", "refused", "dead_letter"]


def test_a_job_that_is_not_due_yet_is_told_with_its_time(lived: Context) -> None:
    story = told(lived, "later")

    assert kinds(story) == ["asked", "postponed"]
    assert (story[0]["at"], story[1]["until"]) == ("2026-01-05T12:00:00.000+00:00", "2026-01-06T12:00:00.000+00:00")


def test_a_bulk_job_tells_how_many_and_where_to_look(lived: Context) -> None:
    bulk, cancelled = told(lived, "bulk"), told(lived, "cancelled")

    assert kinds(bulk) == ["asked", "charged", "messages"]
    assert (bulk[1]["credits"], bulk[2]["messages"], bulk[2]["first"]) == (3, {"sent": 3}, "bulk/0")
    assert kinds(cancelled) == ["asked", "charged", "refunded", "messages"]
    assert told(lived, "bulk/1")[0]["bulk"] == "bulk"


def test_every_event_has_the_documented_fields(lived: Context) -> None:
    """Every kind, and no other."""
    documented = {
        row["event"].strip("`"): re.findall(r"`(\w+)`", row["fields"])
        for row in table(section("views.explain"), "event")
    }

    events = [event for job_id in JOBS for event in told(lived, job_id)]

    assert {event["kind"]: [*event] for event in events} == {
        kind: ["at", "kind", "text", *fields] for kind, fields in documented.items()
    }


def test_a_story_comes_with_the_answer(lived: Context) -> None:
    for job_id in JOBS:
        answered = answer(lived, "views.explain", {"viewer": "john", "job_id": job_id})
        assert answered == read_back(lived, job_id) | {"story": answered["story"]}


# -- what is not told -------------------------------------------------------------------------------------------------


def test_no_address_is_told(lived: Context) -> None:
    for job_id in JOBS:
        assert "@" not in str(told(lived, job_id)), job_id
        assert "@" not in str(story_of(lived.database, job_id)), job_id


def test_words_are_told_until_they_are_erased(lived: Context) -> None:
    pass_time(lived, lived.keep_personal * 2)
    upkeep.sweep(lived)

    assert [one["words"] for one in told(lived, "in-part") if one["kind"] == "attempt"] == [WORDS_ERASED, None, None]
    assert kinds(told(lived, "cancelled/0"))[2] == "cancelled", "who cancelled it is known all the same"


@pytest.mark.parametrize(
    ("viewer", "reason"), [("mary", "not_permitted"), ("olga", "not_found"), ("nobody", "unknown_user")]
)
def test_those_who_may_not_read_the_answer_are_told_nothing(lived: Context, viewer: str, reason: str) -> None:
    answered = answer(lived, "views.explain", {"viewer": viewer, "job_id": "in-part"})

    assert (answered["status"], answered["reason"], answered["story"]) == ("refused", reason, [])


def test_a_sender_who_left_the_pool_is_not_told_its_balance(lived: Context) -> None:
    share(lived.database, "peter", "peter", now=AFTERWARDS)

    seen, seen_by_owner = (told(lived, "in-part", viewer)[1] for viewer in ("peter", "john"))

    assert (seen["credits"], seen["entry"]) == (seen_by_owner["credits"], seen_by_owner["entry"])
    assert (seen["entry_amount"], seen["balance_after"]) == (None, None)
    assert "left" not in seen["text"]
    assert seen_by_owner["balance_after"] is not None


# -- credits ----------------------------------------------------------------------------------------------------------


def test_what_stories_say_of_credits_is_what_charges_and_entries_say(lived: Context) -> None:
    assert_credits_agree(lived.database)


def test_it_is_so_after_a_busy_day(busy: Database) -> None:
    assert_credits_agree(busy)


def assert_credits_agree(database: Database) -> None:
    """Each story has the credits of its charge, and those of all stories make up each entry."""
    of_entries: Counter[tuple[str, str]] = Counter()
    amounts = {}
    for charge in all_charges(database):
        story = story_of(database, charge.job_id)
        charged, back = moved(story, "charged"), moved(story, "refunded")
        assert sum(one["credits"] for one in charged) == (charge.credits if charge.account_id else 0)
        assert sum(one["credits"] for one in back) == charge.refunded
        for sign, moves in ((-1, charged), (1, back)):
            for one in moves:
                of_entries[one["paid_by"], one["entry"]] += sign * one["credits"]
                amounts[one["paid_by"], one["entry"]] = one["entry_amount"]
    assert of_entries == amounts == usage_entries(database)


def usage_entries(database: Database) -> dict[tuple[str, str], int]:
    """Give the amount of each entry that charged or gave back, by owner and name."""
    with database.snapshot() as connection:
        found = connection.execute(
            select(accounts.c.owner_id, accounts.c.kind, entries.c.seq, entries.c.amount)
            .join(entries, same_account(entries))
            .where(entries.c.cause_kind.in_(["charge", "refund"]))
        )
        return {(owner, f"{kind}/{seq}"): amount for owner, kind, seq, amount in found}


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(lived: Context) -> Iterator[Run]:
    """Give `postage explain`, which needs no broker."""
    with open_app(url_of(lived.database), NO_BROKER) as app:
        yield runner_of(explain, app)


def test_the_command_prints_a_timeline(run: Run) -> None:
    shown = run("resent")

    assert shown.exit_code == 0
    first, *lines = shown.stdout.splitlines()
    assert first.split() == ["resent", "sent"]
    assert next(line for line in lines if "anna decided to send it again" in line).split()[:3] == [
        "2026-01-05",
        "18:01:00",
        "decided",
    ]
    assert any(line.split()[:2] == ["now", "waits"] for line in run("waits").stdout.splitlines())


def test_the_story_of_a_refused_job_is_shown_as_well(run: Run) -> None:
    shown = run("poor", "--json")

    assert (shown.exit_code, run("poor").exit_code) == (0, 0)
    assert kinds(printed(shown)["story"])[:2] == ["asked", "refused"]
    assert printed(shown)["story"][2]["letter"] is not None, "operators are told the number of the letter"


def test_a_viewer_is_shown_what_they_may_see(run: Run) -> None:
    assert run("in-part", "--as", "peter").exit_code == 0
    refused = run("in-part", "--as", "mary")
    assert (refused.exit_code, "Refused (not_permitted)" in refused.stderr) == (1, True)
    assert run("in-part", "--as", "john", "--organization", "acme").exit_code == 2


def test_an_id_of_several_organizations_needs_one(run: Run, lived: Context) -> None:
    buy(lived.database, "olga", email=5)
    answer(lived, "email.send", email_job("never", "olga"))

    assert "acme and other use the id never: say --organization." in run("never").stderr
    assert "olga paid 1 email credit" in run("never", "--organization", "other").stdout
    assert run("nobody's").exit_code == 1
