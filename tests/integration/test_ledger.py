"""The ledger alone: entries, balances, replays, refunds, and what fits into a batch."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from models import charges as charging
from models import ledger
from models.audit import audit
from models.charges import Charge, Job, State
from models.database import Database
from models.ledger import Settlement
from models.tables import accounts, charges, entries
from tests.factories import balance, buy, email_job, ledger_job, save_people, share, sms_job
from tests.fakes import NOON

LEASE = NOON + timedelta(minutes=5)


@pytest.fixture
def stocked(database: Database) -> Database:
    """Give a database in which john owns 10 email and 5 SMS credits, and peter uses them."""
    save_people(database)
    buy(database, "john", email=10, sms=5)
    share(database, "peter", "john")
    return database


def charge(database: Database, *jobs: Job) -> list[Charge]:
    return database.transact(lambda connection: ledger.charge(connection, jobs, now=NOON, lease_until=LEASE))


def settle(database: Database, *settlements: Settlement) -> list[Settlement]:
    return database.transact(lambda connection: ledger.settle(connection, settlements, NOON))


def email(job_id: str = "job-1", credits_: int = 1, **fields: Any) -> Job:
    return replace(ledger_job(email_job(job_id, **fields)), credits=credits_)


def entries_of(database: Database, owner: str, kind: str = "email") -> Sequence[Any]:
    query = (
        select(entries.c.seq, entries.c.amount, entries.c.balance_after, entries.c.cause)
        .join(accounts, accounts.c.id == entries.c.account_id)
        .where(accounts.c.owner_id == owner, accounts.c.kind == kind)
        .order_by(entries.c.seq)
    )
    with database.read() as connection:
        return [tuple(row) for row in connection.execute(query)]


def findings(database: Database) -> list[Any]:
    with database.read() as connection:
        return list(audit(connection, NOON))


def test_a_charge_writes_an_entry_and_the_balance_it_leaves(stocked: Database) -> None:
    [made] = charge(stocked, email(credits_=3, sender="peter"))

    assert (made.fresh, made.state, made.payer, made.sender) == (True, State.SENDING, "john", "peter")
    assert (made.credits, made.refunded, made.attempts) == (3, 0, 1)
    assert entries_of(stocked, "john")[1:] == [(2, -3, 7, "charge:job-1")]
    assert balance(stocked, "john") == 7
    assert findings(stocked) == []


def test_a_fresh_charge_equals_what_is_read_back(stocked: Database) -> None:
    """Whoever made a charge works with what the next holder would find."""
    [made] = charge(stocked, email())

    with stocked.read() as connection:
        assert charging.read(connection, ["job-1"]) == {"job-1": replace(made, fresh=False)}


def test_a_refused_charge_equals_what_is_read_back(stocked: Database) -> None:
    made = charge(stocked, email("dear", 11), email("strange", sender="nobody"))

    with stocked.read() as connection:
        found = charging.read(connection, ["dear", "strange"])
    read_back = [
        replace(found[one.job_id], sender_name=one.sender_name, sender_address=one.sender_address) for one in made
    ]
    assert read_back == made


def test_the_two_kinds_are_counted_apart(stocked: Database) -> None:
    charge(stocked, email(), ledger_job(sms_job("job-2")))

    assert (balance(stocked, "john", "email"), balance(stocked, "john", "sms")) == (9, 4)
    assert entries_of(stocked, "john", "sms")[1:] == [(2, -1, 4, "charge:job-2")]


def test_a_balance_can_be_spent_to_the_last_credit_and_not_below(stocked: Database) -> None:
    last, beyond = charge(stocked, email("last", 10), email("beyond", 1))

    assert (last.state, beyond.state, beyond.reason) == (State.SENDING, State.REFUSED, "insufficient_credits")
    assert balance(stocked, "john") == 0


def test_what_fits_into_a_batch_is_decided_in_job_order(stocked: Database) -> None:
    """A job too dear is passed over, and what comes after it may still fit."""
    batch = [email("z", 6), email("y", 5), email("x", 3), email("w", 2), email("v", 1)]

    made = charge(stocked, *batch)

    assert [one.job_id for one in made] == ["z", "y", "x", "w", "v"]
    assert [one.fresh for one in made] == [True, False, True, False, True]
    assert balance(stocked, "john") == 0
    causes = [cause for *_, cause in entries_of(stocked, "john")[1:]]
    assert causes == ["charge:z", "charge:x", "charge:v"]
    assert findings(stocked) == []


def test_a_batch_charges_each_sender_s_own_owner(stocked: Database) -> None:
    buy(stocked, "mary", email=1)

    made = charge(
        stocked,
        email("a", sender="mary"),
        email("b", sender="peter"),
        email("c", sender="mary"),
        email("d", sender="olga"),
        email("e", sender="nobody"),
    )

    assert [one.payer for one in made] == ["mary", "john", None, None, None]
    reasons = ["insufficient_credits", "insufficient_credits", "unknown_user"]
    assert [one.reason for one in made[2:]] == reasons
    assert (balance(stocked, "mary"), balance(stocked, "john")) == (0, 9)


def test_an_id_twice_in_one_batch_is_charged_once_and_delivered_by_its_first_place(stocked: Database) -> None:
    made = charge(stocked, email("a", 2), email("b", 1), email("a", 2))

    assert [(one.job_id, one.fresh) for one in made] == [("a", True), ("b", True), ("a", False)]
    assert balance(stocked, "john") == 7


def test_an_id_twice_in_one_batch_shows_the_digest_of_the_first(stocked: Database) -> None:
    first, second = email("a"), email("a", subject="Other")

    made = charge(stocked, first, second)

    assert [one.digest for one in made] == [first.digest, first.digest]


def test_a_known_id_comes_back_as_it_stands_and_changes_nothing(stocked: Database) -> None:
    charge(stocked, email("old", 2))

    known, new = charge(stocked, email("old", 2), email("new", 1))

    assert (known.fresh, known.state, known.payer, known.credits) == (False, State.SENDING, "john", 2)
    assert new.fresh
    assert balance(stocked, "john") == 7


def test_a_transaction_that_is_rolled_back_leaves_neither_charge_nor_entry(stocked: Database) -> None:
    def charge_and_die(connection: Any) -> None:
        ledger.charge(connection, [email()], now=NOON, lease_until=LEASE)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stocked.transact(charge_and_die)

    assert balance(stocked, "john") == 10
    assert len(entries_of(stocked, "john")) == 1
    with stocked.read() as connection:
        assert connection.execute(select(charges)).all() == []


def test_an_empty_batch_is_no_batch(stocked: Database) -> None:
    assert charge(stocked) == []
    assert settle(stocked) == []


def test_a_refund_is_an_entry_of_its_own_in_the_account_that_paid(stocked: Database) -> None:
    [held] = charge(stocked, email(credits_=3, sender="peter"))
    share(stocked, "peter", "mary")

    counted = settle(stocked, Settlement(charge=held, state=State.FAILED, refund=3))

    assert len(counted) == 1
    assert entries_of(stocked, "john")[1:] == [(2, -3, 7, "charge:job-1"), (3, 3, 10, "refund:job-1")]
    assert entries_of(stocked, "mary") == []
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


def test_an_attempt_cannot_settle_what_a_later_attempt_holds(stocked: Database) -> None:
    [first] = charge(stocked, ledger_job(sms_job()))
    settle(stocked, Settlement(charge=first, state=State.WAITING, due_at=NOON))
    with stocked.begin() as connection:
        [second] = charging.claim(connection, ["job-1"], lease_until=LEASE)

    stale = settle(stocked, Settlement(charge=first, state=State.FAILED, refund=1))
    counted = settle(stocked, Settlement(charge=second, state=State.SENT))

    assert (first.attempts, second.attempts) == (1, 2)
    assert (len(stale), len(counted)) == (0, 1)
    assert balance(stocked, "john", "sms") == 4


def test_many_attempts_are_settled_in_one_batch(stocked: Database) -> None:
    held = charge(stocked, email("c", 1), email("a", 2), email("b", 3))

    settle(
        stocked,
        Settlement(charge=held[0], state=State.SENT),
        Settlement(charge=held[1], state=State.FAILED, refund=2),
        Settlement(charge=held[2], state=State.SENT, refund=1),
    )

    assert [entry[1] for entry in entries_of(stocked, "john")] == [10, -1, -2, -3, 2, 1]
    assert balance(stocked, "john") == 7
    assert findings(stocked) == []


def bulk(credits_each: int, count: int, job_id: str = "bulk", sender: str = "john") -> tuple[Job, list[Job]]:
    messages = [
        replace(email(f"{number}", credits_each, sender=sender), job_id=f"{job_id}/{number}", bulk_id=job_id)
        for number in range(count)
    ]
    return replace(email(job_id, credits_each * count, sender=sender), content={}), messages


def charge_bulk(database: Database, whole: Job, messages: list[Job]) -> Charge:
    return database.transact(lambda connection: ledger.charge_bulk(connection, whole, messages, now=NOON, due_at=LEASE))


def test_a_bulk_job_moves_its_credits_message_by_message(stocked: Database) -> None:
    made = charge_bulk(stocked, *bulk(2, 3, sender="peter"))

    assert (made.fresh, made.state, made.payer, made.credits) == (True, State.BULK, "john", 6)
    moved = [(2, -2, 8, "charge:bulk/0"), (3, -2, 6, "charge:bulk/1"), (4, -2, 4, "charge:bulk/2")]
    assert entries_of(stocked, "john")[1:] == moved
    assert findings(stocked) == []


def test_the_messages_of_a_bulk_job_wait_and_can_be_claimed(stocked: Database) -> None:
    charge_bulk(stocked, *bulk(1, 3))

    with stocked.begin() as connection:
        held = charging.claim(connection, ["bulk/2", "bulk/0", "bulk"], lease_until=LEASE)

    assert [(one.job_id, one.state, one.attempts) for one in held] == [
        ("bulk/0", State.SENDING, 1),
        ("bulk/2", State.SENDING, 1),
    ]


def test_a_bulk_job_that_does_not_fit_leaves_the_balance_and_only_its_own_refusal(stocked: Database) -> None:
    made = charge_bulk(stocked, *bulk(3, 4))

    assert (made.fresh, made.state, made.reason, made.payer) == (False, State.REFUSED, "insufficient_credits", None)
    assert "3 of its 4 messages would fit" in (made.detail or "")
    assert len(entries_of(stocked, "john")) == 1
    with stocked.read() as connection:
        assert connection.execute(select(charges.c.job_id, charges.c.state)).all() == [("bulk", "refused")]


def test_a_known_bulk_job_comes_back_as_it_stands(stocked: Database) -> None:
    charge_bulk(stocked, *bulk(1, 3))

    again = charge_bulk(stocked, *bulk(1, 3))

    assert (again.fresh, again.state) == (False, State.BULK)
    assert balance(stocked, "john") == 7


def test_jobs_are_taken_up_longest_due_first_and_then_left_alone_for_a_while(stocked: Database) -> None:
    held = charge(stocked, *(email(name) for name in ("a", "b", "c")))
    due = {"a": NOON + timedelta(minutes=3), "b": NOON + timedelta(minutes=1), "c": NOON + timedelta(minutes=9)}
    settle(stocked, *(Settlement(charge=one, state=State.WAITING, due_at=due[one.job_id]) for one in held))
    look_again = NOON + timedelta(minutes=8)

    with stocked.begin() as connection:
        one = charging.take_due(connection, NOON + timedelta(minutes=5), look_again, limit=1)
        rest = charging.take_due(connection, NOON + timedelta(minutes=5), look_again, limit=9)
        nothing = charging.take_due(connection, NOON + timedelta(minutes=5), look_again, limit=9)

    assert (one, rest, nothing) == ([("email", "b")], [("email", "a")], [])
