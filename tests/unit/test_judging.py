"""What a carrier's answer means for a charge: every outcome, and any sequence of them."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.sends.carrier import Outcome, Receipt
from models.sends.charges import OPEN, Charge, State
from models.sends.outcomes import (
    CRASHES_MAX,
    Settlement,
    content_for_resend,
    settlement_after_crash,
    settlement_for,
    settlement_of_refund,
)
from models.sends.retry_policy import RetryPolicy
from tests.fakes import NOON

THREE = ("a@x.test", "b@x.test", "c@x.test")
PATIENCE = RetryPolicy(attempts_max=3)


def charge(kind: Any = "email", recipients: tuple[str, ...] = THREE, **fields: Any) -> Charge:
    """Give a charge that is being sent for the first time."""
    content = {"recipients": list(recipients), "subject": "Hello"} if kind == "email" else {"text": "Hello"}
    whole = {
        "job_id": "job-1",
        "task": f"{kind}.send",
        "kind": kind,
        "sender": "john",
        "digest": "0" * 64,
        "payer": "john",
        "credits": len(recipients) if kind == "email" else 2,
        "refunded": 0,
        "state": State.SENDING,
        "reason": None,
        "detail": None,
        "attempts": 1,
        "crashes": 0,
        "lease_id": "worker-1",
        "handover_started_at": None,
        "content": content,
        "recipients_refused": None,
        "carrier_reference": None,
        "bulk_id": None,
        "created_at": NOON,
        "due_at": None,
        "final_at": None,
    }
    return Charge(**{**whole, **fields})


def verdict(one: Charge, receipt: Receipt, *, is_idempotent: bool = False) -> Settlement:
    return settlement_for(one, receipt, policy=PATIENCE, is_idempotent=is_idempotent, now=NOON)


def next_attempt(one: Charge, settled: Settlement) -> Charge:
    """Give the charge as the ledger would hand it to the next attempt."""
    assert settled.state is State.WAITING
    return replace(
        one,
        attempts=one.attempts + 1,
        recipients_refused=settled.recipients_refused,
        content=one.content if settled.content is None else settled.content,
        handover_started_at=(one.handover_started_at or NOON) if settled.in_doubt else None,
    )


@pytest.mark.parametrize("kind", ["email", "sms"])
@pytest.mark.parametrize(
    ("outcome", "attempts", "is_idempotent", "in_doubt", "state", "reason"),
    [
        ("accepted", 1, False, False, "sent", None),
        ("accepted", 3, False, False, "sent", None),
        ("accepted", 2, True, True, "sent", None),
        ("never", 1, False, False, "failed", "carrier_refused"),
        ("never", 3, False, False, "failed", "carrier_refused"),
        ("never", 2, True, True, "failed", "carrier_refused"),
        ("not_now", 1, False, False, "waiting", "carrier_unavailable"),
        ("not_now", 2, True, False, "waiting", "carrier_unavailable"),
        ("not_now", 2, True, True, "waiting", "carrier_unavailable"),
        ("not_now", 3, False, False, "failed", "carrier_unavailable"),
        ("not_now", 3, True, True, "unknown", None),
        ("unsure", 1, False, False, "unknown", None),
        ("unsure", 3, False, False, "unknown", None),
        ("unsure", 1, True, False, "waiting", "carrier_unavailable"),
        ("unsure", 2, True, True, "waiting", "carrier_unavailable"),
        ("unsure", 3, True, False, "unknown", None),
    ],
)
def test_each_outcome_has_its_verdict(
    *, kind: str, outcome: str, attempts: int, is_idempotent: bool, in_doubt: bool, state: str, reason: str | None
) -> None:
    one = charge(kind, attempts=attempts, handover_started_at=NOON if in_doubt else None)

    settled = verdict(one, Receipt(Outcome(outcome), "Words.", reference="ref"), is_idempotent=is_idempotent)

    assert (settled.state, settled.reason) == (state, reason)
    assert settled.refund == (one.credits if state == "failed" else 0)
    assert settled.detail == (None if state == "sent" else "Words.")
    assert (settled.due_at is not None) == (state == "waiting")
    assert settled.carrier_reference == ("ref" if state == "sent" else None)
    assert settled.charge is one


def test_a_wait_is_as_long_as_patience_says() -> None:
    settled = verdict(charge(attempts=2), Receipt(Outcome.NOT_NOW))

    assert settled.due_at is not None
    assert timedelta(seconds=5) <= settled.due_at - NOON <= timedelta(seconds=10)


def test_an_unsure_attempt_is_remembered_by_all_that_follow() -> None:
    one = charge("sms")
    unsure = verdict(one, Receipt(Outcome.UNSURE), is_idempotent=True)
    not_now = verdict(next_attempt(one, unsure), Receipt(Outcome.NOT_NOW), is_idempotent=True)

    assert (unsure.in_doubt, not_now.in_doubt) == (True, True)


def test_a_message_refused_for_its_recipients_says_so() -> None:
    settled = verdict(charge(), Receipt(Outcome.NEVER, "No such users.", recipients_refused=True))

    assert (settled.state, settled.reason, settled.refund) == (State.FAILED, "recipient_refused", 3)


def test_refused_recipients_get_their_credits_back_and_are_named() -> None:
    settled = verdict(charge(), Receipt(Outcome.ACCEPTED, refused={"b@x.test": "550"}))

    assert (settled.state, settled.reason, settled.refund) == (State.SENT, "recipient_refused", 1)
    assert settled.recipients_refused == {"b@x.test": "550"}
    assert settled.detail == "1 of 3 recipients were refused; their credits went back."


def test_deferred_recipients_alone_are_pending_and_the_rest_of_the_content_stays() -> None:
    receipt = Receipt(Outcome.ACCEPTED, refused={"a@x.test": "550"}, deferred={"c@x.test": "451"})

    settled = verdict(charge(), receipt)

    assert (settled.state, settled.refund) == (State.WAITING, 0)
    assert settled.content == {"recipients": ["c@x.test"], "subject": "Hello"}
    assert settled.recipients_refused == {"a@x.test": "550"}


def test_recipients_refused_with_a_not_now_are_not_asked_again() -> None:
    """A mail server may refuse one recipient for good and put off all the others."""
    settled = verdict(charge(), Receipt(Outcome.NOT_NOW, refused={"a@x.test": "550"}, deferred={"b@x.test": "451"}))

    assert settled.state is State.WAITING
    assert settled.content == {"recipients": ["b@x.test", "c@x.test"], "subject": "Hello"}
    assert settled.recipients_refused == {"a@x.test": "550"}


def test_a_text_message_keeps_its_content_as_it_is() -> None:
    assert verdict(charge("sms"), Receipt(Outcome.NOT_NOW)).content is None


def test_what_was_deferred_to_the_last_is_refused_with_the_carrier_s_last_words() -> None:
    settled = verdict(charge(attempts=3), Receipt(Outcome.ACCEPTED, deferred={"c@x.test": "451 later"}))

    assert (settled.state, settled.refund) == (State.SENT, 1)
    assert settled.recipients_refused == {"c@x.test": "451 later"}


@pytest.mark.parametrize("last", [Receipt(Outcome.NOT_NOW, "Busy."), Receipt(Outcome.NEVER, "No.")])
def test_what_was_handed_over_stays_charged_when_the_rest_fails(last: Receipt) -> None:
    first = verdict(charge(), Receipt(Outcome.ACCEPTED, deferred={"b@x.test": "451", "c@x.test": "451"}))

    settled = verdict(replace(next_attempt(charge(), first), attempts=3), last)

    assert (settled.state, settled.reason, settled.refund) == (State.SENT, "recipient_refused", 2)
    assert settled.recipients_refused == {"b@x.test": last.detail, "c@x.test": last.detail}


def test_an_email_whose_recipients_are_refused_one_after_the_other_fails() -> None:
    first = verdict(charge(), Receipt(Outcome.NOT_NOW, refused={"a@x.test": "550", "b@x.test": "550"}))

    settled = verdict(next_attempt(charge(), first), Receipt(Outcome.NEVER, "None.", recipients_refused=True))

    assert (settled.state, settled.reason, settled.refund) == (State.FAILED, "recipient_refused", 3)


def test_an_unknown_outcome_still_names_who_was_refused() -> None:
    """A mail server refuses a recipient, takes the whole message, and is never heard of again."""
    settled = verdict(charge(), Receipt(Outcome.UNSURE, refused={"a@x.test": "550"}))

    assert settled.state is State.UNKNOWN
    assert settled.recipients_refused == {"a@x.test": "550"}


def test_who_was_refused_with_an_unsure_outcome_does_not_count_as_handed_over() -> None:
    one = charge()
    first = verdict(one, Receipt(Outcome.UNSURE, refused={"a@x.test": "550"}), is_idempotent=True)

    settled = verdict(next_attempt(one, first), Receipt(Outcome.NEVER, "No."), is_idempotent=True)

    assert first.content == {"recipients": ["b@x.test", "c@x.test"], "subject": "Hello"}
    assert (settled.state, settled.refund) == (State.FAILED, 3)


def of_death(one: Charge, *, is_idempotent: bool = False) -> Settlement:
    return settlement_after_crash(one, policy=PATIENCE, is_idempotent=is_idempotent, now=NOON)


def test_a_job_whose_worker_died_before_it_was_handed_over_is_tried_again() -> None:
    settled = of_death(charge())

    assert (settled.state, settled.reason, settled.refund, settled.crashed) == (State.WAITING, None, 0, True)
    assert settled.in_doubt is False
    assert settled.content == {"recipients": list(THREE), "subject": "Hello"}


def test_an_email_whose_worker_died_after_it_was_handed_over_is_never_sent_a_second_time() -> None:
    settled = of_death(charge(handover_started_at=NOON, recipients_refused={"a@x.test": "550"}))

    assert (settled.state, settled.refund, settled.crashed) == (State.UNKNOWN, 0, True)
    assert settled.recipients_refused == {"a@x.test": "550"}


def test_a_carrier_that_honours_the_job_id_is_asked_again_after_a_death_and_the_doubt_stays() -> None:
    settled = of_death(charge("sms"), is_idempotent=True)

    assert (settled.state, settled.in_doubt) == (State.WAITING, True)


@pytest.mark.parametrize("is_idempotent", [False, True])
@pytest.mark.parametrize(
    "tried", [{"crashes": CRASHES_MAX - 1}, {"attempts": 3}], ids=["too many crashes", "attempts used up"]
)
def test_a_job_that_may_kill_its_workers_is_set_aside(*, is_idempotent: bool, tried: dict[str, int]) -> None:
    """Its credits go back, unless the carrier may have it."""
    settled = of_death(charge(**tried), is_idempotent=is_idempotent)

    if is_idempotent:
        assert (settled.state, settled.refund) == (State.UNKNOWN, 0)
    else:
        assert (settled.state, settled.reason, settled.refund) == (State.FAILED, "carrier_unavailable", 3)
    assert settled.crashed is True


def test_what_was_handed_over_stays_charged_when_workers_die_over_the_rest() -> None:
    first = verdict(charge(), Receipt(Outcome.ACCEPTED, deferred={"c@x.test": "451"}))

    settled = of_death(replace(next_attempt(charge(), first), attempts=3))

    assert (settled.state, settled.refund) == (State.SENT, 1)


def test_a_person_s_refund_gives_all_back_but_what_certainly_arrived() -> None:
    unknown = charge(state=State.UNKNOWN, handover_started_at=NOON)
    partly = replace(unknown, content={"recipients": ["c@x.test"], "subject": "Hello"})

    assert (settlement_of_refund(unknown).state, settlement_of_refund(unknown).refund) == (State.FAILED, 3)
    assert (settlement_of_refund(partly).state, settlement_of_refund(partly).refund) == (State.SENT, 1)


def test_a_resend_goes_to_nobody_who_refused_it() -> None:
    refused = charge(state=State.UNKNOWN, recipients_refused={"a@x.test": "550"})

    assert content_for_resend(refused)["recipients"] == ["b@x.test", "c@x.test"]
    assert content_for_resend(charge("sms", state=State.UNKNOWN)) == {"text": "Hello"}


@st.composite
def receipts(draw: st.DrawFn, pending: list[str]) -> Receipt:
    """Give an answer as an SMTP carrier may give it for these recipients."""
    outcome = draw(st.sampled_from(Outcome))
    fates = draw(st.lists(st.sampled_from("trd"), min_size=len(pending), max_size=len(pending)))
    if outcome is Outcome.ACCEPTED:
        fates[draw(st.integers(0, len(pending) - 1))] = "t"  # an accepted message was accepted for somebody
    if outcome is not Outcome.NEVER and "r" * len(pending) == "".join(fates):
        fates[0] = "t"  # refused for everybody is a NEVER
    by_fate = {fate: {a: f"{fate} {a}" for a, its in zip(pending, fates, strict=True) if its == fate} for fate in "trd"}
    return Receipt(outcome, "Words.", "ref", by_fate["r"], by_fate["d"])


@given(st.data(), st.integers(1, 6), st.booleans(), st.integers(1, 6))
def test_what_is_charged_in_the_end_is_one_credit_for_everybody_it_was_handed_to(
    data: st.DataObject, count: int, is_idempotent: bool, attempts_max: int
) -> None:
    recipients = tuple(f"u{number}@x.test" for number in range(count))
    patience = RetryPolicy(attempts_max=attempts_max)
    one = charge(recipients=recipients)
    handed_over: set[str] = set()
    outcomes = []
    while True:
        pending = list((one.content or {})["recipients"])
        receipt = data.draw(receipts(pending))
        outcomes.append(receipt.outcome)
        if receipt.outcome is Outcome.ACCEPTED:
            handed_over |= set(pending) - set(receipt.refused) - set(receipt.deferred)
        settled = settlement_for(one, receipt, policy=patience, is_idempotent=is_idempotent, now=NOON)
        if settled.state not in OPEN:
            break
        assert settled.refund == 0
        one = next_attempt(one, settled)
        assert one.attempts <= attempts_max
        assert handed_over.isdisjoint((one.content or {})["recipients"])

    match settled.state:
        case State.UNKNOWN:
            assert settled.refund == 0
            assert Outcome.UNSURE in outcomes
        case State.FAILED:
            assert settled.refund == count
            assert handed_over == set()
        case _:
            assert settled.state is State.SENT
            assert count - settled.refund == len(handed_over) > 0
            assert set(settled.recipients_refused or {}) == set(recipients) - handed_over
            assert (settled.reason == "recipient_refused") == (settled.refund > 0)


@given(st.lists(st.sampled_from(Outcome), min_size=8, max_size=8), st.booleans(), st.integers(1, 8))
def test_a_text_message_is_charged_wholly_or_not_at_all(
    outcomes: list[Outcome], is_idempotent: bool, attempts_max: int
) -> None:
    one = charge("sms")
    for outcome in outcomes:
        settled = settlement_for(
            one, Receipt(outcome), policy=RetryPolicy(attempts_max), is_idempotent=is_idempotent, now=NOON
        )
        if settled.state is not State.WAITING:
            break
        one = next_attempt(one, settled)

    assert settled.state in (State.SENT, State.FAILED, State.UNKNOWN)
    assert one.attempts <= attempts_max
    assert settled.refund == (one.credits if settled.state is State.FAILED else 0)
    assert (settled.state is State.SENT) == (outcomes[one.attempts - 1] is Outcome.ACCEPTED)
