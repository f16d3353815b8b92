"""Several carriers of a kind: which one gets a message, which of them rest, and what may never move to another one."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from models.database.engine import Database
from models.sends.carrier import Handover, OutboundMessage, Outcome, Receipt
from models.sends.resting import find_rests
from models.sends.retry_policy import RetryPolicy
from models.sends.routes import Route
from tasks import upkeep
from tasks.context import Context, Json
from tasks.engine import DeliveryEngine
from tasks.rates import Limits, RateAsk, RatesAwayError, Reserved, Slot
from tests.factories import balance, email_job, sms_job
from tests.fakes import (
    ACCEPTED,
    LOOP,
    NEVER,
    NOT_NOW,
    UNSURE,
    Clock,
    FakeCarrier,
    answer,
    answer_together,
    later,
    make_context,
    run_enqueued,
)
from tests.integration.sending import CRASH, crash, crash_after_handover
from tests.integration.stored import charge_of, findings, tries_of

DOWN = Receipt(Outcome.NOT_NOW, "It is not there.", is_failing=True)
CUT_OFF = Receipt(Outcome.UNSURE, "It was cut off.", is_failing=True)
LOCKED_OUT = Receipt(Outcome.OUR_FAULT, "It refuses our login.")


def context_with(database: Database, *routes: Route, limits: Limits | None = None, **options: Any) -> Context:
    """Give a context whose emails and texts take these routes."""
    context = make_context(database, **options)
    clock: Any = context.now
    engine = DeliveryEngine(
        {"email": routes, "sms": routes}, database, now=clock, monotonic=clock.monotonic, loop=LOOP,
        limits=limits or Limits(),
    )  # fmt: skip
    return replace(context, engine=engine)


def first_and_second(*script: Any, **options: Any) -> tuple[FakeCarrier, FakeCarrier, list[Route]]:
    """Give a carrier that follows a script, one that takes everything, and their routes, in this order of priority."""
    first, second = FakeCarrier(*script, **options), FakeCarrier(**options)
    return first, second, [Route(name="a", carrier=first), Route(name="b", carrier=second, priority=2)]


def resting(database: Database) -> list[tuple[str, int, bool]]:
    with database.snapshot() as connection:
        return [(rest.carrier, rest.rests, rest.is_our_fault) for rest in find_rests(connection)]


# -- which one gets a message -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("certainly_not", [DOWN, LOCKED_OUT])
def test_the_next_carrier_gets_what_the_first_cannot_take(stocked: Database, certainly_not: Receipt) -> None:
    """In the same attempt, and both are on record."""
    first, second, routes = first_and_second(certainly_not)
    context = context_with(stocked, *routes)

    answered = answer(context, "email.send", email_job())

    assert (answered["status"], answered["attempts"]) == ("sent", 1)
    assert (first.job_ids, second.job_ids) == (["job-1"], ["job-1"])
    assert charge_of(stocked).carrier == "b"
    assert [(each.carrier, each.outcome) for each in tries_of(stocked)] == [
        ("a", certainly_not.outcome), ("b", "accepted"),
    ]  # fmt: skip
    assert findings(stocked) == []


@pytest.mark.parametrize("said", [NEVER, NOT_NOW])
def test_what_a_carrier_says_of_a_message_is_its_answer(stocked: Database, said: Receipt) -> None:
    """Another carrier would say the same of a mailbox that does not exist, or is full."""
    _, second, routes = first_and_second(said)

    answered = answer(context_with(stocked, *routes), "email.send", email_job())

    assert answered["status"] in ("failed", "retrying")
    assert second.job_ids == []


@pytest.mark.parametrize("window", [timedelta(), timedelta(days=1)])
@pytest.mark.parametrize("doubtful", [UNSURE, CUT_OFF, CRASH])
def test_what_a_carrier_may_have_goes_to_no_other_one(stocked: Database, doubtful: Any, window: timedelta) -> None:
    """It is asked again while it knows the message again; then a person decides."""
    doubtful = crash_after_handover if doubtful is CRASH else doubtful
    first, second, routes = first_and_second(doubtful, *[DOWN, NEVER, LOCKED_OUT] * 9, key_window=window)
    context = context_with(stocked, *routes, policy=RetryPolicy(attempts_max=50, base_s=600))
    if doubtful is crash_after_handover:
        crash(context, "email.send", email_job())
    else:
        answer(context, "email.send", email_job())

    for _ in range(30):
        later(context)

    assert second.job_ids == []
    assert len(first.job_ids) > 1 if window else len(first.job_ids) == 1
    assert charge_of(stocked).state == "unknown"
    assert balance(stocked, "john") == 9
    assert findings(stocked, context.now()) == []  # type: ignore[call-arg]  a Clock


def test_a_crash_before_the_handover_leaves_the_choice(stocked: Database) -> None:
    first, second, routes = first_and_second(CRASH, DOWN)
    context = context_with(stocked, *routes)
    crash(context, "email.send", email_job())

    for _ in range(2):
        later(context)

    assert charge_of(stocked).state == "sent"
    assert (first.job_ids, second.job_ids) == (["job-1", "job-1"], ["job-1"])


def test_a_carrier_that_may_have_a_message_and_is_gone_leaves_it_unknown(stocked: Database) -> None:
    _, _, routes = first_and_second(UNSURE, key_window=timedelta(days=1))
    context = context_with(stocked, *routes)
    answer(context, "sms.send", sms_job())
    other = FakeCarrier()

    later(replace(context, engine=context_with(stocked, Route(name="other", carrier=other), clock=context.now).engine))

    assert (charge_of(stocked).state, other.job_ids) == ("unknown", [])
    assert "is not set up any more" in (charge_of(stocked).detail or "")


def test_carriers_share_messages_by_their_weights(stocked: Database) -> None:
    heavy, light = FakeCarrier(), FakeCarrier()
    context = context_with(stocked, Route(name="heavy", carrier=heavy, weight=9), Route(name="light", carrier=light))

    answer_together(context, "sms.send", [sms_job(f"job-{number}") for number in range(10)])

    assert sorted(heavy.job_ids + light.job_ids) == sorted(f"job-{number}" for number in range(10))


@pytest.mark.parametrize(("number", "name"), [("+4612345678", "nordic"), ("+12025550123", "world")])
def test_a_text_takes_a_carrier_for_its_number(stocked: Database, number: str, name: str) -> None:
    carriers = {"nordic": FakeCarrier(), "world": FakeCarrier()}
    context = context_with(
        stocked,
        Route(name="nordic", carrier=carriers["nordic"], prefixes=("46", "47")),
        Route(name="world", carrier=carriers["world"], priority=2),
    )

    answer(context, "sms.send", sms_job(to=number))

    assert charge_of(stocked).carrier == name
    assert carriers[name].job_ids == ["job-1"]


def test_a_text_for_which_no_carrier_is_set_up_waits_and_uses_up_no_attempt(stocked: Database) -> None:
    context = context_with(stocked, Route(name="nordic", carrier=FakeCarrier(), prefixes=("46",)))

    answered = answer(context, "sms.send", sms_job(to="+12025550123"))

    assert (answered["status"], answered["attempts"]) == ("sending", 0)
    assert "No carrier is set up" in answered["detail"]
    for _ in range(100):
        later(context)
    assert charge_of(stocked).state == "failed"
    assert balance(stocked, "john", "sms") == 10


# -- health -----------------------------------------------------------------------------------------------------------


def test_what_is_wrong_with_us_rests_a_carrier_and_refunds_nothing(stocked: Database) -> None:
    """Its jobs wait and use up no attempts."""
    carrier = FakeCarrier(*[LOCKED_OUT] * 3)
    context = context_with(stocked, Route(name="a", carrier=carrier))
    with capture_logs() as logs:
        answered = answer(context, "email.send", email_job())

    assert (answered["status"], answered["attempts"], answered["credits"]) == ("sending", 0, 1)
    assert resting(stocked) == [("a", 1, True)]
    assert [line["log_level"] for line in logs if line["event"] == "carrier rests"] == ["error"]
    second = answer(context, "email.send", email_job("job-2"))
    assert (second["status"], second["attempts"], len(carrier.messages)) == ("sending", 0, 1)

    for _ in range(5):
        later(context)

    assert [charge_of(stocked, job_id).state for job_id in ("job-1", "job-2")] == ["sent", "sent"]
    assert resting(stocked) == []
    assert findings(stocked, context.now()) == []  # type: ignore[call-arg]


def test_a_burst_of_failures_rests_a_carrier_and_messages_go_on_with_the_other(stocked: Database) -> None:
    first, second, routes = first_and_second(*[DOWN] * 100)
    context = context_with(stocked, *routes)

    for number in range(9):
        answer(context, "email.send", email_job(f"job-{number}"))

    assert resting(stocked) == [("a", 1, False)]
    assert (len(first.messages), len(second.messages)) == (5, 9)


def test_all_workers_leave_a_resting_carrier_alone(stocked: Database) -> None:
    answer(context_with(stocked, *first_and_second(LOCKED_OUT)[2]), "email.send", email_job())
    first, second, routes = first_and_second()

    answer(context_with(stocked, *routes), "email.send", email_job("job-2"))

    assert (first.job_ids, second.job_ids) == ([], ["job-2"])


def test_one_job_tries_a_carrier_that_has_rested(stocked: Database) -> None:
    """The others wait until it is known."""
    first = SlowCarrier(LOCKED_OUT, DOWN)
    clock = Clock()
    context = context_with(stocked, Route(name="a", carrier=first), clock=clock)
    answer(context, "email.send", email_job("job-0"))
    clock.forward(timedelta(minutes=1))

    answer_together(context, "email.send", [email_job(f"job-{number}") for number in range(1, 6)])

    assert len(first.messages) == 2
    assert resting(stocked) == [("a", 2, False)]


class SlowCarrier(FakeCarrier):
    """A carrier that takes its time."""

    async def deliver(self, message: OutboundMessage, handover: Handover) -> Receipt:
        await asyncio.sleep(0.1)
        return await super().deliver(message, handover)


def test_a_job_in_doubt_does_not_try_a_carrier_that_has_rested(stocked: Database) -> None:
    """Unless no other job has come for a while."""
    carrier = FakeCarrier(UNSURE, LOCKED_OUT, key_window=timedelta(days=1))
    context = context_with(stocked, Route(name="a", carrier=carrier))
    clock: Any = context.now
    answer(context, "sms.send", sms_job("doubtful"))
    answer(context, "sms.send", sms_job("job-1"))
    assert resting(stocked) == [("a", 1, True)]

    clock.forward(timedelta(seconds=20))
    upkeep.sweep(context)
    run_enqueued(context)

    assert len(carrier.messages) in (2, 3)  # job-1 may have tried it
    for _ in range(3):
        later(context)
    assert [charge_of(stocked, job_id).state for job_id in ("doubtful", "job-1")] == ["sent", "sent"]


def test_a_carrier_that_is_slow_counts_as_failing_where_the_settings_say_so(stocked: Database) -> None:
    slow = SlowCarrier()
    routes = [
        Route(name="slow", carrier=slow, slow_after=timedelta(seconds=0.01)),
        Route(name="b", carrier=FakeCarrier(), priority=2),
    ]
    context = context_with(stocked, *routes)

    for number in range(7):
        answer(context, "email.send", email_job(f"job-{number}"))

    assert (len(slow.messages), resting(stocked)) == (5, [("slow", 1, False)])


# -- places, rates and leases -----------------------------------------------------------------------------------------


class CountingCarrier(FakeCarrier):
    """A carrier that counts how many deliveries are at work at a time."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.at_work, self.most = capacity, 0, 0

    async def deliver(self, message: OutboundMessage, handover: Handover) -> Receipt:
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        await asyncio.sleep(0.001)
        receipt = await super().deliver(message, handover)
        self.at_work -= 1
        return receipt


def test_a_carrier_has_no_more_deliveries_at_work_than_it_has_places(stocked: Database) -> None:
    carrier = CountingCarrier(3)

    answers = answer_together(
        context_with(stocked, Route(name="a", carrier=carrier)), "sms.send", [sms_job(f"job-{n}") for n in range(10)]
    )

    assert {answered["status"] for answered in answers} == {"sent"}
    assert carrier.most == 3


class FakeRates:
    """Rates that give each message the slot that a script says, and then one at once."""

    def __init__(self, *script: Slot | Exception) -> None:
        self.script = list(script)
        self.asked: list[RateAsk] = []
        self.given_back: list[Reserved] = []

    def reserve(self, asks: Sequence[RateAsk], within_s: float) -> list[Slot]:
        """Follow the script."""
        self.asked += asks
        slots = [self.script.pop(0) if self.script else Slot(0.0) for _ in asks]
        for slot in slots:
            if isinstance(slot, Exception):
                raise slot
        return slots  # type: ignore[return-value]

    def give_back(self, unused: Sequence[Reserved]) -> None:
        """Remember what was given back."""
        self.given_back += unused


def answer_under(database: Database, rates: FakeRates, carrier: FakeCarrier, job: Json, task: str) -> Json:
    limits = Limits(rates, organization=10.0, sender=5.0)
    return answer(context_with(database, Route(name="a", carrier=carrier, rate=50.0), limits=limits), task, job)


def test_a_message_asks_for_a_slot_under_every_rate_that_holds_for_it(stocked: Database) -> None:
    """A text asks for as many as it has segments."""
    rates, carrier = FakeRates(Slot(0.05)), FakeCarrier()

    answered = answer_under(stocked, rates, carrier, sms_job(text="x" * 200), "sms.send")

    assert answered["status"] == "sent"
    [ask] = rates.asked
    assert [(limit.key, limit.per_second) for limit in ask.limits] == [
        ("sms:sender:1:john", 5.0), ("sms:organization:1", 10.0), ("sms:carrier:a", 50.0),
    ]  # fmt: skip
    assert ask.units == 2


@pytest.mark.parametrize("said", [Slot(90.0, is_reserved=False), RatesAwayError("The broker is away.")])
def test_a_message_without_a_slot_waits_and_uses_up_no_attempt(stocked: Database, said: Any) -> None:
    rates, carrier = FakeRates(said), FakeCarrier()

    answered = answer_under(stocked, rates, carrier, email_job(), "email.send")

    assert (answered["status"], answered["attempts"], carrier.job_ids) == ("sending", 0, [])
    assert charge_of(stocked).due_at is not None


def test_a_worker_that_shuts_down_gives_slots_back_and_releases_jobs(stocked: Database) -> None:
    reserved = Reserved("sms:carrier:a", 1, 2)
    rates, carrier = FakeRates(Slot(19.0, (reserved,))), FakeCarrier()
    stocked.closing.set()

    answered = answer_under(stocked, rates, carrier, email_job(), "email.send")

    assert (answered["status"], answered["attempts"], carrier.job_ids) == ("sending", 0, [])
    assert rates.given_back == [reserved]


def test_a_slot_that_begins_too_late_for_a_message_is_given_back_at_once(stocked: Database) -> None:
    """Its lease is too short for the wait. Somebody else has the slot, and the message comes back."""
    reserved = Reserved("email:carrier:a", 1, 2)
    rates, carrier = FakeRates(Slot(200.0, (reserved,))), FakeCarrier()

    answered = answer_under(stocked, rates, carrier, email_job(), "email.send")

    assert (answered["status"], answered["attempts"], carrier.job_ids) == ("sending", 0, [])
    assert charge_of(stocked).due_at is not None
    LOOP.writers.submit(int).result()
    assert rates.given_back == [reserved]


class WaitingCarrier(FakeCarrier):
    """A carrier that is at work until the lease of its message has been renewed often enough."""

    def __init__(self, clock: Clock, policy: RetryPolicy) -> None:
        super().__init__()
        self.clock, self.policy = clock, policy

    async def deliver(self, message: OutboundMessage, handover: Handover) -> Receipt:
        await handover()
        for _ in range(4):  # longer than a lease
            self.clock.forward(self.policy.renewal + timedelta(seconds=1))
            await asyncio.sleep(1.5)
        return ACCEPTED


def test_a_lease_is_renewed_while_a_carrier_takes_its_time(stocked: Database) -> None:
    """A sweep that looks for crashed workers meanwhile finds none."""
    clock, policy = Clock(), RetryPolicy()
    context = context_with(stocked, Route(name="a", carrier=WaitingCarrier(clock, policy)), clock=clock, policy=policy)

    answered = answer(context, "email.send", email_job())

    assert clock.now - charge_of(stocked).created_at > policy.lease
    assert answered["status"] == "sent"
    assert upkeep.sweep(context)["ended"] == 0
