"""Workers that crash during an attempt, and what a sweep does with their jobs."""

from datetime import timedelta
from typing import Any

import pytest
import structlog

from models.database.engine import Database
from models.sends.carrier import Email, Outcome, Receipt
from models.sends.outcomes import CRASHES_MAX
from models.sends.retry_policy import RetryPolicy
from tasks import upkeep
from tasks.context import Context, Json
from tests.factories import balance, email_job, sms_job
from tests.fakes import NOON, NOT_NOW, Clock, FakeCarrier, answer, later, make_context, run_enqueued
from tests.integration.sending import (
    CRASH,
    THREE,
    bulk_job,
    crash,
    crash_after_handover,
    crash_later,
    pass_time,
    read_back,
    scripted_context,
)
from tests.integration.stored import charge_of, findings, letters_of, only_letter_of


def test_a_crash_leaves_the_job_charged_and_held(stocked: Database) -> None:
    carrier = FakeCarrier(CRASH)
    context = make_context(stocked, email=carrier)

    crash(context, "email.send", email_job())

    assert charge_of(stocked).state == "sending"
    assert balance(stocked, "john") == 9
    again = answer(context, "email.send", email_job())
    assert (again["status"], again["credits"]) == ("sending", 1)
    assert len(carrier.messages) == 1


def test_a_crashed_attempt_ends_with_its_lease_and_is_made_again(stocked: Database) -> None:
    """Nothing was handed over, so nothing can be sent twice."""
    carrier, clock = FakeCarrier(CRASH), Clock()
    context = make_context(stocked, email=carrier, clock=clock)
    crash(context, "email.send", email_job())

    clock.forward(context.retry_policy.lease - timedelta(seconds=1))
    early = upkeep.sweep(context)
    clock.forward(timedelta(seconds=2))
    late = upkeep.sweep(context)

    assert (early["ended"], late["ended"], late["resumed"]) == (0, 1, 0)
    waiting = read_back(context)
    assert (waiting["status"], waiting["reason"], waiting["credits"]) == ("retrying", None, 1)
    assert "The worker crashed" in waiting["detail"]
    assert (charge_of(stocked).crashes, charge_of(stocked).handover_started_at) == (1, None)

    later(context)

    final = read_back(context)
    assert (final["status"], final["detail"], final["attempts"]) == ("sent", None, 2)
    assert carrier.job_ids == ["job-1", "job-1"]
    assert balance(stocked, "john") == 9
    assert findings(stocked) == []


def test_the_next_attempt_after_a_crash_is_delayed_like_any_retry(stocked: Database) -> None:
    """The cause of the crash may pass with time."""
    context = make_context(stocked, email=FakeCarrier(CRASH))
    crash(context, "email.send", email_job())

    pass_time(context)
    upkeep.sweep(context)

    due_at = charge_of(stocked).due_at
    assert due_at is not None
    assert timedelta() < due_at - context.now() <= context.retry_policy.delay(1, draw=1)


def test_an_email_is_unknown_after_a_crash_during_its_handover(stocked: Database) -> None:
    carrier = FakeCarrier(crash_after_handover)
    context = make_context(stocked, email=carrier)
    crash(context, "email.send", email_job())

    for _ in range(3):
        later(context)

    final = read_back(context)
    assert (final["status"], final["reason"], final["credits"]) == ("unknown", None, 1)
    assert "may have taken the message" in final["detail"]
    assert (charge_of(stocked).crashes, charge_of(stocked).handover_started_at) == (1, NOON)
    assert len(carrier.messages) == 1
    assert balance(stocked, "john") == 9
    assert findings(stocked) == []


@pytest.mark.parametrize(("last", "status"), [(CRASH, "retrying"), (crash_after_handover, "unknown")])
def test_a_crash_clears_the_reason_of_an_earlier_attempt(stocked: Database, last: Any, status: str) -> None:
    context = make_context(stocked, email=FakeCarrier(NOT_NOW, last))
    answer(context, "email.send", email_job())
    crash_later(context)

    later(context)

    final = read_back(context)
    assert (final["status"], final["reason"], final["attempts"]) == (status, None, 2)
    assert "crashed" in final["detail"]


def test_an_answered_handover_leaves_no_doubt_after_a_later_crash(stocked: Database) -> None:
    """The carrier has answered that it did not take the message, so nobody has it."""
    context = make_context(stocked, email=FakeCarrier(NOT_NOW, CRASH))
    answer(context, "email.send", email_job())
    crash_later(context)
    later(context)

    later(context)

    assert (read_back(context)["status"], read_back(context)["attempts"]) == ("sent", 3)


def test_recipients_who_were_reached_are_not_tried_again_after_a_crash(stocked: Database) -> None:
    partial = Receipt(Outcome.ACCEPTED, deferred={THREE[2]: "451 later"}, refused={THREE[1]: "550 never"})
    carrier = FakeCarrier(partial, CRASH)
    context = make_context(stocked, email=carrier)
    answer(context, "email.send", email_job(to=THREE))
    crash_later(context)

    later(context)
    later(context)

    emails = [message for message in carrier.messages if isinstance(message, Email)]
    assert [email.recipients for email in emails] == [tuple(THREE), (THREE[2],), (THREE[2],)]
    final = read_back(context)
    assert (final["status"], final["credits"], list(final["recipients_refused"])) == ("sent", 2, [THREE[1]])
    assert findings(stocked) == []


@pytest.mark.parametrize("crashing", [CRASH, crash_after_handover])
def test_an_idempotent_carrier_is_asked_again_after_a_crash(stocked: Database, crashing: Any) -> None:
    carrier = FakeCarrier(crashing, is_idempotent=True)
    context = make_context(stocked, sms=carrier)
    crash(context, "sms.send", sms_job())

    later(context)
    while_waiting = charge_of(stocked)
    later(context)

    assert (while_waiting.state, while_waiting.crashes) == ("waiting", 1)
    assert while_waiting.handover_started_at is not None
    assert (read_back(context)["status"], read_back(context)["attempts"]) == ("sent", 2)
    assert carrier.job_ids == ["job-1", "job-1"]
    assert balance(stocked, "john", "sms") == 9


def test_an_idempotent_carrier_may_have_a_job_whose_last_attempt_crashed(stocked: Database) -> None:
    """It has no handover to look at, so the job is unknown."""
    carrier = FakeCarrier(CRASH, is_idempotent=True)
    context = make_context(stocked, sms=carrier, policy=RetryPolicy(attempts_max=1))
    crash(context, "sms.send", sms_job())

    later(context)

    assert read_back(context)["status"] == "unknown"
    assert balance(stocked, "john", "sms") == 9


def test_a_job_whose_last_attempt_crashed_before_the_handover_fails(stocked: Database) -> None:
    context = make_context(stocked, email=FakeCarrier(CRASH), policy=RetryPolicy(attempts_max=1))
    crash(context, "email.send", email_job())

    later(context)

    assert (read_back(context)["status"], read_back(context)["reason"]) == ("failed", "carrier_unavailable")
    assert balance(stocked, "john") == 10
    assert findings(stocked) == []


def crash_too_often(context: Context, task: str, job: Json) -> None:
    """Let as many workers crash during attempts of a job as may crash."""
    crash(context, task, job)
    for _ in range(CRASHES_MAX - 1):
        later(context)
        crash_later(context)


def test_a_job_with_too_many_crashes_fails_and_becomes_a_dead_letter(stocked: Database) -> None:
    """The job itself may make its workers crash. It is kept, to be replayed once that bug is fixed."""
    carrier = FakeCarrier(*[CRASH] * (CRASHES_MAX + 1))
    context = make_context(stocked, email=carrier)
    crash_too_often(context, "email.send", email_job(to=THREE))

    for _ in range(3):
        later(context)

    final = read_back(context)
    assert (final["status"], final["reason"], final["credits"]) == ("failed", "carrier_unavailable", 0)
    assert f"{CRASHES_MAX} workers crashed" in final["detail"]
    assert (charge_of(stocked).crashes, charge_of(stocked).content) == (CRASHES_MAX, None)
    assert len(carrier.messages) == CRASHES_MAX
    assert balance(stocked, "john") == 10
    letter = only_letter_of(stocked)
    assert (letter.key, letter.status, letter.job["to"]) == ("job-1", "failed", THREE)
    assert findings(stocked) == []


def test_the_dead_letter_of_a_job_with_too_many_crashes_says_why(stocked: Database) -> None:
    context = scripted_context(stocked, *[CRASH] * CRASHES_MAX)
    crash_too_often(context, "email.send", email_job())

    later(context)

    letter = only_letter_of(stocked)
    assert (letter.status, letter.reason, letter.key) == ("failed", "carrier_unavailable", "job-1")
    assert "it may be what crashes them" in letter.detail
    assert balance(stocked, "john") == 10
    assert findings(stocked) == []


def test_an_idempotent_carrier_may_have_a_job_with_too_many_crashes(stocked: Database) -> None:
    """So it is unknown, and there is no dead letter."""
    carrier = FakeCarrier(*[CRASH] * (CRASHES_MAX + 1), is_idempotent=True)
    context = make_context(stocked, sms=carrier)
    crash_too_often(context, "sms.send", sms_job())

    for _ in range(3):
        later(context)

    assert (read_back(context)["status"], charge_of(stocked).crashes) == ("unknown", CRASHES_MAX)
    assert len(carrier.messages) == CRASHES_MAX
    assert balance(stocked, "john", "sms") == 9
    assert letters_of(stocked) == []


@pytest.mark.parametrize(
    ("crashing", "state", "level"), [(CRASH, "waiting", "warning"), (crash_after_handover, "unknown", "error")]
)
def test_a_crash_is_logged_as_an_error_if_a_person_must_look(
    stocked: Database, crashing: Any, state: str, level: str
) -> None:
    context = make_context(stocked, email=FakeCarrier(crashing))
    crash(context, "email.send", email_job(sender="peter"))

    with structlog.testing.capture_logs() as logged:
        later(context)

    [line] = [line for line in logged if line["event"] == "worker crashed during an attempt"]
    assert (line["log_level"], line["state"]) == (level, state)
    assert (line["job"], line["sender"], line["payer"]) == ("job-1", "peter", "john")


@pytest.mark.parametrize(
    ("bug", "end"), [(CRASH, ("sent", 2, 1)), (crash_after_handover, ("unknown", 1, 1))], ids=["before", "after"]
)
def test_a_bug_in_one_message_does_not_stop_the_messages_behind_it(
    stocked: Database, bug: Any, end: tuple[str, int, int]
) -> None:
    """They certainly did not reach the carrier, and no worker crashed during their attempts."""
    context = make_context(stocked, email=FakeCarrier(bug))
    answer(context, "email.send_many", bulk_job())
    with pytest.raises(ZeroDivisionError):
        run_enqueued(context)

    for _ in range(3):
        later(context)

    messages = [charge_of(stocked, f"bulk-1/{number}") for number in range(3)]
    assert [(message.state, message.attempts, message.crashes) for message in messages] == [
        end,
        ("sent", 1, 0),
        ("sent", 1, 0),
    ]
