"""Unknown messages: each is settled by a person once, and the decision is recorded."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import delete, update
from sqlalchemy.exc import DatabaseError

from models.database.engine import Database
from models.database.schema import decisions
from models.sends.carrier import Email, OutboundMessage, Outcome, Receipt
from models.sends.charges import Charge, State
from models.sends.retry_policy import RetryPolicy
from models.sends.unknown import refund_unknown, resend_unknown
from tasks import upkeep
from tasks.context import Context
from tests.factories import acme, balance, email_job, share, sms_job
from tests.fakes import NOON, NOT_NOW, UNSURE, Clock, FakeCarrier, answer, carrier_of, later, make_context
from tests.integration.ledger_steps import claim
from tests.integration.sending import LATER, THREE, leave_unknown, read_back, scripted_context
from tests.integration.stored import charge_of, decisions_of, entries_of, findings, only_letter_of

BY_OPS: dict[str, Any] = {"operator": "ops", "now": NOON + LATER}


def emails_of(context: Context) -> list[Email]:
    """Give the emails that the carrier got."""
    return [message for message in carrier_of(context, "email").messages if isinstance(message, Email)]


def refund(database: Database, *job_ids: str, **options: Any) -> list[Charge]:
    """Refund unknown jobs, as decided by "ops" an hour later; gives those that were unknown."""
    return database.write(lambda connection: refund_unknown(connection, acme(*job_ids), **BY_OPS, **options))


def resend(database: Database, *job_ids: str) -> list[Charge]:
    """Resend unknown jobs, as decided by "ops" an hour later; gives those that were unknown."""
    return database.write(lambda connection: resend_unknown(connection, acme(*job_ids), **BY_OPS))


# -- refunds ----------------------------------------------------------------------------------------------------------


def test_a_refunded_job_fails_and_its_credits_go_back(stocked: Database) -> None:
    context = leave_unknown(stocked, "job-1", to=THREE)

    [refunded] = refund(stocked, "job-1", note="not in the carrier's log")

    assert (refunded.state, refunded.reason, refunded.refunded) == (State.FAILED, "carrier_unavailable", 3)
    assert "A person decided" in (refunded.detail or "")
    assert balance(stocked, "john") == 10
    assert entries_of(stocked, "john")[2:] == [(3, 3, 10, "refund:job-1")]
    assert decisions_of(stocked) == [("job-1", "refund", "ops", "not in the carrier's log")]
    assert read_back(context)["status"] == "failed"
    assert findings(stocked) == []


def test_a_text_message_is_refunded_as_a_whole(stocked: Database) -> None:
    context = make_context(stocked, email=FakeCarrier(), sms=FakeCarrier(UNSURE), policy=RetryPolicy(attempts_max=1))
    answer(context, "sms.send", sms_job(text="x" * 200))

    [refunded] = refund(stocked, "job-1")

    assert (refunded.state, refunded.refunded) == (State.FAILED, 2)
    assert balance(stocked, "john", "sms") == 10
    assert findings(stocked) == []


def test_a_refund_goes_to_the_payer_whoever_the_owner_is_now(stocked: Database) -> None:
    leave_unknown(stocked, "job-1", sender="peter")
    share(stocked, "peter", "peter")

    refund(stocked, "job-1")

    assert (balance(stocked, "john"), balance(stocked, "peter")) == (10, 0)
    assert findings(stocked) == []


def test_a_second_refund_changes_nothing(stocked: Database) -> None:
    leave_unknown(stocked, "job-1")
    refund(stocked, "job-1")

    assert refund(stocked, "job-1") == []
    assert resend(stocked, "job-1") == []
    assert balance(stocked, "john") == 10
    assert len(decisions_of(stocked)) == 1
    assert findings(stocked) == []


def test_recipients_whom_an_earlier_attempt_reached_stay_charged(stocked: Database) -> None:
    """Ada was reached, bob was deferred and is then in doubt, eve was refused for good."""
    first = Receipt(Outcome.ACCEPTED, deferred={"bob@example.test": "451"}, refused={"eve@example.test": "550"})
    context = scripted_context(stocked, first, UNSURE)
    answer(context, "email.send", email_job(to=THREE))
    later(context)
    assert charge_of(stocked).state is State.UNKNOWN

    [refunded] = refund(stocked, "job-1")

    assert (refunded.state, refunded.refunded, refunded.reason) == (State.SENT, 2, "carrier_unavailable")
    assert set(refunded.recipients_refused or {}) == {"bob@example.test", "eve@example.test"}
    assert balance(stocked, "john") == 9
    assert findings(stocked) == []


def test_recipients_refused_by_the_unsure_attempt_are_refunded_once(stocked: Database) -> None:
    unsure = Receipt(Outcome.UNSURE, "The line went dead.", refused={"eve@example.test": "550"})
    answer(scripted_context(stocked, unsure), "email.send", email_job(to=THREE))

    [refunded] = refund(stocked, "job-1")

    assert (refunded.state, refunded.refunded) == (State.FAILED, 3)
    assert findings(stocked) == []


def test_jobs_that_are_not_unknown_are_left_alone(stocked: Database) -> None:
    context = scripted_context(stocked, NOT_NOW)
    answer(context, "email.send", email_job("waits"))
    answer(context, "email.send", email_job("sent"))

    assert refund(stocked, "waits", "sent", "nobody") == []
    assert resend(stocked, "waits", "sent", "nobody") == []
    assert [charge_of(stocked, job_id).state for job_id in ("waits", "sent")] == [State.WAITING, State.SENT]
    assert decisions_of(stocked) == []


def test_a_refunded_job_becomes_a_dead_letter_if_those_are_kept(stocked: Database) -> None:
    leave_unknown(stocked, "job-1", "job-2")

    refund(stocked, "job-1")
    refund(stocked, "job-2", keep_dead=False)

    letter = only_letter_of(stocked)
    assert (letter.key, letter.status) == ("job-1", "failed")


# -- resends ----------------------------------------------------------------------------------------------------------


def test_a_resent_job_keeps_its_id_and_is_not_charged_again(stocked: Database) -> None:
    context = leave_unknown(stocked, "job-1")

    [waiting] = resend(stocked, "job-1")
    later(context)

    assert (waiting.state, waiting.attempts, waiting.crashes) == (State.WAITING, 0, 0)
    assert waiting.handover_started_at is None
    assert (waiting.due_at, waiting.detail) == (NOON + LATER, None)
    assert [email.job_id for email in emails_of(context)] == ["job-1", "job-1"]
    final = charge_of(stocked)
    assert (final.state, final.attempts, final.content) == (State.SENT, 1, None)
    assert balance(stocked, "john") == 9
    assert decisions_of(stocked) == [("job-1", "resend", "ops", None)]
    assert findings(stocked) == []


def test_a_resent_job_leaves_out_recipients_who_were_refused(stocked: Database) -> None:
    unsure = Receipt(Outcome.UNSURE, "The line went dead.", refused={"eve@example.test": "550"})
    context = scripted_context(stocked, unsure)
    answer(context, "email.send", email_job(to=THREE))

    resend(stocked, "job-1")
    later(context)

    assert emails_of(context)[-1].recipients == ("ada@example.test", "bob@example.test")
    final = charge_of(stocked)
    assert (final.state, final.refunded) == (State.SENT, 1)
    assert findings(stocked) == []


def test_a_resent_job_that_is_unknown_again_is_decided_again(stocked: Database) -> None:
    context = scripted_context(stocked, UNSURE, UNSURE)
    answer(context, "email.send", email_job())
    resend(stocked, "job-1")
    later(context)

    [refunded] = refund(stocked, "job-1")

    assert refunded.state is State.FAILED
    assert [decision for _, decision, _, _ in decisions_of(stocked)] == ["resend", "refund"]
    assert balance(stocked, "john") == 10


def test_an_attempt_from_before_the_decision_changes_nothing_after_it(stocked: Database) -> None:
    """It has the same number as the first attempt after the decision, but another lease id."""
    clock = Clock()

    def sleep_through_the_decision(_: OutboundMessage) -> Receipt:
        clock.forward(LATER)
        upkeep.sweep(make_context(stocked, clock=clock))
        resend(stocked, "job-1")
        claim(stocked, {"job-1": 0}, lease_id="another", until=clock.now + LATER)
        return Receipt(Outcome.NEVER, "Never.")

    context = make_context(stocked, email=FakeCarrier(sleep_through_the_decision), clock=clock)

    answer(context, "email.send", email_job())

    after = charge_of(stocked)
    assert (after.state, after.attempts, after.lease_id, after.refunded) == (State.SENDING, 1, "another", 0)
    assert balance(stocked, "john") == 9


# -- decisions --------------------------------------------------------------------------------------------------------


def test_each_job_is_decided_once_however_many_decide_at_the_same_time(stocked: Database) -> None:
    job_ids = [f"job-{number}" for number in range(8)]
    leave_unknown(stocked, *job_ids)
    together = threading.Barrier(4)
    decided: list[tuple[str, str]] = []

    def decide(decision: Callable[..., list[Charge]]) -> None:
        together.wait()
        for job_id in job_ids:
            decided.extend((charge.job_id, decision.__name__) for charge in decision(stocked, job_id))

    threads = [threading.Thread(target=decide, args=(decision,)) for decision in (refund, resend, refund, resend)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(job_id for job_id, _ in decided) == job_ids
    refunded = [job_id for job_id, decision in decided if decision == "refund"]
    assert balance(stocked, "john") == 10 - 8 + len(refunded)
    assert sorted((job_id, decision) for job_id, decision, _, _ in decisions_of(stocked)) == sorted(decided)
    assert findings(stocked) == []


@pytest.mark.parametrize("statement", [update(decisions).values(operator="nobody"), delete(decisions)])
def test_decisions_cannot_be_rewritten_or_removed(stocked: Database, statement: Any) -> None:
    leave_unknown(stocked, "job-1")
    refund(stocked, "job-1")

    with pytest.raises(DatabaseError, match="append-only"), stocked.engine.begin() as connection:
        connection.execute(statement)
