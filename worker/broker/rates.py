"""The rates that all workers keep together, in Redis: one script reserves the slots of a batch (decision 0042)."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Final, cast

from celery import Celery
from kombu.exceptions import OperationalError
from redis import Redis, RedisError

from tasks.rates import RateAsk, RateLimit, RatesAwayError, Reserved, Slot
from worker.broker.fair_queue import lua
from worker.broker.transport import redis_client

KEY: Final = "postage.rate:"
"""Before the key of a limit."""
AWAY_MAX_S: Final = 60.0
"""A message that gets no slot is told to come back after so long at most."""
_MICRO: Final = 1e6


class RedisRates:
    """The slots of all limits. Each call takes a connection of the app's pool."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def reserve(self, asks: Sequence[RateAsk], within_s: float) -> list[Slot]:
        """Reserve slots for each message, in this order. One that would wait for longer than `within_s` gets none.

        Raises
        ------
        RatesAwayError
            If the broker does not answer.

        """
        with self._redis() as redis:
            return reserve(redis, asks, within_s)

    def give_back(self, unused: Sequence[Reserved]) -> None:
        """Give slots back that no message will use.

        Raises
        ------
        RatesAwayError
            If the broker does not answer.

        """
        with self._redis() as redis:
            give_back(redis, unused)

    @contextmanager
    def _redis(self) -> Iterator[Redis]:
        try:
            with self._app.connection_or_acquire() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0)
                yield redis_client(connection.default_channel)
        except (OperationalError, RedisError, OSError) as error:
            msg = "The broker does not answer, so nobody knows when a message may go."
            raise RatesAwayError(msg) from error


def reserve(redis: Redis, asks: Sequence[RateAsk], within_s: float) -> list[Slot]:
    """Reserve slots for each message, in one round trip."""
    limits = list({limit.key: limit for ask in asks for limit in ask.limits}.values())
    if not limits:
        return [Slot(0.0) for _ in asks]
    places = {limit.key: place for place, limit in enumerate(limits, start=1)}
    bursts = (_micros(limit.burst_s) for limit in limits)
    wanted = (
        (len(ask.limits), *chain.from_iterable((places[one.key], _length(ask, one)) for one in ask.limits))
        for ask in asks
    )
    script = redis.register_script(lua("clock.lua", "rates.lua"))
    answers = script(
        keys=[KEY + limit.key for limit in limits],
        args=[_micros(within_s), _micros(AWAY_MAX_S), *bursts, *chain.from_iterable(wanted)],
    )
    return [_slot(ask, *answer) for ask, answer in zip(asks, cast("list[list[int]]", answers), strict=True)]


def give_back(redis: Redis, unused: Sequence[Reserved]) -> None:
    """Give slots back, in one round trip."""
    if unused:
        script = redis.register_script(lua("give_back.lua"))
        times: Iterator[Any] = chain.from_iterable((slot.start, slot.length) for slot in unused)
        script(keys=[KEY + slot.key for slot in unused], args=list(times))


def _slot(ask: RateAsk, wait: int, *starts: int) -> Slot:
    reserved = tuple(
        Reserved(limit.key, start, _length(ask, limit)) for limit, start in zip(ask.limits, starts, strict=False)
    )
    left = ask.limits[len(starts) :]
    return Slot(
        wait / _MICRO,
        reserved,
        RateAsk(left, ask.units) if left else None,
        is_reserved=bool(starts) or not ask.limits,
    )


def _length(ask: RateAsk, limit: RateLimit) -> int:
    """Return how long a slot is, in microseconds: rounded up, so that the rate is never exceeded."""
    return math.ceil(ask.units * _MICRO / limit.per_second)


def _micros(seconds: float) -> int:
    return round(seconds * _MICRO)
