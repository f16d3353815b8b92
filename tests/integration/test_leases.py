"""Leases: which attempt holds a job, and what is left behind when a worker crashes."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
    note_handover,
    release,
    settle,
)
from tests.integration.stored import charge_of, lease_ids

LEASE, FIRST = leases.LeaseKey(ACME, "h"), leases.LeaseKey(ACME, "first")


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

    counted = settle(stocked, Settlement(charge=late, state=State.FAILED, refund=1))
    release(stocked, late)

    assert counted == []
    assert charge_of(stocked) == before
    assert balance(stocked, "john") == 9


def test_a_restarted_job_has_no_lease_no_crashes_and_no_doubt(stocked: Database) -> None:
    [held] = charge(stocked, email())
    lose_to_a_restart(stocked, held)

    restarted = charge_of(stocked)

    assert (restarted.state, restarted.attempts, restarted.due_at) == (State.WAITING, 0, NOON)
    assert (restarted.lease_id, restarted.crashes, restarted.handover_started_at) == (None, 0, None)


# -- handovers --------------------------------------------------------------------------------------------------------


def found_handovers(database: Database, lease: leases.LeaseKey = FIRST) -> dict[str, leases.HandedOver]:
    with database.snapshot() as connection:
        return {key.job_id: noted for key, noted in leases.find_handovers(connection, [lease]).items()}


def test_handovers_are_noted_with_their_carrier_and_time(stocked: Database) -> None:
    first, second, _ = charge(stocked, email("a"), email("b"), email("c"))

    assert note_handover(stocked, first)
    assert note_handover(stocked, second, NOON + timedelta(minutes=1))
    assert found_handovers(stocked) == {
        "a": leases.HandedOver("main", NOON),
        "b": leases.HandedOver("main", NOON + timedelta(minutes=1)),
    }


def test_handovers_of_several_leases_and_carriers_are_noted_together(stocked: Database) -> None:
    charge(stocked, email("a"), email("b"), email("c"), lease_id="first")
    charge(stocked, email("d"), lease_id="second")
    second = leases.LeaseKey(ACME, "second")
    notes = [
        leases.HandoverNote(FIRST, "main", ("a", "b")),
        leases.HandoverNote(FIRST, "other", ("c",)),
        leases.HandoverNote(second, "main", ("d",)),
        leases.HandoverNote(leases.LeaseKey(ACME, "nobody's"), "main", ("e",)),
    ]

    held = stocked.write(lambda connection: leases.note_handovers(connection, notes, NOON))

    assert held == {FIRST, second}
    assert {job_id: noted.carrier for job_id, noted in found_handovers(stocked).items()} == {
        "a": "main", "b": "main", "c": "other",
    }  # fmt: skip
    assert found_handovers(stocked, second).keys() == {"d"}


def test_nothing_is_handed_over_once_a_sweep_has_ended_the_lease(stocked: Database) -> None:
    [held] = charge(stocked, email())
    assert lock_orphaned(stocked, LEASE_END) == ["job-1"]

    assert not note_handover(stocked, held)
    assert found_handovers(stocked) == {}
    assert stocked.write(lambda connection: leases.renew_leases(connection, [FIRST], LEASE_END)) == set()


def test_handovers_go_with_their_lease(stocked: Database) -> None:
    [held] = charge(stocked, email())
    note_handover(stocked, held)

    settle(stocked, Settlement(charge=held, state=State.SENT))

    assert lease_ids(stocked) == []
    assert found_handovers(stocked) == {}
    assert not note_handover(stocked, held)


def test_a_note_waits_for_a_sweep_that_ends_the_lease(stocked_postgres: Database) -> None:
    """Whoever is first counts: a message that was handed over is found by the sweep, or nothing is handed over."""
    [held] = charge(stocked_postgres, email())

    with ThreadPoolExecutor(1) as thread:
        with stocked_postgres.engine.begin() as sweeping:
            assert leases.end_expired(sweeping, LEASE_END, 9) == [FIRST]
            noting = thread.submit(note_handover, stocked_postgres, held)
            with pytest.raises(TimeoutError):
                noting.result(0.3)
        assert noting.result(10) is False


def test_a_sweep_leaves_a_lease_alone_under_which_something_is_handed_over(stocked_postgres: Database) -> None:
    charge(stocked_postgres, email())
    note = leases.HandoverNote(FIRST, "main", ("job-1",))

    with stocked_postgres.engine.begin() as noting:
        assert leases.note_handovers(noting, [note], NOON) == {FIRST}
        assert lock_orphaned(stocked_postgres, LEASE_END) == []
    assert lock_orphaned(stocked_postgres, LEASE_END) == ["job-1"]
    assert found_handovers(stocked_postgres).keys() == {"job-1"}


def test_a_renewed_lease_lasts_longer(stocked: Database) -> None:
    charge(stocked, email())
    later = LEASE_END + timedelta(minutes=5)

    assert stocked.write(lambda connection: leases.renew_leases(connection, [FIRST], later)) == {FIRST}
    assert lock_orphaned(stocked, LEASE_END) == []
    assert lock_orphaned(stocked, later) == ["job-1"]


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
