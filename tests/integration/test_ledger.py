"""The ledger alone: entries, balances, replays, refunds, what fits into a batch, and who has a say in a job."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, select

from models.database.engine import Database
from models.database.schema import accounts, charges, entries, leases
from models.messages.sends import Content
from models.sends import settling
from models.sends.charges import Charge, SendJob, State, find_charges, ids_with_crashes, restart
from models.sends.charging import charge_bulk_job, charge_jobs
from models.sends.due import claim_due, claim_due_bulks
from models.sends.leases import claim_jobs, delete_idle, lock_expired, lock_orphaned, mark_handover, release_jobs
from models.sends.outcomes import Settlement
from tests.audits import audit_everything
from tests.factories import balance, buy, email_job, ledger_job, share, sms_job, stock
from tests.fakes import NOON

LEASE = NOON + timedelta(minutes=5)


@pytest.fixture
def stocked(database: Database) -> Database:
    """Give a database in which john owns 10 email and 5 SMS credits, and peter uses them."""
    return stock(database, email=10, sms=5)


def charge(database: Database, *jobs: SendJob, lease_id: str = "first") -> list[Charge]:
    return database.write(
        lambda connection: charge_jobs(connection, jobs, lease_id=lease_id, now=NOON, lease_until=LEASE)
    )


def claim(
    database: Database, attempts: dict[str, int], lease_id: str = "second", until: datetime = LEASE
) -> list[Charge]:
    return database.write(lambda connection: claim_jobs(connection, attempts, lease_id=lease_id, lease_until=until))


def mark_handed(database: Database, held: Charge, now: datetime = NOON) -> bool:
    return held.job_id in database.write(lambda connection: mark_handover(connection, [held], now))


def hand_back(database: Database, *held: Charge) -> None:
    database.write(lambda connection: release_jobs(connection, held, NOON))


def lock_dead(database: Database, now: datetime, limit: int = 9) -> list[str]:
    def lock(connection: Connection) -> list[Charge]:
        return lock_orphaned(connection, lock_expired(connection, now, limit))

    return [one.job_id for one in database.write(lock)]


def leases_kept(database: Database) -> list[str]:
    with database.snapshot() as connection:
        return sorted(connection.execute(select(leases.c.lease_id)).scalars())


def stands(database: Database, job_id: str = "job-1") -> Charge:
    """Give the charge as it is stored."""
    with database.snapshot() as connection:
        return find_charges(connection, [job_id])[job_id]


def settle(database: Database, *settlements: Settlement) -> list[Settlement]:
    return database.write(lambda connection: settling.settle(connection, settlements, NOON, keep_dead=False))


def email(job_id: str = "job-1", credits_: int = 1, **fields: Any) -> SendJob:
    return replace(ledger_job(email_job(job_id, **fields)), credits=credits_)


def entries_of(database: Database, owner: str, kind: str = "email") -> Sequence[Any]:
    query = (
        select(entries.c.seq, entries.c.amount, entries.c.balance_after, entries.c.cause)
        .join(accounts, accounts.c.id == entries.c.account_id)
        .where(accounts.c.owner_id == owner, accounts.c.kind == kind)
        .order_by(entries.c.seq)
    )
    with database.snapshot() as connection:
        return [tuple(row) for row in connection.execute(query)]


def findings(database: Database) -> list[Any]:
    with database.snapshot() as connection:
        return audit_everything(connection, NOON)


def test_a_charge_writes_an_entry_and_the_balance_it_leaves(stocked: Database) -> None:
    [made] = charge(stocked, email(credits_=3, sender="peter"))

    assert (made.is_new, made.state, made.payer, made.sender) == (True, State.SENDING, "john", "peter")
    assert (made.credits, made.refunded, made.attempts) == (3, 0, 1)
    assert (made.lease_id, made.crashes, made.handover_started_at) == ("first", 0, None)
    assert entries_of(stocked, "john")[1:] == [(2, -3, 7, "charge:job-1")]
    assert balance(stocked, "john") == 7
    assert findings(stocked) == []


def test_a_fresh_charge_equals_what_is_read_back(stocked: Database) -> None:
    """Whoever made a charge works with what the next lease_id would find."""
    [made] = charge(stocked, email())

    assert stands(stocked) == replace(made, is_new=False)


def test_a_refused_charge_equals_what_is_read_back(stocked: Database) -> None:
    made = charge(stocked, email("dear", 11), email("strange", sender="nobody"))

    with stocked.snapshot() as connection:
        found = find_charges(connection, ["dear", "strange"])
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
    assert [one.is_new for one in made] == [True, False, True, False, True]
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

    assert [(one.job_id, one.is_new) for one in made] == [("a", True), ("b", True), ("a", False)]
    assert balance(stocked, "john") == 7


def test_an_id_twice_in_one_batch_shows_the_digest_of_the_first(stocked: Database) -> None:
    first, second = email("a"), email("a", subject="Other")

    made = charge(stocked, first, second)

    assert [one.digest for one in made] == [first.digest, first.digest]


def test_a_known_id_comes_back_as_it_stands_and_changes_nothing(stocked: Database) -> None:
    charge(stocked, email("old", 2))

    known, new = charge(stocked, email("old", 2), email("new", 1), lease_id="second")

    assert (known.is_new, known.state, known.payer, known.credits) == (False, State.SENDING, "john", 2)
    assert (known.lease_id, new.lease_id, new.is_new) == ("first", "second", True)
    assert balance(stocked, "john") == 7


def test_a_charge_that_is_run_again_by_its_holder_finds_what_it_charged(stocked: Database) -> None:
    """The answer to its commit was lost, so nobody else is going to deliver these."""
    batch = [email("b", 2), email("dear", 11), email("a", 1), email("b", 2), email("strange", sender="nobody")]
    made = charge(stocked, *batch)

    again = charge(stocked, *batch)

    assert [one.is_new for one in again] == [one.is_new for one in made] == [True, False, True, False, False]
    assert [stands(stocked, one.job_id) for one in again] == [replace(one, is_new=False) for one in again]
    assert [one.attempts for one in again] == [one.attempts for one in made]
    assert [entry[1] for entry in entries_of(stocked, "john")] == [10, -2, -1]
    assert findings(stocked) == []


def test_a_charge_that_is_run_again_does_not_find_what_is_its_own_no_more(stocked: Database) -> None:
    sent, swept, waits = charge(stocked, email("sent"), email("swept"), email("waits"))
    settle(stocked, Settlement(charge=sent, state=State.SENT))
    for one in (swept, waits):
        settle(stocked, Settlement(charge=one, state=State.WAITING, due_at=NOON, crashed=True))
    claim(stocked, {"swept": 1})

    again = charge(stocked, email("sent"), email("swept"), email("waits"))

    assert [one.state for one in again] == [State.SENT, State.SENDING, State.WAITING]
    assert [one.is_new for one in again] == [False, False, False]
    assert balance(stocked, "john") == 7


def test_a_transaction_that_is_rolled_back_leaves_neither_charge_nor_entry(stocked: Database) -> None:
    def charge_and_die(connection: Any) -> None:
        charge_jobs(connection, [email()], lease_id="first", now=NOON, lease_until=LEASE)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stocked.write(charge_and_die)

    assert balance(stocked, "john") == 10
    assert len(entries_of(stocked, "john")) == 1
    with stocked.snapshot() as connection:
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


def test_refunds_are_entered_in_the_order_of_the_settlements(stocked: Database) -> None:
    held = charge(stocked, *(email(job_id) for job_id in ("job-9", "job-10", "job-1")))

    settle(stocked, *(Settlement(charge=one, state=State.FAILED, refund=1) for one in held))

    causes = [cause for _, _, _, cause in entries_of(stocked, "john")]
    assert causes[-3:] == ["refund:job-9", "refund:job-10", "refund:job-1"]


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
    [second] = claim(stocked, {"job-1": 1})

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


def bulk(credits_each: int, count: int, job_id: str = "bulk", sender: str = "john") -> tuple[SendJob, list[Content]]:
    messages = [Content({"to": [f"{number}@example.test"]}, credits_each) for number in range(count)]
    return replace(email(job_id, credits_each * count, sender=sender), content={}), messages


def charge_bulk(database: Database, whole: SendJob, messages: list[Content]) -> Charge:
    return database.write(lambda connection: charge_bulk_job(connection, whole, messages, now=NOON, due_at=LEASE))


def test_a_bulk_job_moves_its_credits_by_one_entry(stocked: Database) -> None:
    made = charge_bulk(stocked, *bulk(2, 3, sender="peter"))

    assert (made.is_new, made.state, made.payer, made.credits) == (True, State.BULK, "john", 6)
    assert entries_of(stocked, "john")[1:] == [(2, -6, 4, "charge:bulk")]
    with stocked.snapshot() as connection:
        messages = find_charges(connection, ["bulk/0", "bulk/1", "bulk/2"]).values()
    assert len(messages) == 3
    assert {(one.state, one.payer, one.credits, one.bulk_id) for one in messages} == {
        (State.WAITING, "john", 2, "bulk")
    }
    assert findings(stocked) == []


def test_a_message_of_a_bulk_job_is_refunded_by_an_entry_of_its_own(stocked: Database) -> None:
    charge_bulk(stocked, *bulk(2, 3, sender="peter"))
    share(stocked, "peter", "peter")
    [held] = claim(stocked, {"bulk/1": 0})

    settle(stocked, Settlement(charge=held, state=State.FAILED, refund=2))

    assert entries_of(stocked, "john")[1:] == [(2, -6, 4, "charge:bulk"), (3, 2, 6, "refund:bulk/1")]
    assert findings(stocked) == []


def test_a_bulk_job_is_due_as_long_as_one_of_its_messages_was_never_begun(stocked: Database) -> None:
    charge_bulk(stocked, *bulk(1, 3))
    later, look_again = LEASE + timedelta(minutes=1), LEASE + timedelta(minutes=2)

    def due(now: datetime) -> list[tuple[str, str, int]]:
        return [
            tuple(one)
            for one in stocked.write(lambda connection: claim_due_bulks(connection, now, now + timedelta(minutes=1), 9))
        ]

    early = due(NOON)
    first = due(later)
    at_once_again = due(later)
    held = claim(stocked, {"bulk/0": 0, "bulk/2": 0})
    settle(stocked, Settlement(charge=held[0], state=State.WAITING, due_at=look_again))
    rest = due(look_again)
    claim(stocked, {"bulk/1": 0}, lease_id="third")
    nothing = due(look_again + timedelta(hours=1))
    with stocked.snapshot() as connection:
        [due_at] = connection.execute(select(charges.c.due_at).where(charges.c.job_id == "bulk")).scalars()

    assert (early, at_once_again, nothing, due_at) == ([], [], [], None)
    assert first == [("email", f"bulk/{place}", 0) for place in range(3)]
    assert rest == [("email", "bulk/1", 0)]


def test_the_messages_of_a_bulk_job_wait_and_can_be_claimed(stocked: Database) -> None:
    charge_bulk(stocked, *bulk(1, 3))

    held = claim(stocked, {"bulk/2": 0, "bulk/0": 0, "bulk": 0})

    assert [(one.job_id, one.state, one.attempts, one.lease_id) for one in held] == [
        ("bulk/0", State.SENDING, 1, "second"),
        ("bulk/2", State.SENDING, 1, "second"),
    ]


def test_a_bulk_job_that_does_not_fit_leaves_the_balance_and_only_its_own_refusal(stocked: Database) -> None:
    made = charge_bulk(stocked, *bulk(3, 4))

    assert (made.is_new, made.state, made.reason, made.payer) == (False, State.REFUSED, "insufficient_credits", None)
    assert "3 of its 4 messages would fit" in (made.detail or "")
    assert len(entries_of(stocked, "john")) == 1
    with stocked.snapshot() as connection:
        assert connection.execute(select(charges.c.job_id, charges.c.state)).all() == [("bulk", "refused")]


def test_a_known_bulk_job_comes_back_as_it_stands(stocked: Database) -> None:
    charge_bulk(stocked, *bulk(1, 3))

    again = charge_bulk(stocked, *bulk(1, 3))

    assert (again.is_new, again.state) == (False, State.BULK)
    assert balance(stocked, "john") == 7


def test_jobs_are_taken_up_longest_due_first_and_then_left_alone_for_a_while(stocked: Database) -> None:
    held = charge(stocked, *(email(name) for name in ("a", "b", "c")))
    due = {"a": NOON + timedelta(minutes=3), "b": NOON + timedelta(minutes=1), "c": NOON + timedelta(minutes=9)}
    settle(stocked, *(Settlement(charge=one, state=State.WAITING, due_at=due[one.job_id]) for one in held))
    look_again = NOON + timedelta(minutes=8)

    with stocked.engine.begin() as connection:
        one = claim_due(connection, NOON + timedelta(minutes=5), look_again, limit=1)
        rest = claim_due(connection, NOON + timedelta(minutes=5), look_again, limit=9)
        nothing = claim_due(connection, NOON + timedelta(minutes=5), look_again, limit=9)

    assert (one, rest, nothing) == ([("email", "b", 1)], [("email", "a", 1)], [])


# -- who holds a job --------------------------------------------------------------------------------------------------


def waiting(database: Database, *job_ids: str) -> None:
    """Charge jobs that wait after their first attempt."""
    for one in charge(database, *map(email, job_ids)):
        settle(database, Settlement(charge=one, state=State.WAITING, due_at=NOON))


def test_a_claim_that_is_run_again_by_its_holder_finds_what_it_claimed(stocked: Database) -> None:
    waiting(stocked, "a", "b", "sent")
    held = claim(stocked, {"a": 1, "b": 1, "sent": 1})
    settle(stocked, Settlement(charge=held[2], state=State.SENT))

    again = claim(stocked, {"a": 1, "b": 1, "sent": 1})

    assert again == held[:2]
    assert [(one.attempts, one.is_new) for one in again] == [(2, True), (2, True)]


def test_a_claim_that_is_run_again_finds_those_of_its_jobs_only(stocked: Database) -> None:
    waiting(stocked, "a", "b", "c")
    claim(stocked, {"a": 1, "b": 1})

    assert [one.job_id for one in claim(stocked, {"b": 1, "c": 1})] == ["b", "c"]


def test_what_somebody_holds_is_claimed_by_nobody_else(stocked: Database) -> None:
    waiting(stocked, "a", "b")
    claim(stocked, {"a": 1}, "second")

    assert [one.job_id for one in claim(stocked, {"a": 1, "b": 1}, "third")] == ["b"]
    assert claim(stocked, {"a": 2}, "third") == []
    assert (stands(stocked, "a").lease_id, stands(stocked, "a").attempts) == ("second", 2)


def test_what_was_asked_for_twice_is_claimed_once(stocked: Database) -> None:
    """The second message was enqueued before the attempt that the first one brought."""
    waiting(stocked, "a")
    [held] = claim(stocked, {"a": 1})
    settle(stocked, Settlement(charge=held, state=State.WAITING, due_at=NOON))

    assert claim(stocked, {"a": 1}, "third") == []


def test_what_is_handed_back_waits_and_the_attempt_does_not_count(stocked: Database) -> None:
    waiting(stocked, "a")
    [held] = claim(stocked, {"a": 1})

    hand_back(stocked, held)

    after = stands(stocked, "a")
    assert (after.state, after.attempts, after.crashes, after.due_at) == (State.WAITING, 1, 0, NOON)
    assert [one.job_id for one in claim(stocked, {"a": 1}, "third")] == ["a"]


def lose_to_the_next_claim(database: Database, held: Charge) -> None:
    """Hand the job back and have somebody else claim it: under the same number."""
    hand_back(database, held)
    assert [one.attempts for one in claim(database, {"job-1": 0})] == [held.attempts]


def lose_to_a_person(database: Database, held: Charge) -> None:
    """Let the job begin anew, as a person may: the attempts are counted from one again."""
    settle(database, Settlement(charge=held, state=State.UNKNOWN, in_doubt=True, crashed=True))
    with database.engine.begin() as connection:
        restart(connection, held, held.content or {}, NOON)


def lose_to_a_person_and_the_next_claim(database: Database, held: Charge) -> None:
    """Let the job begin anew, and somebody else make its first attempt."""
    lose_to_a_person(database, held)
    assert [one.attempts for one in claim(database, {"job-1": 0})] == [held.attempts]


@pytest.mark.parametrize("lose", [lose_to_the_next_claim, lose_to_a_person, lose_to_a_person_and_the_next_claim])
def test_who_held_a_job_before_has_no_say_any_more(stocked: Database, lose: Callable[[Database, Charge], None]) -> None:
    """The number of the attempt alone would not tell them apart."""
    [late] = charge(stocked, email())
    lose(stocked, late)
    before = stands(stocked)

    marked = mark_handed(stocked, late)
    counted = settle(stocked, Settlement(charge=late, state=State.FAILED, refund=1))
    hand_back(stocked, late)

    assert (marked, counted) == (False, [])
    assert stands(stocked) == before
    assert balance(stocked, "john") == 9


def test_a_job_that_begins_anew_has_no_holder_no_deaths_and_no_doubt(stocked: Database) -> None:
    [held] = charge(stocked, email())
    lose_to_a_person(stocked, held)

    anew = stands(stocked)

    assert (anew.state, anew.attempts, anew.due_at) == (State.WAITING, 0, NOON)
    assert (anew.lease_id, anew.crashes, anew.handover_started_at) == (None, 0, None)


# -- what was handed over ---------------------------------------------------------------------------------------------


def test_a_handing_over_is_noted_once_and_by_who_holds_the_job(stocked: Database) -> None:
    [held] = charge(stocked, email())

    assert mark_handed(stocked, held)
    assert mark_handed(stocked, held, NOON + timedelta(minutes=1))
    assert stands(stocked).handover_started_at == NOON


def test_a_settled_attempt_cannot_be_handed_over(stocked: Database) -> None:
    [held] = charge(stocked, email())
    settle(stocked, Settlement(charge=held, state=State.WAITING, due_at=NOON))

    assert not mark_handed(stocked, held)
    assert stands(stocked).handover_started_at is None


@pytest.mark.parametrize("state", [State.SENT, State.FAILED, State.WAITING])
def test_a_settlement_without_a_doubt_forgets_the_handing_over(stocked: Database, state: State) -> None:
    [held] = charge(stocked, email())
    mark_handed(stocked, held)

    refund = 1 if state is State.FAILED else 0
    due_at = NOON if state is State.WAITING else None
    settle(stocked, Settlement(charge=held, state=state, refund=refund, due_at=due_at))

    assert (stands(stocked).state, stands(stocked).handover_started_at) == (state, None)


def test_a_doubt_is_as_old_as_the_first_attempt_that_left_it(stocked: Database) -> None:
    [first] = charge(stocked, ledger_job(sms_job()))
    settle(stocked, Settlement(charge=first, state=State.WAITING, due_at=NOON, in_doubt=True))
    [second] = claim(stocked, {"job-1": 1})

    stocked.write(
        lambda connection: settling.settle(
            connection,
            [Settlement(charge=second, state=State.UNKNOWN, in_doubt=True)],
            NOON + timedelta(minutes=1),
            keep_dead=False,
        )
    )

    assert (second.handover_started_at, stands(stocked).handover_started_at) == (NOON, NOON)


# -- crashes -----------------------------------------------------------------------------------------------------------


def test_deaths_are_counted_apart_from_attempts(stocked: Database) -> None:
    [first] = charge(stocked, email())
    settle(stocked, Settlement(charge=first, state=State.WAITING, due_at=NOON, crashed=True))
    [second] = claim(stocked, {"job-1": 1})
    settle(stocked, Settlement(charge=second, state=State.WAITING, due_at=NOON))
    [third] = claim(stocked, {"job-1": 2})

    settle(stocked, Settlement(charge=third, state=State.FAILED, refund=1, crashed=True))

    assert [one.crashes for one in (first, second, third)] == [0, 1, 1]
    assert (stands(stocked).attempts, stands(stocked).crashes) == (3, 2)


def test_those_whose_lease_is_over_are_dead_and_nobody_else(stocked: Database) -> None:
    charge(stocked, email("held"), email("held-too"), lease_id="a")
    waiting(stocked, "waits", "held-longer")
    claim(stocked, {"held-longer": 1}, lease_id="b", until=LEASE + timedelta(minutes=1))

    assert lock_dead(stocked, LEASE - timedelta(seconds=1)) == []
    assert lock_dead(stocked, LEASE) == ["held", "held-too"]
    assert lock_dead(stocked, LEASE + timedelta(minutes=1), limit=1) == ["held", "held-too"]
    assert lock_dead(stocked, LEASE + timedelta(minutes=1)) == ["held", "held-longer", "held-too"]


def test_a_job_that_another_holds_meanwhile_is_not_dead(stocked: Database) -> None:
    waiting(stocked, "job-1")
    [first] = claim(stocked, {"job-1": 1}, lease_id="a")
    hand_back(stocked, first)
    claim(stocked, {"job-1": 1}, lease_id="b", until=LEASE + timedelta(minutes=1))

    assert lock_dead(stocked, LEASE) == []
    assert lock_dead(stocked, LEASE + timedelta(minutes=1)) == ["job-1"]


# -- leases -----------------------------------------------------------------------------------------------------------


def test_a_lease_is_forgotten_with_the_end_of_all_its_jobs(stocked: Database) -> None:
    held = charge(stocked, email("a"), email("b"), lease_id="h")
    assert leases_kept(stocked) == ["h"]

    settle(stocked, *(Settlement(charge=one, state=State.SENT) for one in held))

    assert leases_kept(stocked) == []


def test_a_lease_is_forgotten_with_the_last_of_its_jobs(stocked: Database) -> None:
    kept = []
    for number, one in enumerate(charge(stocked, email("a"), email("b"), lease_id="h")):
        end = Settlement(charge=one, state=State.SENT)
        stocked.write(
            lambda c, end=end, number=number: settling.settle(c, [end], NOON, keep_dead=False, settled_before=number)
        )  # type: ignore[misc]
        kept.append(leases_kept(stocked))

    assert kept == [["h"], []]


def test_a_lease_of_which_nobody_counts_the_ends_is_kept_until_it_is_over(stocked: Database) -> None:
    for one in charge(stocked, email("a"), email("b"), lease_id="h"):
        settle(stocked, Settlement(charge=one, state=State.SENT))
    assert leases_kept(stocked) == ["h"]

    assert lock_dead(stocked, LEASE) == []
    assert stocked.write(lambda connection: delete_idle(connection, ["h"])) == 1
    assert leases_kept(stocked) == []


def test_a_lease_is_not_forgotten_while_anything_is_held_under_it(stocked: Database) -> None:
    held = charge(stocked, email("a"), email("b"), email("c"), lease_id="h")
    settle(stocked, Settlement(charge=held[0], state=State.SENT))
    settle(stocked, Settlement(charge=held[1], state=State.UNKNOWN, in_doubt=True))

    assert stocked.write(lambda connection: delete_idle(connection, ["h"])) == 0
    assert (leases_kept(stocked), lock_dead(stocked, LEASE)) == (["h"], ["c"])


def test_a_job_that_its_holder_is_about_to_end_keeps_its_lease(postgres_url: str) -> None:
    database = stock(Database(postgres_url), email=10)
    held = charge(database, email("a"), email("b"), lease_id="h")

    with database.engine.begin() as slow:
        settling.settle(slow, [Settlement(charge=held[0], state=State.SENT)], NOON, keep_dead=False)
        with database.engine.begin() as sweeping:
            assert [one.job_id for one in lock_orphaned(sweeping, ["h"])] == ["b"]
            assert delete_idle(sweeping, ["h"]) == 0
    database.close()


def test_the_jobs_over_which_a_worker_died_are_known(stocked: Database) -> None:
    waiting(stocked, "a", "b", "c")
    for one in claim(stocked, {"a": 1, "c": 1}):
        settle(stocked, Settlement(charge=one, state=State.WAITING, due_at=NOON, crashed=True))

    with stocked.snapshot() as connection:
        assert ids_with_crashes(connection, ["a", "b", "nobody"]) == {"a"}
