"""Lists in the broker that no worker reads: jobs of a producer that named no queue, or a wrong one."""

from typing import Any

from kombu.utils.encoding import bytes_to_str

from tasks.queues import Queue
from worker.broker.transport import redis_client

KEYS_PER_ROUND = 1000
ROUNDS_MAX = 200
"""Rounds of SCAN, each of about a thousand keys and a millisecond of the server's time."""
_OURS = "postage."
_REPLIES = ".pidbox"
"""What Celery's remote control keeps answers in, for seconds."""


def unknown_lists(channel: Any) -> tuple[list[tuple[str, int]], bool]:  # noqa: ANN401  kombu's
    """Return the lists whose names are no queue of ours, with their lengths, and whether every key was looked at."""
    client: Any = redis_client(channel)
    prefix = channel.global_keyprefix  # which the client adds to the keys of LLEN, but neither adds nor takes off here
    names: set[str] = set()
    cursor = rounds = 0
    while rounds < ROUNDS_MAX:
        cursor, keys = client.scan(cursor, match=f"{prefix}*", count=KEYS_PER_ROUND, _type="list")
        found = {bytes_to_str(key).removeprefix(prefix) for key in keys}
        names |= {name for name in found if not _is_known(name, channel.sep)}
        rounds += 1
        if cursor == 0:
            break
    return [(name, int(client.llen(name))) for name in sorted(names)], cursor == 0


def _is_known(name: str, separator: str) -> bool:
    queue = name.partition(separator)[0]  # of messages with a priority
    return queue in set(Queue) or name.startswith(_OURS) or name.endswith(_REPLIES)
