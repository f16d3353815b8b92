"""Charging a bulk job: one entry pays for all of its messages."""

from sqlalchemy import select

from models.database.engine import Database
from models.database.schema import charges
from models.sends.charges import State, find_charges
from models.sends.outcomes import Settlement
from tests.factories import acme, balance, share
from tests.integration.ledger_steps import bulk_email, charge_bulk, claim, settle
from tests.integration.stored import entries_of, findings


def test_a_bulk_job_is_charged_by_one_entry(stocked: Database) -> None:
    made = charge_bulk(stocked, *bulk_email(2, 3, sender="peter"))

    assert (made.is_new, made.state, made.payer, made.credits) == (True, State.BULK, "john", 6)
    assert entries_of(stocked, "john")[1:] == [(2, -6, 4, "charge:bulk/0+bulk/1+bulk/2")]
    with stocked.snapshot() as connection:
        messages = find_charges(connection, acme("bulk/0", "bulk/1", "bulk/2")).values()
    assert len(messages) == 3
    assert {(charged.state, charged.payer, charged.credits, charged.bulk_id) for charged in messages} == {
        (State.WAITING, "john", 2, "bulk")
    }
    assert findings(stocked) == []


def test_a_bulk_job_that_does_not_fit_leaves_only_its_refusal(stocked: Database) -> None:
    made = charge_bulk(stocked, *bulk_email(3, 4))

    assert (made.is_new, made.state, made.reason, made.payer) == (False, State.REFUSED, "insufficient_credits", None)
    assert "3 of its 4 messages would fit" in (made.detail or "")
    assert len(entries_of(stocked, "john")) == 1
    with stocked.snapshot() as connection:
        assert connection.execute(select(charges.c.job_id, charges.c.state)).all() == [("bulk", "refused")]


def test_a_known_bulk_job_returns_its_charge(stocked: Database) -> None:
    charge_bulk(stocked, *bulk_email(1, 3))

    again = charge_bulk(stocked, *bulk_email(1, 3))

    assert (again.is_new, again.state) == (False, State.BULK)
    assert balance(stocked, "john") == 7


def test_bulk_messages_wait_and_can_be_claimed(stocked: Database) -> None:
    charge_bulk(stocked, *bulk_email(1, 3))

    held = claim(stocked, {"bulk/2": 0, "bulk/0": 0, "bulk": 0})

    assert [(charged.job_id, charged.state, charged.attempts, charged.lease_id) for charged in held] == [
        ("bulk/0", State.SENDING, 1, "second"),
        ("bulk/2", State.SENDING, 1, "second"),
    ]


def test_a_bulk_message_is_refunded_by_an_entry_of_its_own(stocked: Database) -> None:
    charge_bulk(stocked, *bulk_email(2, 3, sender="peter"))
    share(stocked, "peter", "peter")
    [held] = claim(stocked, {"bulk/1": 0})

    settle(stocked, Settlement(charge=held, state=State.FAILED, refund=2))

    assert entries_of(stocked, "john")[1:] == [
        (2, -6, 4, "charge:bulk/0+bulk/1+bulk/2"),
        (3, 2, 6, "refund:bulk/1"),
    ]
    assert findings(stocked) == []
