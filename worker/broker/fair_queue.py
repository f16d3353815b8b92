"""Which messages a worker takes next: senders take turns, so that a campaign holds up nobody else.

On Redis a queue is a list, first in, first out: behind a campaign of a hundred thousand emails a single one would wait
for all of them. So as soon as more messages wait on a shared queue than one batch, `take.lua` moves them to a list for
each sender, and takes from these lists in turn, one message each. The messages of one sender stay in order. The sender
is read from what the message's header shows of its arguments, which Celery's clients write; messages that show none
share one list.

A `resume` or `send_many` message stands for many jobs, and is not answered in a batch. No more of them are taken than
can be started at once. The others are left to workers that are free; behind them, everybody else's jobs would wait.
"""

import functools
import re
from collections.abc import Sequence
from importlib.resources import files

from redis import Redis
from redis.commands.core import Script

QUARANTINE = "postage.quarantined"
"""The sorted set of items that can never be a job, as they were found, by the time at which they were."""
TAKE_MAX = 100
"""Messages taken in one round trip, at most."""

_BULK = re.compile(rb'"task": ?"[a-z]+\.(resume|send_many)"')


@functools.cache
def lua(*names: str) -> str:
    """Return the text of the Lua files beside this module, one after the other."""
    return "\n".join(files(__package__).joinpath(name).read_text() for name in names)


def take_script(redis: Redis) -> Script:
    """Return the script that takes messages (see `take_args`)."""
    return redis.register_script(lua("clock.lua", "keys.lua", "take.lua"))


def take_args(
    *,
    unacked: str,
    unacked_index: str,
    lists: Sequence[str],
    queues: int,
    limit: int,
    bulk_limit: int,
    shared: Sequence[str],
) -> tuple[str | int, ...]:
    """Return the arguments of the script: number of keys, keys, and values.

    It takes up to `limit` messages from `lists`, which are the `queues` of the highest priority and then those of the
    next ones. Of `shared` queues, senders take turns. Of the messages that stand for many jobs, it takes at most
    `bulk_limit`.
    """
    keys = (unacked, unacked_index, QUARANTINE, *lists)
    return (len(keys), *keys, limit, queues, bulk_limit, *shared)


def is_bulk(item: bytes) -> bool:
    """Whether an item is a message that stands for many jobs, as the script sees it."""
    # Plain text first, as in the script: nearly no item has it, and searching for the pattern takes much longer.
    return (b".resume" in item or b".send_many" in item) and _BULK.search(item) is not None


def waiting_count(redis: Redis, queue: str) -> int:
    """Return how many messages wait on a queue, in its own list and in those of its senders."""
    return int(redis.register_script(lua("keys.lua", "count.lua"))(keys=[queue]))


def purge(redis: Redis, queue: str) -> int:
    """Delete what waits on a queue. Returns how many messages those were."""
    return int(redis.register_script(lua("keys.lua", "purge.lua"))(keys=[queue]))
