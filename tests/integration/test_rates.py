"""Rates: slots that all workers reserve together, in a real Valkey, by a clock that the tests set."""

import heapq
import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
from celery import Celery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import ConnectionPool, Redis

from tasks.rates import RateAsk, RateLimit, RatesAwayError, Reserved, Slot
from tests.servers import ValkeyServer
from worker.broker import fair_queue, rates
from worker.broker.prefixed import PrefixedRedis
from worker.broker.transport import register_transport

START = 1_800_000_000_000_000
CLOCK = "local time = {'0', redis.call('GET', 'clock')}\n"


class Clock:
    """The time of the scripts, in microseconds."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.set(START)

    def set(self, now: int) -> None:
        self.now = now
        self.redis.set("clock", now)

    def pass_s(self, seconds: float) -> None:
        self.set(self.now + round(seconds * 1e6))


@pytest.fixture
def clock(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give a clock that stands still."""
    monkeypatch.setattr(
        rates, "lua", lambda *names: CLOCK + fair_queue.lua(*(name for name in names if name != "clock.lua"))
    )
    return Clock(redis)


def ask(*limits: RateLimit, units: int = 1) -> RateAsk:
    return RateAsk(limits, units)


def waits(slots: Sequence[Slot]) -> list[float]:
    return [slot.wait_s for slot in slots]


FIFTY = RateLimit("carrier", 50, burst_s=0)
ONE = RateLimit("sender", 1, burst_s=0)


def test_messages_go_one_after_the_other(redis: Redis, clock: Clock) -> None:
    """As many a second as the rate says, also if they are asked for in several batches."""
    first = rates.reserve(redis, [ask(FIFTY)] * 3, 60)
    second = rates.reserve(redis, [ask(FIFTY)] * 2, 60)

    assert waits([*first, *second]) == [0, 0.02, 0.04, 0.06, 0.08]
    assert all(slot.left is None and slot.is_reserved for slot in (*first, *second))


def test_segments_count(redis: Redis, clock: Clock) -> None:
    """A text of three segments takes three times as long."""
    asks = [ask(FIFTY, units=3), ask(FIFTY), ask(FIFTY)]

    assert waits(rates.reserve(redis, asks, 60)) == [0, 0.06, 0.08]


def test_what_was_not_used_is_lost_but_for_a_burst(redis: Redis, clock: Clock) -> None:
    """After ten idle seconds not five hundred messages go at once, but ten."""
    burst = FIFTY._replace(burst_s=0.2)
    rates.reserve(redis, [ask(burst)], 60)
    clock.pass_s(10)

    found = waits(rates.reserve(redis, [ask(burst)] * 14, 60))

    assert found == [0] * 11 + [0.02, 0.04, 0.06]


def test_a_limit_that_was_never_used_is_free(redis: Redis, clock: Clock) -> None:
    assert waits(rates.reserve(redis, [ask(RateLimit("new", 0.001, burst_s=0))], 60)) == [0]


def test_limits_do_not_know_each_other(redis: Redis, clock: Clock) -> None:
    """Messages of other senders go meanwhile."""
    others = [ask(ONE._replace(key=f"sender-{number}")) for number in range(3)]

    assert waits(rates.reserve(redis, [ask(ONE), ask(ONE), *others], 60)) == [0, 1, 0, 0, 0]


def test_a_message_that_waits_for_its_sender_takes_nothing_of_its_carrier(redis: Redis, clock: Clock) -> None:
    """Others use that meanwhile. It asks again when its turn as its sender's has come."""
    _, slow = rates.reserve(redis, [ask(ONE, FIFTY), ask(ONE, FIFTY)], 60)
    others = rates.reserve(redis, [ask(FIFTY)] * 49, 60)

    assert (slow.wait_s, slow.left) == (1, ask(FIFTY))
    assert [reserved.key for reserved in slow.reserved] == ["sender"]
    assert waits(others)[-1] == pytest.approx(0.98)
    clock.pass_s(1)
    assert slow.left is not None
    assert rates.reserve(redis, [slow.left], 60)[0].wait_s == 0


def test_a_message_that_waits_for_its_carrier_only_has_all_its_slots(redis: Redis, clock: Clock) -> None:
    """It goes after one wait."""
    rates.reserve(redis, [ask(FIFTY)] * 10, 60)
    [slot] = rates.reserve(redis, [ask(ONE, FIFTY)], 60)

    assert (slot.wait_s, slot.left) == (pytest.approx(0.2), None)
    assert [reserved.key for reserved in slot.reserved] == ["sender", "carrier"]


def test_a_message_that_would_wait_too_long_gets_no_slot(redis: Redis, clock: Clock) -> None:
    """It is told when to come back: each at another time, as fast as the rate allows, and within a minute."""
    slots = rates.reserve(redis, [ask(ONE, FIFTY)] * 100, within_s=4.5)

    assert [slot.is_reserved for slot in slots] == [True] * 5 + [False] * 95
    assert waits(slots) == [0, 1, 2, 3, 4, *range(5, 60), *[60] * 40]
    assert all(slot.reserved == () and slot.left == ask(ONE, FIFTY) for slot in slots[5:])
    assert waits(rates.reserve(redis, [ask(FIFTY)], 60)) == [0.02], "They took nothing of their carrier."


def test_a_slot_that_is_given_back_is_used(redis: Redis, clock: Clock) -> None:
    """By the next message that it is long enough for; those behind it keep theirs."""
    slots = rates.reserve(redis, [ask(FIFTY)] * 5, 60)
    rates.give_back(redis, [*slots[2].reserved, *slots[1].reserved])

    assert waits(rates.reserve(redis, [ask(FIFTY, units=3), ask(FIFTY, units=2), ask(FIFTY)], 60)) == [0.1, 0.02, 0.16]


def test_the_last_slots_may_be_given_back_in_any_order(redis: Redis, clock: Clock) -> None:
    """Then it is as if they had never been reserved."""
    slots = rates.reserve(redis, [ask(FIFTY)] * 5, 60)
    for slot in (slots[3], slots[4], slots[2]):
        rates.give_back(redis, slot.reserved)

    assert waits(rates.reserve(redis, [ask(FIFTY, units=2), ask(FIFTY)], 60)) == [0.04, 0.08]


def test_a_slot_that_is_given_back_too_late_is_lost(redis: Redis, clock: Clock) -> None:
    """It is past; what is left of one may be too short."""
    slots = rates.reserve(redis, [ask(FIFTY)] * 5, 60)
    clock.pass_s(0.03)
    rates.give_back(redis, [*slots[0].reserved, *slots[1].reserved])

    assert waits(rates.reserve(redis, [ask(FIFTY)], 60)) == [pytest.approx(0.07)]


def test_a_limit_that_says_nothing_any_more_is_forgotten(redis: Redis) -> None:
    """Its key expires by itself."""
    rates.reserve(redis, [ask(FIFTY)] * 100, 60)

    assert 2000 < redis.pttl("postage.rate:carrier") <= 3100


def test_nothing_is_asked_for_messages_without_limits(redis: Redis, clock: Clock) -> None:
    """Or among others that have some."""
    assert rates.reserve(redis, [ask(), ask()], 60) == [Slot(0.0), Slot(0.0)]
    assert rates.reserve(redis, [ask(), ask(FIFTY), ask()], 60)[::2] == [Slot(0.0), Slot(0.0)]


def test_keys_have_the_prefix_of_the_installation(redis: Redis, valkey: ValkeyServer) -> None:
    """Several can share a Redis, and each has its own rates."""
    pool = ConnectionPool.from_url(valkey.url())
    with PrefixedRedis(connection_pool=pool, global_keyprefix="shop-1:") as prefixed:
        [slot] = rates.reserve(prefixed, [ask(FIFTY)], 60)
        rates.give_back(prefixed, slot.reserved)

    assert redis.keys() == [b"shop-1:postage.rate:carrier"]


def broker_at(url: str) -> Celery:
    """Return an app with Postage's transport."""
    register_transport()
    return Celery(broker=url, broker_transport_options={"socket_connect_timeout": 2})


def test_slots_are_reserved_over_the_broker_of_an_app(valkey_url: str) -> None:
    app = broker_at(valkey_url)
    counting = rates.RedisRates(app)
    first, second = counting.reserve([ask(ONE), ask(ONE)], 60)
    counting.give_back(second.reserved)

    assert (first.wait_s, second.wait_s) == (0, 1)
    assert counting.reserve([ask(ONE)], 60)[0].wait_s <= 1
    app.close()


def test_a_broker_that_is_away_is_an_error_of_its_own(tmp_path: Path) -> None:
    """Nobody knows then when a message may go. It is over as soon as the broker is back."""
    with ValkeyServer(tmp_path) as server:
        app = broker_at(server.url())
        counting = rates.RedisRates(app)
        assert counting.reserve([ask(FIFTY)], 60)[0].wait_s == 0
        server.stop()
        with pytest.raises(RatesAwayError):
            counting.reserve([ask(FIFTY)], 60)
        with pytest.raises(RatesAwayError):
            counting.give_back([Reserved("carrier", 1, 1)])
        server.start()
        assert counting.reserve([ask(FIFTY)], 60)[0].wait_s == 0
        app.close()


# -- any history ------------------------------------------------------------------------------------------------------

LIMITS = [RateLimit("sender-1", 3, 0.2), RateLimit("sender-2", 0.7, 0), RateLimit("org", 10, 0.5), FIFTY]
CHAINS = [(LIMITS[0], LIMITS[2], LIMITS[3]), (LIMITS[1], LIMITS[3]), (LIMITS[3],), (LIMITS[2],)]
STEPS = st.lists(
    st.tuples(
        st.integers(0, 500),  # milliseconds that pass
        st.lists(st.tuples(st.sampled_from(CHAINS), st.integers(1, 3)), max_size=12),
        st.lists(st.integers(0, 100), max_size=3),  # which of the messages that wait are given up
    ),
    max_size=12,
)


class Model:
    """When slots are taken, of each limit; the earliest place where one fits is where it must begin."""

    def __init__(self) -> None:
        self.taken: defaultdict[str, list[Reserved]] = defaultdict(list)
        self.passed: defaultdict[RateLimit, list[tuple[int, int]]] = defaultdict(list)
        """The messages that have passed a limit: when, and with how many units."""

    def earliest(self, limit: RateLimit, length: int, now: int) -> int:
        start = now - round(limit.burst_s * 1e6)
        for slot in sorted(self.taken[limit.key], key=lambda slot: slot.start):
            if start + length <= slot.start:
                break
            start = max(start, slot.start + slot.length)
        return start

    def check(self, asked: RateAsk, slot: Slot, now: int) -> None:
        """Check that a message got the slots that were free first, and take them."""
        for limit, reserved in itertools.zip_longest(asked.limits[: len(slot.reserved)], slot.reserved):
            assert reserved.start == self.earliest(limit, reserved.length, now)
            assert reserved.length >= asked.units / limit.per_second * 1e6
            self.taken[limit.key].append(reserved)
            at = max(now, reserved.start)
            self.passed[limit].append((at, asked.units))
        assert slot.wait_s * 1e6 == pytest.approx(max(0, slot.reserved[-1].start - now))
        assert slot.left is None or slot.wait_s > 0, "It asks again only after a wait."


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_a_rate_is_never_exceeded_and_no_slot_is_lost(redis: Redis, clock: Clock, steps: list) -> None:  # type: ignore[type-arg]
    """Whatever is asked for, and given back. A slot is lost only if nobody wanted it in time."""
    redis.flushall()
    clock.set(START)
    model = Model()
    waiting: list[tuple[int, int, RateAsk]] = []
    numbers = itertools.count()

    def reserve(asks: list[RateAsk]) -> None:
        for asked, slot in zip(asks, rates.reserve(redis, asks, 3600), strict=True):
            model.check(asked, slot, clock.now)
            if slot.left is not None:
                heapq.heappush(waiting, (slot.reserved[-1].start, next(numbers), slot.left))

    for milliseconds, wanted, given_up in steps:
        until = clock.now + 1000 * milliseconds
        while waiting and waiting[0][0] <= until:
            at, _, left = heapq.heappop(waiting)
            clock.set(max(at, clock.now))
            reserve([left])
        clock.set(max(until, clock.now))
        reserve([RateAsk(limits, units) for limits, units in wanted])
        unused = [slot for slots in model.taken.values() for slot in slots if slot.start > clock.now]
        back = {unused[number % len(unused)] for number in given_up} if unused else set()
        rates.give_back(redis, list(back))
        for slot in back:
            model.taken[slot.key].remove(slot)
            limit = next(limit for limit in LIMITS if limit.key == slot.key)
            units = round(slot.length * limit.per_second / 1e6)
            model.passed[limit].remove((slot.start, units))

    for limit, passed in model.passed.items():
        assert_never_exceeded(limit, sorted(passed))


def assert_never_exceeded(limit: RateLimit, passed: Sequence[tuple[int, int]]) -> None:
    """Check every window: what goes in it is what the rate allows in it and a burst, and one more message.

    The slots of all others are within the window and the burst before it; that one's ends later.
    """
    for first, (start, _) in enumerate(passed):
        units, largest = 0, 0
        for end, more in passed[first:]:
            units, largest = units + more, max(largest, more)
            allowed = limit.per_second * ((end - start) / 1e6 + limit.burst_s)
            assert units - largest <= allowed + 1e-3
