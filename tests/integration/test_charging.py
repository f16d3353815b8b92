"""Charging: entries, balances, batches, and jobs that are charged again."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from models.database.engine import Database
from models.database.schema import charges
from models.sends.charges import JobKey, State, find_charges
from models.sends.charging import charge_jobs
from models.sends.outcomes import Settlement
from models.users.organizations import NOBODYS
from tests.factories import acme, balance, buy, ledger_job, sms_job
from tests.fakes import NOON, make_context, send
from tests.integration.ledger_steps import AT_ONCE, LEASE_END, charge, claim, email, settle
from tests.integration.stored import charge_of, entries_of, findings


def test_a_charge_writes_an_entry_with_the_balance_after_it(stocked: Database) -> None:
    [made] = charge(stocked, email(credits_=3, sender="peter"))

    assert (made.is_new, made.state, made.payer, made.sender) == (True, State.SENDING, "john", "peter")
    assert (made.credits, made.refunded, made.attempts) == (3, 0, 1)
    assert (made.lease_id, made.crashes, made.handover_started_at) == ("first", 0, None)
    assert entries_of(stocked, "john")[1:] == [(2, -3, 7, "charge:job-1")]
    assert balance(stocked, "john") == 7
    assert findings(stocked) == []


def test_a_new_charge_equals_the_stored_one(stocked: Database) -> None:
    """A worker goes on with the charge it made, and the next attempt with the stored one."""
    [made] = charge(stocked, email())

    assert charge_of(stocked) == replace(made, is_new=False)


def test_a_refused_charge_equals_the_stored_one(stocked: Database) -> None:
    made = charge(stocked, email("expensive", 11), email("strange", sender="nobody"))

    with stocked.snapshot() as connection:
        found = find_charges(connection, [*acme("expensive"), JobKey(NOBODYS, "strange")])
    stored = [
        replace(found[charged.key], sender_name=charged.sender_name, sender_address=charged.sender_address)
        for charged in made
    ]
    assert stored == made


def test_email_and_sms_credits_are_counted_apart(stocked: Database) -> None:
    charge(stocked, email())
    charge(stocked, ledger_job(sms_job("job-2")), lease_id="second")

    assert (balance(stocked, "john", "email"), balance(stocked, "john", "sms")) == (9, 9)
    assert entries_of(stocked, "john", "sms")[1:] == [(2, -1, 9, "charge:job-2")]


def test_a_balance_can_be_spent_to_the_last_credit_but_not_below_zero(stocked: Database) -> None:
    last, beyond = charge(stocked, email("last", 10), email("beyond", 1))

    assert (last.state, beyond.state, beyond.reason) == (State.SENDING, State.REFUSED, "insufficient_credits")
    assert balance(stocked, "john") == 0


def test_a_batch_is_charged_in_the_order_of_its_jobs(stocked: Database) -> None:
    """A job that is too expensive is passed over, and a later one may still fit."""
    batch = [email("z", 6), email("y", 5), email("x", 3), email("w", 2), email("v", 1)]

    made = charge(stocked, *batch)

    assert [charged.job_id for charged in made] == ["z", "y", "x", "w", "v"]
    assert [charged.is_new for charged in made] == [True, False, True, False, True]
    assert balance(stocked, "john") == 0
    assert entries_of(stocked, "john")[1:] == [(2, -10, 0, "charge:v+x+z")]
    assert findings(stocked) == []


def test_a_batch_charges_the_owner_of_each_sender(stocked: Database) -> None:
    buy(stocked, "mary", email=1)

    made = charge(
        stocked,
        email("a", sender="mary"),
        email("b", sender="peter"),
        email("c", sender="mary"),
        email("d", sender="olga"),
        email("e", sender="nobody"),
    )

    assert [charged.payer for charged in made] == ["mary", "john", None, None, None]
    reasons = ["insufficient_credits", "insufficient_credits", "unknown_user"]
    assert [charged.reason for charged in made[2:]] == reasons
    assert (balance(stocked, "mary"), balance(stocked, "john")) == (0, 9)


def test_an_id_that_comes_twice_in_a_batch_is_charged_once(stocked: Database) -> None:
    made = charge(stocked, email("a", 2), email("b", 1), email("a", 2))

    assert [(charged.job_id, charged.is_new) for charged in made] == [("a", True), ("b", True), ("a", False)]
    assert balance(stocked, "john") == 7


def test_an_id_that_comes_twice_has_the_digest_of_the_first_job(stocked: Database) -> None:
    first, second = email("a"), email("a", subject="Other")

    made = charge(stocked, first, second)

    assert [charged.digest for charged in made] == [first.digest, first.digest]


def test_a_known_id_returns_its_charge_and_changes_nothing(stocked: Database) -> None:
    charge(stocked, email("old", 2))

    known, new = charge(stocked, email("old", 2), email("new", 1), lease_id="second")

    assert (known.is_new, known.state, known.payer, known.credits) == (False, State.SENDING, "john", 2)
    assert (known.lease_id, new.lease_id, new.is_new) == ("first", "second", True)
    assert balance(stocked, "john") == 7


def test_charging_again_under_the_same_lease_finds_the_same_charges(stocked: Database) -> None:
    """The reply to its commit was lost, so nobody else is going to deliver these."""
    batch = [email("b", 2), email("expensive", 11), email("a", 1), email("b", 2), email("strange", sender="nobody")]
    made = charge(stocked, *batch)

    again = charge(stocked, *batch)

    assert [charged.is_new for charged in made] == [True, False, True, False, False]
    assert [charged.is_new for charged in again] == [True, False, True, False, False]
    with stocked.snapshot() as connection:
        found = find_charges(connection, [charged.key for charged in again])
    stored = [found[charged.key] for charged in again]
    assert stored == [replace(charged, is_new=False) for charged in again]
    assert [charged.attempts for charged in again] == [charged.attempts for charged in made]
    assert [entry[1] for entry in entries_of(stocked, "john")] == [10, -3]
    assert findings(stocked) == []


def test_charging_again_does_not_begin_jobs_that_have_moved_on(stocked: Database) -> None:
    sent, swept, waits = charge(stocked, email("sent"), email("swept"), email("waits"))
    settle(stocked, Settlement(charge=sent, state=State.SENT))
    for charged in (swept, waits):
        settle(stocked, Settlement(charge=charged, state=State.WAITING, retry_after=AT_ONCE, crashed=True))
    claim(stocked, {"swept": 1})

    again = charge(stocked, email("sent"), email("swept"), email("waits"))

    assert [charged.state for charged in again] == [State.SENT, State.SENDING, State.WAITING]
    assert [charged.is_new for charged in again] == [False, False, False]
    assert balance(stocked, "john") == 7


def test_a_rollback_leaves_neither_charge_nor_entry(stocked: Database) -> None:
    def charge_and_crash(connection: Any) -> None:
        charge_jobs(connection, [email()], lease_id="first", now=NOON, lease_until=LEASE_END)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stocked.write(charge_and_crash)

    assert balance(stocked, "john") == 10
    assert len(entries_of(stocked, "john")) == 1
    with stocked.snapshot() as connection:
        assert connection.execute(select(charges)).all() == []


def test_charging_and_settling_nothing_does_nothing(stocked: Database) -> None:
    assert send(make_context(stocked), []) == []
    assert settle(stocked) == []
