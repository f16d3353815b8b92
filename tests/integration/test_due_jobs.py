"""Due jobs: which ones a sweep enqueues, and what happens to jobs that are enqueued more than once."""

from datetime import datetime, timedelta

import pytest
from sqlalchemy import select

from models.database.engine import Database
from models.database.schema import charges
from models.sends.charges import State
from models.sends.due import DueJob, claim_due, claim_due_bulks
from models.sends.outcomes import Settlement
from tasks import upkeep
from tests.factories import ACME, email_job, sms_job
from tests.fakes import NOON, NOT_NOW, Clock, FakeCarrier, answer, make_context, run_enqueued
from tests.integration.ledger_steps import LEASE_END, bulk_email, charge, charge_bulk, claim, email, settle
from tests.integration.sending import CRASH, LATER, bulk_job, pass_time, scripted_context, take_enqueued


def test_the_longest_due_jobs_are_claimed_first(stocked: Database) -> None:
    held = charge(stocked, *(email(name) for name in ("a", "b", "c")))
    delays = {name: timedelta(minutes=minutes) for name, minutes in (("a", 3), ("b", 1), ("c", 9))}
    settle(stocked, *(Settlement(charge=one, state=State.WAITING, retry_after=delays[one.job_id]) for one in held))
    next_due_at = NOON + timedelta(minutes=8)

    with stocked.engine.begin() as connection:
        first = claim_due(connection, NOON + timedelta(minutes=5), next_due_at, limit=1)
        rest = claim_due(connection, NOON + timedelta(minutes=5), next_due_at, limit=9)
        nothing = claim_due(connection, NOON + timedelta(minutes=5), next_due_at, limit=9)

    assert (first, rest, nothing) == ([("email", ACME, "b", 1)], [("email", ACME, "a", 1)], [])


def test_a_bulk_job_is_due_while_one_of_its_messages_was_never_begun(stocked: Database) -> None:
    charge_bulk(stocked, *bulk_email(1, 3))
    later, next_due_at = LEASE_END + timedelta(minutes=1), LEASE_END + timedelta(minutes=2)

    def due(now: datetime) -> list[DueJob]:
        return stocked.write(lambda connection: claim_due_bulks(connection, now, now + timedelta(minutes=1), 9))

    early = due(NOON)
    first = due(later)
    at_once_again = due(later)
    held = claim(stocked, {"bulk/0": 0, "bulk/2": 0})
    settle(stocked, Settlement(charge=held[0], state=State.WAITING, retry_after=next_due_at - NOON))
    rest = due(next_due_at)
    claim(stocked, {"bulk/1": 0}, lease_id="third")
    nothing = due(next_due_at + timedelta(hours=1))
    with stocked.snapshot() as connection:
        [due_at] = connection.execute(select(charges.c.due_at).where(charges.c.job_id == "bulk")).scalars()

    assert (early, at_once_again, nothing, due_at) == ([], [], [], None)
    assert first == [("email", ACME, f"bulk/{place}", 0) for place in range(3)]
    assert rest == [("email", ACME, "bulk/1", 0)]


def test_a_due_job_is_enqueued_again_if_no_worker_takes_it_up(stocked: Database) -> None:
    clock = Clock()
    context = make_context(stocked, sms=FakeCarrier(NOT_NOW), clock=clock)
    answer(context, "sms.send", sms_job())

    clock.forward(LATER)
    rounds = []
    for _ in range(3):
        upkeep.sweep(context)
        rounds.append(take_enqueued(context))
        clock.forward(timedelta(seconds=31))

    assert [[task for task, _ in enqueued] for enqueued in rounds] == [["sms.resume"], [], ["sms.resume"]]


def test_a_job_that_is_resumed_twice_is_sent_once(stocked: Database) -> None:
    carrier, clock = FakeCarrier(NOT_NOW), Clock()
    context = make_context(stocked, sms=carrier, clock=clock)
    answer(context, "sms.send", sms_job())
    clock.forward(LATER)
    upkeep.sweep(context)
    [enqueued] = take_enqueued(context)

    first, second = (answer(context, *enqueued) for _ in range(2))

    assert first == {"status": "done", "sent": 1}
    assert second == {"status": "done"}
    assert len(carrier.messages) == 2


def test_a_job_that_is_enqueued_many_times_is_tried_once(stocked: Database) -> None:
    """Otherwise a long queue would use up the attempts of a job at once, without a wait between them."""
    clock = Clock()
    carrier = FakeCarrier(*[NOT_NOW] * 9)
    context = make_context(stocked, sms=carrier, clock=clock)
    answer(context, "sms.send", sms_job())
    for _ in range(5):
        clock.forward(timedelta(seconds=61))
        upkeep.sweep(context)

    run_enqueued(context)

    assert len(carrier.messages) == 2


def test_a_job_is_resumed_alone_after_a_crash(stocked: Database) -> None:
    """If it crashes its worker again, it takes no other job with it. The others stay together."""
    context = make_context(stocked, email=FakeCarrier(CRASH, *[NOT_NOW] * 3))
    answer(context, "email.send_many", bulk_job())
    with pytest.raises(ZeroDivisionError):
        run_enqueued(context)

    groups = []
    for _ in range(2):
        pass_time(context)
        upkeep.sweep(context)  # the first sweep ends the crashed attempt, so that job is not due before the second
        groups.append([sorted(given["attempts"]) for _, given in take_enqueued(context)])

    assert groups == [[["bulk-1/1", "bulk-1/2"]], [["bulk-1/1", "bulk-1/2"], ["bulk-1/0"]]]


def test_each_job_with_a_crash_is_resumed_alone(stocked: Database) -> None:
    context = scripted_context(stocked, *[NOT_NOW] * 5)
    for number in range(5):
        answer(context, "email.send", email_job(f"job-{number}"), f"task-{number}")
    with stocked.engine.begin() as connection:
        connection.execute(charges.update().where(charges.c.job_id.in_(["job-1", "job-3"])).values(crashes=1))
    pass_time(context)

    upkeep.sweep(context)

    groups = sorted(sorted(given["attempts"]) for _, given in take_enqueued(context))
    assert groups == [["job-0", "job-2", "job-4"], ["job-1"], ["job-3"]]
