"""Retries: messages and recipients that the carrier does not take now, and attempts that run out."""

from datetime import timedelta

from models.database.engine import Database
from models.sends.carrier import Email, OutboundMessage, Outcome, Receipt
from models.sends.retry_policy import RetryPolicy
from tasks import upkeep
from tests.factories import balance, email_job, share, sms_job
from tests.fakes import ACCEPTED, NEVER, NOT_NOW, UNSURE, Clock, FakeCarrier, answer, later, make_context, run_enqueued
from tests.integration.sending import LATER, THREE, read_back
from tests.integration.stored import charge_of, findings


def test_a_message_that_is_sent_at_the_second_attempt_is_charged_once(stocked: Database) -> None:
    carrier = FakeCarrier(NOT_NOW)
    context = make_context(stocked, sms=carrier)

    first = answer(context, "sms.send", sms_job())

    assert (first["status"], first["reason"], first["attempts"]) == ("retrying", "carrier_unavailable", 1)
    assert first["next_attempt_at"] is not None
    assert balance(stocked, "john", "sms") == 9

    later(context)

    final = read_back(context)
    assert (final["status"], final["reason"], final["detail"], final["attempts"]) == ("sent", None, None, 2)
    assert final["next_attempt_at"] is None
    assert balance(stocked, "john", "sms") == 9
    assert carrier.job_ids == ["job-1", "job-1"]


def test_a_job_is_not_tried_again_before_it_is_due(stocked: Database) -> None:
    carrier = FakeCarrier(NOT_NOW)
    context = make_context(stocked, sms=carrier)
    answer(context, "sms.send", sms_job())

    later(context, timedelta(seconds=1))

    assert carrier.job_ids == ["job-1"]


def test_a_job_fails_and_is_refunded_when_its_attempts_are_used_up(stocked: Database) -> None:
    carrier = FakeCarrier(*[NOT_NOW] * 5)
    context = make_context(stocked, sms=carrier, policy=RetryPolicy(attempts_max=3))
    answer(context, "sms.send", sms_job())

    for _ in range(5):
        later(context)

    final = read_back(context)
    assert (final["status"], final["reason"], final["attempts"]) == ("failed", "carrier_unavailable", 3)
    assert final["credits"] == 0
    assert len(carrier.messages) == 3
    assert balance(stocked, "john", "sms") == 10
    assert findings(stocked) == []


def test_a_waiting_job_is_refunded_to_the_account_that_paid(stocked: Database) -> None:
    context = make_context(stocked, email=FakeCarrier(NOT_NOW, NEVER))
    answer(context, "email.send", email_job(sender="peter"))
    share(stocked, "peter", "peter")

    later(context)

    assert (balance(stocked, "john"), balance(stocked, "peter")) == (10, 0)
    assert read_back(context)["paid_by"] == "john"


def test_only_deferred_recipients_are_tried_again(stocked: Database) -> None:
    partial = Receipt(Outcome.ACCEPTED, deferred={THREE[2]: "451 later"}, refused={THREE[1]: "550 never"})
    carrier = FakeCarrier(partial, Receipt(Outcome.ACCEPTED, reference="ref-2"))
    context = make_context(stocked, email=carrier)

    first = answer(context, "email.send", email_job(to=THREE))
    later(context)

    assert (first["status"], first["credits"]) == ("retrying", 3)
    emails = [message for message in carrier.messages if isinstance(message, Email)]
    assert [email.recipients for email in emails] == [tuple(THREE), (THREE[2],)]
    assert [email.to for email in emails] == [tuple(THREE)] * 2
    final = read_back(context)
    assert (final["status"], final["credits"], final["attempts"]) == ("sent", 2, 2)
    assert final["recipients_refused"] == {THREE[1]: "550 never"}
    assert balance(stocked, "john") == 8


def test_a_recipient_deferred_until_the_last_attempt_is_refunded(stocked: Database) -> None:
    partial = Receipt(Outcome.ACCEPTED, deferred={THREE[2]: "451 later"})
    context = make_context(stocked, email=FakeCarrier(partial, NOT_NOW), policy=RetryPolicy(attempts_max=2))
    answer(context, "email.send", email_job(to=THREE))

    later(context)

    final = read_back(context)
    assert (final["status"], final["credits"], final["attempts"]) == ("sent", 2, 2)
    assert list(final["recipients_refused"]) == [THREE[2]]
    assert balance(stocked, "john") == 8
    assert findings(stocked) == []


def test_an_unsure_outcome_stays_charged_and_is_never_sent_again(stocked: Database) -> None:
    carrier = FakeCarrier(UNSURE)
    context = make_context(stocked, email=carrier)

    answered = answer(context, "email.send", email_job())
    later(context)

    assert (answered["status"], answered["credits"], answered["detail"]) == ("unknown", 1, "The line went dead.")
    assert read_back(context)["status"] == "unknown"
    assert len(carrier.messages) == 1
    assert balance(stocked, "john") == 9
    assert charge_of(stocked).content is not None


def test_an_idempotent_carrier_is_asked_again_after_an_unsure_outcome(stocked: Database) -> None:
    carrier = FakeCarrier(UNSURE, is_idempotent=True)
    context = make_context(stocked, sms=carrier)

    first = answer(context, "sms.send", sms_job())
    later(context)

    assert first["status"] == "retrying"
    assert read_back(context)["status"] == "sent"
    assert carrier.job_ids == ["job-1", "job-1"]


def test_a_job_that_was_once_unsure_is_not_refunded_in_the_end(stocked: Database) -> None:
    carrier = FakeCarrier(UNSURE, NOT_NOW, is_idempotent=True)
    context = make_context(stocked, sms=carrier, policy=RetryPolicy(attempts_max=2))
    answer(context, "sms.send", sms_job())

    later(context)

    assert (read_back(context)["status"], read_back(context)["credits"]) == ("unknown", 1)
    assert balance(stocked, "john", "sms") == 9


def test_a_job_is_released_if_the_lease_leaves_no_time_for_it(stocked: Database) -> None:
    clock = Clock()
    carrier = FakeCarrier(NOT_NOW, NOT_NOW)
    carrier.capacity = 1
    context = make_context(stocked, sms=carrier, clock=clock)
    for job_id in ("a", "b"):
        answer(context, "sms.send", sms_job(job_id))
    clock.forward(LATER)
    upkeep.sweep(context)

    def take_long(_: OutboundMessage) -> Receipt:
        clock.forward(context.retry_policy.lease / 2 + timedelta(seconds=1))
        return ACCEPTED

    carrier.script = [take_long]
    run_enqueued(context)

    assert (charge_of(stocked, "a").state, charge_of(stocked, "a").attempts) == ("sent", 2)
    assert (charge_of(stocked, "b").state, charge_of(stocked, "b").attempts) == ("waiting", 1)

    later(context)

    assert (charge_of(stocked, "b").state, charge_of(stocked, "b").attempts) == ("sent", 2)
