"""Leases that expire while a worker is still at work, because it was too slow."""

import asyncio
from collections.abc import Callable
from typing import Any

from models.database.engine import Database
from models.sends.carrier import Handover, OutboundMessage, Receipt
from models.sends.charges import State
from tasks import upkeep
from tasks.context import Context
from tests.factories import balance, email_job
from tests.fakes import NEVER, NOON, Clock, FakeCarrier, answer, later, make_context
from tests.integration.sending import LATER
from tests.integration.stored import charge_of, findings, letters_of


class SlowCarrier(FakeCarrier):
    """A carrier that is kept waiting before anything is handed over."""

    def __init__(self, wait: Callable[[], object], **options: Any) -> None:
        super().__init__(**options)
        self.wait = wait
        self.taken: list[str] = []

    async def deliver(self, message: OutboundMessage, handover: Handover) -> Receipt:
        """Wait, then keep the job's id if it may be handed over."""
        await asyncio.to_thread(self.wait)
        receipt = await super().deliver(message, handover)
        self.taken.append(message.job_id)
        return receipt


def test_a_slow_worker_hands_nothing_over_once_another_has_the_job(stocked: Database) -> None:
    """Otherwise both would hand it over."""
    clock = Clock()
    quick = FakeCarrier()
    next_worker = make_context(stocked, email=quick, clock=clock)

    def sleep_while_another_takes_over() -> None:
        later(next_worker)
        later(next_worker)

    slow = SlowCarrier(sleep_while_another_takes_over)
    context = make_context(stocked, email=slow, clock=clock)

    answered = answer(context, "email.send", email_job())

    assert (answered["status"], answered["attempts"]) == ("sent", 2)
    assert (slow.taken, quick.job_ids) == ([], ["job-1"])
    assert (charge_of(stocked).crashes, charge_of(stocked).handover_started_at) == (1, None)
    assert balance(stocked, "john") == 9
    assert findings(stocked) == []


def test_a_slow_worker_hands_nothing_over_once_the_job_waits_again(stocked: Database) -> None:
    clock = Clock()
    slow = SlowCarrier(lambda: later(make_context(stocked, clock=clock)))
    context = make_context(stocked, email=slow, clock=clock)

    answered = answer(context, "email.send", email_job())

    assert (answered["status"], slow.taken) == ("retrying", [])
    assert charge_of(stocked).handover_started_at is None


def test_a_job_is_held_until_a_sweep_ends_the_expired_lease(stocked: Database) -> None:
    """The clock alone does not end an attempt."""
    clock = Clock()
    slow = SlowCarrier(lambda: clock.forward(LATER))

    answered = answer(make_context(stocked, email=slow, clock=clock), "email.send", email_job())

    assert (answered["status"], slow.taken) == ("sent", ["job-1"])


def context_in_which_a_sweep_ends_the_attempt(database: Database) -> Context:
    """Give a context whose carrier says never, but only after a sweep has ended the attempt."""
    clock = Clock()

    def sleep_through_the_sweep(_: OutboundMessage) -> Receipt:
        clock.forward(LATER)
        upkeep.sweep(make_context(database, clock=clock))
        return NEVER

    return make_context(database, email=FakeCarrier(sleep_through_the_sweep), clock=clock)


def test_an_outcome_is_ignored_if_a_sweep_has_ended_the_attempt(stocked: Database) -> None:
    context = context_in_which_a_sweep_ends_the_attempt(stocked)

    answered = answer(context, "email.send", email_job())

    assert (answered["status"], answered["credits"]) == ("unknown", 1)
    assert charge_of(stocked).handover_started_at == NOON
    assert balance(stocked, "john") == 9
    assert findings(stocked) == []


def test_an_ignored_outcome_leaves_no_dead_letter(stocked: Database) -> None:
    answer(context_in_which_a_sweep_ends_the_attempt(stocked), "email.send", email_job())

    assert charge_of(stocked).state is State.UNKNOWN
    assert letters_of(stocked) == []
