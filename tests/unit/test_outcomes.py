"""The rule of refunds and retries: how each outcome of an attempt, and any sequence of them, settles a charge."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.sends.carrier import Outcome, Receipt
from models.sends.charges import OPEN, Charge, State
from models.sends.leases import HandedOver
from models.sends.outcomes import (
    CRASHES_MAX,
    RULES,
    Attempt,
    Doubt,
    Settlement,
    content_for_resend,
    settlement_after_crash,
    settlement_for,
    settlement_of_refund,
    settlement_of_wait,
)
from models.sends.retry_policy import RetryPolicy
from tests.fakes import NOON

THREE = ("a@x.test", "b@x.test", "c@x.test")
POLICY = RetryPolicy(attempts_max=3)
A_DAY = timedelta(days=1)
COUNTED = [outcome for outcome in Outcome if outcome is not Outcome.OUR_FAULT]
"""The outcomes of attempts that count."""


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


def settlement(attempted: Charge, receipt: Receipt, *, is_idempotent: bool = False, **options: Any) -> Settlement:
    """Settle an attempt at a carrier that knows a message again for a day, or never."""
    window = A_DAY if is_idempotent else timedelta()
    attempt = Attempt(charge=attempted, carrier="main", key_window=window, receipt=receipt)
    return settlement_for(attempt, **{"policy": POLICY, "now": NOON, **options})


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
        ("never", 2, True, True, "waiting", "carrier_unavailable"),
        ("never", 3, True, True, "unknown", None),
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
        ("our_fault", 1, False, False, "waiting", "carrier_unavailable"),
        ("our_fault", 3, False, False, "waiting", "carrier_unavailable"),
        ("our_fault", 3, True, True, "waiting", "carrier_unavailable"),
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
    assert settled.counts == (outcome != "our_fault")
    assert settled.carrier == "main"
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

    unknown = settlement(replace(next_attempt(first_attempt, first), attempts=3), Receipt(Outcome.NEVER, "No."))

    assert first.content == {"recipients": ["b@x.test", "c@x.test"], "subject": "Hello"}
    assert unknown.state is State.UNKNOWN
    refunded = settlement_of_refund(
        replace(first_attempt, content=first.content, recipients_refused={"a@x.test": "550"})
    )
    assert (refunded.state, refunded.refund) == (State.FAILED, 3)


def test_recipients_who_may_have_it_are_left_to_a_person_and_nobody_else_is() -> None:
    """A server that takes few recipients at a time got the message in parts, and has not answered the last of them."""
    receipt = Receipt(Outcome.ACCEPTED, unsure={"b@x.test": "no answer"}, refused={"c@x.test": "550"})

    settled = settlement(charge(), receipt)

    assert (settled.state, settled.in_doubt, settled.content) == (
        State.UNKNOWN, True, {"recipients": ["b@x.test"], "subject": "Hello"},
    )  # fmt: skip
    decided = settlement_of_refund(replace(charge(), content=settled.content, recipients_refused={"c@x.test": "550"}))
    assert (decided.state, decided.refund) == (State.SENT, 2)


def test_a_recipient_who_may_have_it_is_refunded_by_no_later_refusal() -> None:
    """Whatever the carrier says of them when it is asked again."""
    doubted = charge(attempts=2, handover_started_at=NOON)
    refusals = {"a@x.test": "550", "b@x.test": "550"}

    waits = settlement(doubted, Receipt(Outcome.NEVER, refused=refusals, recipients_refused=True), is_idempotent=True)
    accepted = settlement(doubted, Receipt(Outcome.ACCEPTED, refused=refusals), is_idempotent=True)

    assert (waits.state, waits.recipients_refused, waits.content) == (
        State.WAITING, None, {"recipients": list(THREE), "subject": "Hello"},
    )  # fmt: skip
    assert (accepted.state, accepted.recipients_refused, accepted.content) == (
        State.UNKNOWN, None, {"recipients": ["a@x.test", "b@x.test"], "subject": "Hello"},
    )  # fmt: skip


@pytest.mark.parametrize(("hours", "state"), [(23, State.WAITING), (24, State.UNKNOWN), (200, State.UNKNOWN)])
def test_a_carrier_is_asked_again_only_while_it_knows_the_message(hours: int, state: State) -> None:
    doubted = charge("sms", attempts=2, handover_started_at=NOON - timedelta(hours=hours))

    assert settlement(doubted, Receipt(Outcome.NOT_NOW), is_idempotent=True).state is state


def test_a_carrier_that_says_when_is_not_asked_before() -> None:
    settled = settlement(charge(), Receipt(Outcome.NOT_NOW, retry_after=timedelta(minutes=30)))

    assert settled.retry_after == timedelta(minutes=30)


def test_what_a_carrier_took_at_once_needs_no_note() -> None:
    assert settlement(charge(), Receipt(Outcome.ACCEPTED)).tries == ()
    assert [each.outcome for each in settlement(charge(attempts=2), Receipt(Outcome.ACCEPTED)).tries] == ["accepted"]
    assert [each.outcome for each in settlement(charge(), Receipt(Outcome.NOT_NOW)).tries] == ["not_now"]


@pytest.mark.parametrize(
    ("days", "in_doubt", "state", "refund"),
    [
        (1, False, State.WAITING, 0),
        (5, False, State.FAILED, 3),
        (1, True, State.WAITING, 0),
        (5, True, State.UNKNOWN, 0),
    ],
)
def test_a_job_waits_for_carriers_that_rest_and_not_for_ever(
    *, days: int, in_doubt: bool, state: State, refund: int
) -> None:
    waiting = charge(created_at=NOON - timedelta(days=days), handover_started_at=NOON if in_doubt else None)

    settled = settlement_of_wait(waiting, "It rests.", timedelta(seconds=9), policy=POLICY, now=NOON)

    assert (settled.state, settled.refund, settled.counts) == (state, refund, False)
    assert settled.retry_after == (timedelta(seconds=9) if state is State.WAITING else None)


def test_no_rule_refunds_or_resends_what_a_carrier_may_have() -> None:
    """Only a carrier that knows the message again is asked again."""
    for doubt in (Doubt.ASKABLE, Doubt.LASTING):
        assert State.FAILED not in RULES[doubt]
    assert State.WAITING not in RULES[Doubt.LASTING]
    assert {rule.accepted for rule in RULES.values()} == {State.SENT}
    assert set(RULES) == set(Doubt)


def after_crash(attempted: Charge, *, is_idempotent: bool = False, handed_over: bool = False) -> Settlement:
    return settlement_after_crash(
        attempted,
        HandedOver("main", NOON) if handed_over else None,
        key_window=A_DAY if is_idempotent else timedelta(),
        policy=POLICY,
        now=NOON,
    )


def test_a_job_is_tried_again_after_a_crash_before_the_handover() -> None:
    settled = after_crash(charge())

    assert (settled.state, settled.reason, settled.refund, settled.crashed) == (State.WAITING, None, 0, True)
    assert settled.in_doubt is False
    assert settled.content == {"recipients": list(THREE), "subject": "Hello"}


def test_an_email_is_unknown_after_a_crash_after_the_handover() -> None:
    """It may have arrived, so it is not sent a second time by itself."""
    settled = after_crash(charge(recipients_refused={"a@x.test": "550"}), handed_over=True)

    assert (settled.state, settled.refund, settled.crashed) == (State.UNKNOWN, 0, True)
    assert settled.recipients_refused == {"a@x.test": "550"}


def test_an_idempotent_carrier_is_tried_again_after_a_crash_in_doubt() -> None:
    """The carrier recognizes the job id, so trying again does no harm; but the doubt stays."""
    settled = after_crash(charge("sms"), is_idempotent=True, handed_over=True)

    assert (settled.state, settled.in_doubt, settled.carrier, settled.doubt_since) == (
        State.WAITING, True, "main", NOON,
    )  # fmt: skip


@pytest.mark.parametrize("handed_over", [False, True])
@pytest.mark.parametrize(
    "tried", [{"crashes": CRASHES_MAX - 1}, {"attempts": 3}], ids=["too many crashes", "attempts used up"]
)
def test_a_job_that_may_crash_its_workers_is_set_aside(*, handed_over: bool, tried: dict[str, int]) -> None:
    """Its credits go back, unless the carrier may have the message."""
    settled = after_crash(charge(**tried), is_idempotent=True, handed_over=handed_over)

    if handed_over:
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
    outcome = draw(st.sampled_from(COUNTED))
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
        settled = settlement(attempted, receipt, is_idempotent=is_idempotent, policy=policy)
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


@given(st.lists(st.sampled_from(COUNTED), min_size=8, max_size=8), st.booleans(), st.integers(1, 8))
def test_a_text_message_is_charged_wholly_or_not_at_all(
    outcomes: list[Outcome], is_idempotent: bool, attempts_max: int
) -> None:
    attempted = charge("sms")
    for outcome in outcomes:
        settled = settlement(attempted, Receipt(outcome), is_idempotent=is_idempotent, policy=RetryPolicy(attempts_max))
        if settled.state is not State.WAITING:
            break
        attempted = next_attempt(attempted, settled)

    assert settled.state in (State.SENT, State.FAILED, State.UNKNOWN)
    assert attempted.attempts <= attempts_max
    assert settled.refund == (attempted.credits if settled.state is State.FAILED else 0)
    assert (settled.state is State.SENT) == (outcomes[attempted.attempts - 1] is Outcome.ACCEPTED)
