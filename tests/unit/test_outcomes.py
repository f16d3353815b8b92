"""The rule of refunds and retries: how each outcome of an attempt, and any sequence of them, settles a charge."""

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
POLICY = RetryPolicy(attempts_max=3)


def charge(kind: Any = "email", recipients: tuple[str, ...] = THREE, **fields: Any) -> Charge:
    """Give a charge that is being sent for the first time."""
    content = {"recipients": list(recipients), "subject": "Hello"} if kind == "email" else {"text": "Hello"}
    whole = {
        "org_id": 1,
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


def settlement(attempted: Charge, receipt: Receipt, *, is_idempotent: bool = False) -> Settlement:
    return settlement_for(attempted, receipt, policy=POLICY, is_idempotent=is_idempotent)


def next_attempt(attempted: Charge, settled: Settlement) -> Charge:
    """Give the charge as the next attempt gets it."""
    assert settled.state is State.WAITING
    return replace(
        attempted,
        attempts=attempted.attempts + 1,
        recipients_refused=settled.recipients_refused,
        content=attempted.content if settled.content is None else settled.content,
        handover_started_at=(attempted.handover_started_at or NOON) if settled.in_doubt else None,
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
def test_each_outcome_has_its_settlement(
    *, kind: str, outcome: str, attempts: int, is_idempotent: bool, in_doubt: bool, state: str, reason: str | None
) -> None:
    attempted = charge(kind, attempts=attempts, handover_started_at=NOON if in_doubt else None)

    settled = settlement(attempted, Receipt(Outcome(outcome), "Words.", reference="ref"), is_idempotent=is_idempotent)

    assert (settled.state, settled.reason) == (state, reason)
    assert settled.refund == (attempted.credits if state == "failed" else 0)
    assert settled.detail == (None if state == "sent" else "Words.")
    assert (settled.retry_after is not None) == (state == "waiting")
    assert settled.carrier_reference == ("ref" if state == "sent" else None)
    assert settled.charge is attempted


def test_the_next_attempt_is_due_when_the_retry_policy_says() -> None:
    settled = settlement(charge(attempts=2), Receipt(Outcome.NOT_NOW))

    assert settled.retry_after is not None
    assert timedelta(seconds=5) <= settled.retry_after <= timedelta(seconds=10)


def test_an_unsure_attempt_leaves_all_later_ones_in_doubt() -> None:
    first_attempt = charge("sms")
    unsure = settlement(first_attempt, Receipt(Outcome.UNSURE), is_idempotent=True)
    not_now = settlement(next_attempt(first_attempt, unsure), Receipt(Outcome.NOT_NOW), is_idempotent=True)

    assert (unsure.in_doubt, not_now.in_doubt) == (True, True)


def test_a_message_refused_for_its_recipients_gives_that_reason() -> None:
    settled = settlement(charge(), Receipt(Outcome.NEVER, "No such users.", recipients_refused=True))

    assert (settled.state, settled.reason, settled.refund) == (State.FAILED, "recipient_refused", 3)


def test_refused_recipients_are_named_and_their_credits_go_back() -> None:
    settled = settlement(charge(), Receipt(Outcome.ACCEPTED, refused={"b@x.test": "550"}))

    assert (settled.state, settled.reason, settled.refund) == (State.SENT, "recipient_refused", 1)
    assert settled.recipients_refused == {"b@x.test": "550"}
    assert settled.detail == "1 of 3 recipients were refused; their credits went back."


def test_only_deferred_recipients_are_pending_afterwards() -> None:
    """The rest of the content stays as it was."""
    receipt = Receipt(Outcome.ACCEPTED, refused={"a@x.test": "550"}, deferred={"c@x.test": "451"})

    settled = settlement(charge(), receipt)

    assert (settled.state, settled.refund) == (State.WAITING, 0)
    assert settled.content == {"recipients": ["c@x.test"], "subject": "Hello"}
    assert settled.recipients_refused == {"a@x.test": "550"}


def test_recipients_refused_with_a_not_now_are_not_tried_again() -> None:
    """A mail server may refuse one recipient for good and defer all the others."""
    settled = settlement(charge(), Receipt(Outcome.NOT_NOW, refused={"a@x.test": "550"}, deferred={"b@x.test": "451"}))

    assert settled.state is State.WAITING
    assert settled.content == {"recipients": ["b@x.test", "c@x.test"], "subject": "Hello"}
    assert settled.recipients_refused == {"a@x.test": "550"}


def test_a_text_message_keeps_its_content_as_it_is() -> None:
    assert settlement(charge("sms"), Receipt(Outcome.NOT_NOW)).content is None


def test_recipients_deferred_to_the_last_attempt_are_refused() -> None:
    """The carrier's last words about each are kept."""
    settled = settlement(charge(attempts=3), Receipt(Outcome.ACCEPTED, deferred={"c@x.test": "451 later"}))

    assert (settled.state, settled.refund) == (State.SENT, 1)
    assert settled.recipients_refused == {"c@x.test": "451 later"}


@pytest.mark.parametrize("last", [Receipt(Outcome.NOT_NOW, "Busy."), Receipt(Outcome.NEVER, "No.")])
def test_recipients_reached_stay_charged_when_the_rest_fails(last: Receipt) -> None:
    first = settlement(charge(), Receipt(Outcome.ACCEPTED, deferred={"b@x.test": "451", "c@x.test": "451"}))

    settled = settlement(replace(next_attempt(charge(), first), attempts=3), last)

    assert (settled.state, settled.reason, settled.refund) == (State.SENT, "recipient_refused", 2)
    assert settled.recipients_refused == {"b@x.test": last.detail, "c@x.test": last.detail}


def test_an_email_fails_when_all_recipients_are_refused_in_turn() -> None:
    first = settlement(charge(), Receipt(Outcome.NOT_NOW, refused={"a@x.test": "550", "b@x.test": "550"}))

    settled = settlement(next_attempt(charge(), first), Receipt(Outcome.NEVER, "None.", recipients_refused=True))

    assert (settled.state, settled.reason, settled.refund) == (State.FAILED, "recipient_refused", 3)


def test_an_unknown_message_still_names_refused_recipients() -> None:
    """A mail server may refuse a recipient, take the whole message, and never answer again."""
    settled = settlement(charge(), Receipt(Outcome.UNSURE, refused={"a@x.test": "550"}))

    assert settled.state is State.UNKNOWN
    assert settled.recipients_refused == {"a@x.test": "550"}


def test_recipients_refused_with_an_unsure_outcome_do_not_count_as_reached() -> None:
    first_attempt = charge()
    first = settlement(first_attempt, Receipt(Outcome.UNSURE, refused={"a@x.test": "550"}), is_idempotent=True)

    settled = settlement(next_attempt(first_attempt, first), Receipt(Outcome.NEVER, "No."), is_idempotent=True)

    assert first.content == {"recipients": ["b@x.test", "c@x.test"], "subject": "Hello"}
    assert (settled.state, settled.refund) == (State.FAILED, 3)


def after_crash(attempted: Charge, *, is_idempotent: bool = False) -> Settlement:
    return settlement_after_crash(attempted, policy=POLICY, is_idempotent=is_idempotent)


def test_a_job_is_tried_again_after_a_crash_before_the_handover() -> None:
    settled = after_crash(charge())

    assert (settled.state, settled.reason, settled.refund, settled.crashed) == (State.WAITING, None, 0, True)
    assert settled.in_doubt is False
    assert settled.content == {"recipients": list(THREE), "subject": "Hello"}


def test_an_email_is_unknown_after_a_crash_after_the_handover() -> None:
    """It may have arrived, so it is not sent a second time by itself."""
    settled = after_crash(charge(handover_started_at=NOON, recipients_refused={"a@x.test": "550"}))

    assert (settled.state, settled.refund, settled.crashed) == (State.UNKNOWN, 0, True)
    assert settled.recipients_refused == {"a@x.test": "550"}


def test_an_idempotent_carrier_is_tried_again_after_a_crash_in_doubt() -> None:
    """The carrier recognizes the job id, so trying again does no harm; but the doubt stays."""
    settled = after_crash(charge("sms"), is_idempotent=True)

    assert (settled.state, settled.in_doubt) == (State.WAITING, True)


@pytest.mark.parametrize("is_idempotent", [False, True])
@pytest.mark.parametrize(
    "tried", [{"crashes": CRASHES_MAX - 1}, {"attempts": 3}], ids=["too many crashes", "attempts used up"]
)
def test_a_job_that_may_crash_its_workers_is_set_aside(*, is_idempotent: bool, tried: dict[str, int]) -> None:
    """Its credits go back, unless the carrier may have the message."""
    settled = after_crash(charge(**tried), is_idempotent=is_idempotent)

    if is_idempotent:
        assert (settled.state, settled.refund) == (State.UNKNOWN, 0)
    else:
        assert (settled.state, settled.reason, settled.refund) == (State.FAILED, "carrier_unavailable", 3)
    assert settled.crashed is True


def test_recipients_reached_stay_charged_when_crashes_end_the_job() -> None:
    first = settlement(charge(), Receipt(Outcome.ACCEPTED, deferred={"c@x.test": "451"}))

    settled = after_crash(replace(next_attempt(charge(), first), attempts=3))

    assert (settled.state, settled.refund) == (State.SENT, 1)


def test_a_decided_refund_gives_back_all_but_what_certainly_arrived() -> None:
    unknown = charge(state=State.UNKNOWN, handover_started_at=NOON)
    partly = replace(unknown, content={"recipients": ["c@x.test"], "subject": "Hello"})

    assert (settlement_of_refund(unknown).state, settlement_of_refund(unknown).refund) == (State.FAILED, 3)
    assert (settlement_of_refund(partly).state, settlement_of_refund(partly).refund) == (State.SENT, 1)


def test_a_resend_leaves_out_refused_recipients() -> None:
    refused = charge(state=State.UNKNOWN, recipients_refused={"a@x.test": "550"})

    assert content_for_resend(refused)["recipients"] == ["b@x.test", "c@x.test"]
    assert content_for_resend(charge("sms", state=State.UNKNOWN)) == {"text": "Hello"}


@st.composite
def receipts(draw: st.DrawFn, pending: list[str]) -> Receipt:
    """Draw a receipt that an SMTP carrier may give for these recipients: each is taken, refused or deferred."""
    outcome = draw(st.sampled_from(Outcome))
    fates = draw(st.lists(st.sampled_from("trd"), min_size=len(pending), max_size=len(pending)))
    if outcome is Outcome.ACCEPTED:
        fates[draw(st.integers(0, len(pending) - 1))] = "t"  # an accepted message was accepted for somebody
    if outcome is not Outcome.NEVER and "r" * len(pending) == "".join(fates):
        fates[0] = "t"  # if everybody were refused, the outcome would be NEVER
    by_fate = {
        fate: {address: f"{fate} {address}" for address, drawn in zip(pending, fates, strict=True) if drawn == fate}
        for fate in "trd"
    }
    return Receipt(outcome, "Words.", "ref", by_fate["r"], by_fate["d"])


@given(st.data(), st.integers(1, 6), st.booleans(), st.integers(1, 6))
def test_an_email_costs_one_credit_for_each_recipient_reached(
    data: st.DataObject, count: int, is_idempotent: bool, attempts_max: int
) -> None:
    recipients = tuple(f"u{number}@x.test" for number in range(count))
    policy = RetryPolicy(attempts_max=attempts_max)
    attempted = charge(recipients=recipients)
    handed_over: set[str] = set()
    outcomes = []
    while True:
        pending = list((attempted.content or {})["recipients"])
        receipt = data.draw(receipts(pending))
        outcomes.append(receipt.outcome)
        if receipt.outcome is Outcome.ACCEPTED:
            handed_over |= set(pending) - set(receipt.refused) - set(receipt.deferred)
        settled = settlement_for(attempted, receipt, policy=policy, is_idempotent=is_idempotent)
        if settled.state not in OPEN:
            break
        assert settled.refund == 0
        attempted = next_attempt(attempted, settled)
        assert attempted.attempts <= attempts_max
        assert handed_over.isdisjoint((attempted.content or {})["recipients"])

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
    attempted = charge("sms")
    for outcome in outcomes:
        settled = settlement_for(
            attempted, Receipt(outcome), policy=RetryPolicy(attempts_max), is_idempotent=is_idempotent
        )
        if settled.state is not State.WAITING:
            break
        attempted = next_attempt(attempted, settled)

    assert settled.state in (State.SENT, State.FAILED, State.UNKNOWN)
    assert attempted.attempts <= attempts_max
    assert settled.refund == (attempted.credits if settled.state is State.FAILED else 0)
    assert (settled.state is State.SENT) == (outcomes[attempted.attempts - 1] is Outcome.ACCEPTED)
