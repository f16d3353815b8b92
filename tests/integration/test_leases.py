"""Leases: which attempt holds a job, and what is left behind when a worker crashes."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from models.database.engine import Database
from models.sends import leases, settling
from models.sends.charges import Charge, State, keys_with_crashes, restart
from models.sends.outcomes import Settlement
from tests.factories import ACME, acme, balance
from tests.fakes import NOON
from tests.integration.ledger_steps import (
    AT_ONCE,
    LEASE_END,
    charge,
    charge_waiting,
    claim,
    email,
    lock_orphaned,
    mark_handover,
    release,
    settle,
)
from tests.integration.stored import charge_of, lease_ids

LEASE = leases.LeaseKey(ACME, "h")


def test_claiming_again_under_the_same_lease_finds_the_same_jobs(stocked: Database) -> None:
    charge_waiting(stocked, "a", "b", "sent")
    held = claim(stocked, {"a": 1, "b": 1, "sent": 1})
    settle(stocked, Settlement(charge=held[2], state=State.SENT))

    again = claim(stocked, {"a": 1, "b": 1, "sent": 1})

    assert again == held[:2]
    assert [(charged.attempts, charged.is_new) for charged in again] == [(2, True), (2, True)]


def test_claiming_again_finds_only_the_jobs_that_are_named(stocked: Database) -> None:
    charge_waiting(stocked, "a", "b", "c")
    claim(stocked, {"a": 1, "b": 1})

    assert [charged.job_id for charged in claim(stocked, {"b": 1, "c": 1})] == ["b", "c"]


def test_a_held_job_cannot_be_claimed_under_another_lease(stocked: Database) -> None:
    charge_waiting(stocked, "a", "b")
    claim(stocked, {"a": 1}, "second")

    assert [charged.job_id for charged in claim(stocked, {"a": 1, "b": 1}, "third")] == ["b"]
    assert claim(stocked, {"a": 2}, "third") == []
    assert (charge_of(stocked, "a").lease_id, charge_of(stocked, "a").attempts) == ("second", 2)


def test_a_job_that_was_enqueued_twice_is_claimed_once(stocked: Database) -> None:
    """The second message was enqueued before the first one had led to its attempt."""
    charge_waiting(stocked, "a")
    [held] = claim(stocked, {"a": 1})
    settle(stocked, Settlement(charge=held, state=State.WAITING, retry_after=AT_ONCE))

    assert claim(stocked, {"a": 1}, "third") == []


def test_a_released_job_waits_and_the_attempt_does_not_count(stocked: Database) -> None:
    charge_waiting(stocked, "a")
    [held] = claim(stocked, {"a": 1})

    release(stocked, held)

    after = charge_of(stocked, "a")
    assert (after.state, after.attempts, after.crashes, after.due_at) == (State.WAITING, 1, 0, NOON)
    assert [charged.job_id for charged in claim(stocked, {"a": 1}, "third")] == ["a"]


def lose_to_the_next_claim(database: Database, held: Charge) -> None:
    """Release the job and claim it under another lease: the attempt has the same number."""
    release(database, held)
    assert [charged.attempts for charged in claim(database, {"job-1": 0})] == [held.attempts]


def lose_to_a_restart(database: Database, held: Charge) -> None:
    """Restart the job, as an operator may: its attempts are counted from one again."""
    settle(database, Settlement(charge=held, state=State.UNKNOWN, in_doubt=True, crashed=True))
    with database.engine.begin() as connection:
        restart(connection, held, held.content or {}, NOON)


def lose_to_a_restart_and_the_next_claim(database: Database, held: Charge) -> None:
    """Restart the job and begin its first attempt under another lease."""
    lose_to_a_restart(database, held)
    assert [charged.attempts for charged in claim(database, {"job-1": 0})] == [held.attempts]


@pytest.mark.parametrize("lose", [lose_to_the_next_claim, lose_to_a_restart, lose_to_a_restart_and_the_next_claim])
def test_an_attempt_that_lost_its_job_changes_nothing(
    stocked: Database, lose: Callable[[Database, Charge], None]
) -> None:
    """The lease id tells it from the attempt with the same number."""
    [late] = charge(stocked, email())
    lose(stocked, late)
    before = charge_of(stocked)

    marked = mark_handover(stocked, late)
    counted = settle(stocked, Settlement(charge=late, state=State.FAILED, refund=1))
    release(stocked, late)

    assert (marked, counted) == (False, [])
    assert charge_of(stocked) == before
    assert balance(stocked, "john") == 9


def test_a_restarted_job_has_no_lease_no_crashes_and_no_doubt(stocked: Database) -> None:
    [held] = charge(stocked, email())
    lose_to_a_restart(stocked, held)

    restarted = charge_of(stocked)

    assert (restarted.state, restarted.attempts, restarted.due_at) == (State.WAITING, 0, NOON)
    assert (restarted.lease_id, restarted.crashes, restarted.handover_started_at) == (None, 0, None)


# -- handovers --------------------------------------------------------------------------------------------------------


def test_a_handover_keeps_the_time_at_which_it_was_first_noted(stocked: Database) -> None:
    [held] = charge(stocked, email())

    assert mark_handover(stocked, held)
    assert mark_handover(stocked, held, NOON + timedelta(minutes=1))
    assert charge_of(stocked).handover_started_at == NOON


def test_a_handover_is_not_noted_for_a_settled_attempt(stocked: Database) -> None:
    [held] = charge(stocked, email())
    settle(stocked, Settlement(charge=held, state=State.WAITING, retry_after=AT_ONCE))

    assert not mark_handover(stocked, held)
    assert charge_of(stocked).handover_started_at is None


# -- orphaned jobs ----------------------------------------------------------------------------------------------------


def test_jobs_are_orphaned_when_their_lease_expires(stocked: Database) -> None:
    charge(stocked, email("held"), email("held-too"), lease_id="a")
    charge_waiting(stocked, "waits", "held-longer")
    claim(stocked, {"held-longer": 1}, lease_id="b", until=LEASE_END + timedelta(minutes=1))

    assert lock_orphaned(stocked, LEASE_END - timedelta(seconds=1)) == []
    assert lock_orphaned(stocked, LEASE_END) == ["held", "held-too"]
    assert lock_orphaned(stocked, LEASE_END + timedelta(minutes=1), limit=1) == ["held", "held-too"]
    assert lock_orphaned(stocked, LEASE_END + timedelta(minutes=1)) == ["held", "held-longer", "held-too"]


def test_a_job_that_was_claimed_again_is_not_orphaned(stocked: Database) -> None:
    charge_waiting(stocked, "job-1")
    [first] = claim(stocked, {"job-1": 1}, lease_id="a")
    release(stocked, first)
    claim(stocked, {"job-1": 1}, lease_id="b", until=LEASE_END + timedelta(minutes=1))

    assert lock_orphaned(stocked, LEASE_END) == []
    assert lock_orphaned(stocked, LEASE_END + timedelta(minutes=1)) == ["job-1"]


def test_jobs_with_crashes_are_found_among_others(stocked: Database) -> None:
    charge_waiting(stocked, "a", "b", "c")
    for charged in claim(stocked, {"a": 1, "c": 1}):
        settle(stocked, Settlement(charge=charged, state=State.WAITING, retry_after=AT_ONCE, crashed=True))

    with stocked.snapshot() as connection:
        assert keys_with_crashes(connection, acme("a", "b", "nobody")) == set(acme("a"))


# -- the end of a lease -----------------------------------------------------------------------------------------------


def test_a_lease_is_deleted_when_its_jobs_are_settled_together(stocked: Database) -> None:
    held = charge(stocked, email("a"), email("b"), lease_id="h")
    assert lease_ids(stocked) == ["h"]

    settle(stocked, *(Settlement(charge=charged, state=State.SENT) for charged in held))

    assert lease_ids(stocked) == []


def test_a_lease_is_deleted_with_the_last_of_its_jobs(stocked: Database) -> None:
    kept = []
    for number, charged in enumerate(charge(stocked, email("a"), email("b"), lease_id="h")):
        settle(stocked, Settlement(charge=charged, state=State.SENT), settled_before=number)
        kept.append(lease_ids(stocked))

    assert kept == [["h"], []]


def test_a_lease_with_uncounted_settlements_is_kept_until_it_expires(stocked: Database) -> None:
    for charged in charge(stocked, email("a"), email("b"), lease_id="h"):
        settle(stocked, Settlement(charge=charged, state=State.SENT))
    assert lease_ids(stocked) == ["h"]

    assert lock_orphaned(stocked, LEASE_END) == []
    assert stocked.write(lambda connection: leases.delete_idle(connection, [LEASE])) == 1
    assert lease_ids(stocked) == []


def test_a_lease_is_kept_while_a_job_is_held_under_it(stocked: Database) -> None:
    held = charge(stocked, email("a"), email("b"), email("c"), lease_id="h")
    settle(stocked, Settlement(charge=held[0], state=State.SENT))
    settle(stocked, Settlement(charge=held[1], state=State.UNKNOWN, in_doubt=True))

    assert stocked.write(lambda connection: leases.delete_idle(connection, [LEASE])) == 0
    assert (lease_ids(stocked), lock_orphaned(stocked, LEASE_END)) == (["h"], ["c"])


def test_a_lease_is_kept_until_the_settlement_is_committed(stocked_postgres: Database) -> None:
    held = charge(stocked_postgres, email("a"), lease_id="h")

    with stocked_postgres.engine.begin() as slow:
        settling.settle(slow, [Settlement(charge=held[0], state=State.SENT)], NOON, keep_dead=False)
        with stocked_postgres.engine.begin() as sweeping:
            assert leases.lock_orphaned(sweeping, [LEASE]) == []
            assert leases.delete_idle(sweeping, [LEASE]) == 0
