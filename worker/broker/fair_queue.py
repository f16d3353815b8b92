"""Which messages a worker takes next: people take turns, so that a campaign holds up nobody else.

On Redis a queue is a list, first in, first out: behind a campaign of a hundred thousand emails a single one would wait
for all of them. So as soon as more messages wait on a shared queue than one batch, `take.lua` moves them to a list for
each person, and takes from these lists in turn, one message each: first the organizations take turns, and within each
of them its people. The messages of one person stay in order. Whose a message is, is read from its body (person.lua).
The organization of a person is what workers noted when they charged them. Messages that name nobody share one list, and
people of no known organization share the turns of one.

A `resume` or `send_many` message stands for many jobs, and is not answered in a batch. No more of them are taken than
can be started at once. The others are left to workers that are free; behind them, everybody else's jobs would wait.
"""

import base64
import functools
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, cast

from redis import Redis
from redis.commands.core import Script

from worker.broker.prefixed import prefix_of

PERSON_FIELDS = ("sender", "buyer", "viewer")
"""The fields of a job by which people can take turns."""
ORGANIZATIONS = "postage.organizations"
"""The hash of the organization of each person whose jobs were charged lately."""
QUARANTINE = "postage.quarantined"
"""The sorted set of items that can never be a job, as they were found, by the time at which they were."""
TAKE_MAX = 100
"""Messages taken in one round trip, at most."""

_BULK = re.compile(rb'"task": ?"[a-z]+\.(resume|send_many)"')


@functools.cache
def lua(*names: str) -> str:
    """Return the text of the Lua files beside this module, one after the other."""
    return "\n".join(files(__package__).joinpath(name).read_text() for name in names)


def _tokens(field: str) -> str:
    """Return, as Lua, how a field's name in quotes stands in base64, behind 0, 1 and 2 bytes of its group of three.

    Only the characters that the name alone decides are part of it; `first` is the place of the first one in its group.
    """
    name = f'"{field}"'.encode()
    tokens = []
    for lead in range(3):
        first, last = -(-8 * lead // 6), 8 * (lead + len(name)) // 6
        text = base64.b64encode(bytes(lead) + name).decode()[first:last]
        tokens.append(f'{{text = "{text}", first = {first}}}')
    return f"{field} = {{{', '.join(tokens)}}}"


def take_script(redis: Redis) -> Script:
    """Return the script that takes messages (see `take_args`)."""
    tokens = f"local TOKENS = {{{', '.join(map(_tokens, PERSON_FIELDS))}}}\n"
    return redis.register_script(tokens + lua("clock.lua", "keys.lua", "person.lua", "take.lua"))


def take_args(
    *,
    unacked: str,
    unacked_index: str,
    lists: Sequence[str],
    queues: Sequence[str],
    limit: int,
    bulk_limits: Mapping[str, int],
    bytes_max: int,
    bytes_limit: int,
    shared: Mapping[str, str],
    prefix: str = "",
) -> tuple[str | int, ...]:
    """Return the arguments of the script: number of keys, keys, and values.

    It takes up to `limit` messages from `lists`, which are the `queues` of the highest priority and then those of the
    next ones. On `shared` queues, people take turns, who are named by this field. Of the messages that stand for many
    jobs, it takes at most `bulk_limits` from each queue; none of more than `bytes_max`, and no more once all have
    `bytes_limit`.
    """
    keys = (unacked, unacked_index, QUARANTINE, ORGANIZATIONS, *lists)
    named = (word for queue in queues for word in (queue, shared.get(queue, ""), bulk_limits[queue]))
    return (len(keys), *keys, prefix, limit, bytes_max, bytes_limit, *named)


def is_bulk(item: bytes) -> bool:
    """Whether an item is a message that stands for many jobs, as the script sees it."""
    # Plain text first, as in the script: nearly no item has it, and searching for the pattern takes much longer.
    return (b".resume" in item or b".send_many" in item) and _BULK.search(item) is not None


def waiting_count(redis: Redis, *queues: str) -> int:
    """Return how many messages wait on some queues, in their own lists and in those of their senders."""
    return int(_run(redis, "count.lua", *queues))


def next_messages(redis: Redis, *queues: str) -> set[str]:
    """Return a mark of each message that is next on these queues. They are the same as long as nothing is taken."""
    return {mark.decode() for mark in _run(redis, "next.lua", *queues)}


def other_lists(redis: Redis, queue: str) -> list[bytes]:
    """Return the names of the lists, other than the queue's own, that hold messages of a queue."""
    start = len(prefix_of(redis))
    return [name[start:] for name in cast("list[bytes]", _run(redis, "lists.lua", queue))]


def purge(redis: Redis, queue: str) -> int:
    """Delete what waits on a queue. Returns how many messages those were."""
    return int(_run(redis, "purge.lua", queue))


def _run(redis: Redis, name: str, *queues: str) -> Any:  # noqa: ANN401  what the script returns
    return redis.register_script(lua("keys.lua", name))(keys=queues, args=[prefix_of(redis)])
