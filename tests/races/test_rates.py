"""Three workers share one rate: each slot belongs to one message, and none is left out."""

from itertools import pairwise

import pytest
from redis import Redis

from tasks.rates import RateAsk, RateLimit
from tests.races.racing import Start, race
from worker.broker import rates

ROUNDS, BATCH = 40, 20
PER_SECOND = 250
ASK = RateAsk((RateLimit("carrier", PER_SECOND, burst_s=600),))
EARLIER = ASK._replace(units=300 * PER_SECOND)
"""What was sent before. So slots begin 300 s after the time until which they can be used: none is too late."""


@pytest.mark.timeout(120)
def test_three_workers_share_a_rate(valkey_url: str) -> None:
    """Half of what they reserve is given back, and goes to whoever asks next."""
    with Redis.from_url(valkey_url) as redis:
        rates.reserve(redis, [EARLIER], 600)
    used = [start for found in race(*((_reserve, valkey_url) for _ in range(3))) for start in found]
    with Redis.from_url(valkey_url) as redis:
        rest = [slot.reserved[0].start for slot in rates.reserve(redis, [ASK] * BATCH * ROUNDS, 600)]

    assert len(used) == 3 * ROUNDS * BATCH / 2
    gaps = {later - sooner for sooner, later in pairwise(sorted([*used, *rest]))}
    assert gaps == {1_000_000 // PER_SECOND}


def _reserve(start: Start, url: str) -> list[int]:
    """Reserve slots, give half of them back, and return when the others begin."""
    used: list[int] = []
    with Redis.from_url(url) as redis:
        start()
        for _ in range(ROUNDS):
            reserved = [slot.reserved[0] for slot in rates.reserve(redis, [ASK] * BATCH, 600)]
            rates.give_back(redis, reserved[::2])
            used += [slot.start for slot in reserved[1::2]]
    return used
