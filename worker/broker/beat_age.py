"""Whether beat is alive, by a key in the broker: beat writes it each time it has looked at its table.

A worker cannot ask beat, and what beat sends tells too little: that no sweep comes may be the workers' fault too.
"""

import math
from typing import Final

from redis import Redis

from worker.broker.fair_queue import lua

BEAT_KEY: Final = "postage.beat"
"""When beat was last seen alive, by Redis's clock, in seconds since 1970."""


def note_beat(redis: Redis) -> None:
    """Note that beat is alive."""
    redis.register_script(lua("beat.lua"))(keys=[BEAT_KEY])


def read_beat_age(redis: Redis) -> float:
    """Return how long ago beat was last seen alive, in seconds; infinite if it never was."""
    age_s = float(redis.register_script(lua("beat_age.lua"))(keys=[BEAT_KEY]))
    return math.inf if age_s < 0 else age_s
