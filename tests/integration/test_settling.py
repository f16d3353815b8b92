"""Settling: refunds, attempts that no longer count, and what stays in doubt."""

from datetime import timedelta

import pytest

from models.database.engine import Database
from models.sends.charges import State
from models.sends.outcomes import Settlement
from tests.factories import balance, buy, ledger_job, share, sms_job
from tests.fakes import NOON
from tests.integration.ledger_steps import AT_ONCE, charge, claim, email, note_handover, settle
from tests.integration.stored import charge_of, entries_of, findings


def test_a_refund_is_an_entry_in_the_account_that_paid(stocked: Database) -> None:
    [held] = charge(stocked, email(credits_=3, sender="peter"))
    share(stocked, "peter", "mary")

    counted = settle(stocked, Settlement(charge=held, state=State.FAILED, refund=3))

    assert len(counted) == 1
    assert entries_of(stocked, "john")[1:] == [(2, -3, 7, "charge:job-1"), (3, 3, 10, "refund:job-1")]
    assert entries_of(stocked, "mary") == []
    assert findings(stocked) == []


def test_what_is_refunded_together_is_one_entry_an_account(stocked: Database) -> None:
    buy(stocked, "mary", email=2)
    senders = {"job-9": "john", "job-8": "mary", "job-1": "peter"}
    held = charge(stocked, *(email(job_id, sender=sender) for job_id, sender in senders.items()))

    settle(stocked, *(Settlement(charge=charged, state=State.FAILED, refund=1) for charged in held))

    assert entries_of(stocked, "john")[2:] == [(3, 2, 10, "refund:job-1+job-9")]
    assert entries_of(stocked, "mary")[2:] == [(3, 1, 2, "refund:job-8")]
    assert findings(stocked) == []


def test_settling_without_a_refund_does_not_touch_the_account(stocked: Database) -> None:
    [held] = charge(stocked, email())
    before = entries_of(stocked, "john")

    settle(stocked, Settlement(charge=held, state=State.SENT, carrier_reference="ref-1"))

    assert entries_of(stocked, "john") == before


def test_an_attempt_is_settled_once(stocked: Database) -> None:
    [held] = charge(stocked, email(credits_=3))
    settle(stocked, Settlement(charge=held, state=State.FAILED, refund=3))

    again = settle(stocked, Settlement(charge=held, state=State.FAILED, refund=3))

    assert again == []
    assert balance(stocked, "john") == 10


def test_an_old_attempt_cannot_settle_a_later_one(stocked: Database) -> None:
    [first] = charge(stocked, ledger_job(sms_job()))
    settle(stocked, Settlement(charge=first, state=State.WAITING, retry_after=AT_ONCE))
    [second] = claim(stocked, {"job-1": 1})

    stale = settle(stocked, Settlement(charge=first, state=State.FAILED, refund=1))
    counted = settle(stocked, Settlement(charge=second, state=State.SENT))

    assert (first.attempts, second.attempts) == (1, 2)
    assert (len(stale), len(counted)) == (0, 1)
    assert balance(stocked, "john", "sms") == 9


def test_many_attempts_are_settled_together(stocked: Database) -> None:
    held = charge(stocked, email("c", 1), email("a", 2), email("b", 3))

    settle(
        stocked,
        Settlement(charge=held[0], state=State.SENT),
        Settlement(charge=held[1], state=State.FAILED, refund=2),
        Settlement(charge=held[2], state=State.SENT, refund=1, recipients_refused={"a@b.test": "550"}),
    )

    assert [entry[1] for entry in entries_of(stocked, "john")] == [10, -6, 3]
    assert balance(stocked, "john") == 7
    assert findings(stocked) == []


@pytest.mark.parametrize("state", [State.SENT, State.FAILED, State.WAITING])
def test_a_settlement_without_doubt_clears_the_handover(stocked: Database, state: State) -> None:
    [held] = charge(stocked, email())
    note_handover(stocked, held)

    refund = 1 if state is State.FAILED else 0
    retry_after = AT_ONCE if state is State.WAITING else None
    settle(stocked, Settlement(charge=held, state=state, refund=refund, retry_after=retry_after))

    assert (charge_of(stocked).state, charge_of(stocked).handover_started_at) == (state, None)


def test_a_doubt_dates_from_the_first_attempt_that_left_it(stocked: Database) -> None:
    [first] = charge(stocked, ledger_job(sms_job()))
    settle(stocked, Settlement(charge=first, state=State.WAITING, retry_after=AT_ONCE, in_doubt=True))
    [second] = claim(stocked, {"job-1": 1})

    settle(stocked, Settlement(charge=second, state=State.UNKNOWN, in_doubt=True), now=NOON + timedelta(minutes=1))

    assert (second.handover_started_at, charge_of(stocked).handover_started_at) == (NOON, NOON)


def test_crashes_are_counted_apart_from_attempts(stocked: Database) -> None:
    [first] = charge(stocked, email())
    settle(stocked, Settlement(charge=first, state=State.WAITING, retry_after=AT_ONCE, crashed=True))
    [second] = claim(stocked, {"job-1": 1})
    settle(stocked, Settlement(charge=second, state=State.WAITING, retry_after=AT_ONCE))
    [third] = claim(stocked, {"job-1": 2})

    settle(stocked, Settlement(charge=third, state=State.FAILED, refund=1, crashed=True))

    assert [charged.crashes for charged in (first, second, third)] == [0, 1, 1]
    assert (charge_of(stocked).attempts, charge_of(stocked).crashes) == (3, 2)
