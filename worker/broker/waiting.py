"""What waits on the queues: its figures, and the jobs themselves, read without being taken.

A queue is several lists (keys.lua), and messages move from its own list to those of people, and from there to a
worker. So they are read in that order, each list from its head, where new ones come in: none that waited at the
beginning is missed, unless it comes back to a queue meanwhile. Some may be read twice.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from celery import Celery
from kombu import Connection
from redis import Redis

from tasks.context import QueuedJob
from tasks.queues import Queue
from worker.broker import json_codec
from worker.broker.beat_age import read_beat_age
from worker.broker.consumer import why_unfit
from worker.broker.fair_queue import next_messages, other_lists, waiting_count
from worker.broker.transport import Channel, redis_client

READ = 100
"""Messages that are read at a time."""
ANSWER_S = 5
"""How long a broker may take to answer somebody who only counts, in seconds."""


class BrokerFigures(NamedTuple):
    """How a broker stands.

    `waiting` is how many messages wait on each queue, and `next_marks` tell apart those that are next there. `taken` is
    how many messages workers have taken from all queues and not acknowledged. `beat_age_s` is how long ago beat was
    last seen alive, in seconds; infinite if it never was.
    """

    waiting: Mapping[str, int]
    next_marks: Mapping[str, Collection[str]]
    taken: int
    beat_age_s: float


def read_broker(url: str, options: Mapping[str, Any]) -> BrokerFigures:
    """Read how the broker at a URL stands, over a connection of its own. Lists of every priority are counted.

    Raises
    ------
    kombu.exceptions.OperationalError, redis.RedisError, OSError
        If the broker cannot be reached, or does not answer in time.

    """
    patience = {"socket_timeout": ANSWER_S, "socket_connect_timeout": ANSWER_S}
    with Connection(url, transport_options={**options, **patience}) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0)
        channel: Any = connection.channel()
        redis = redis_client(channel)
        lists = {str(queue): _own_lists(channel, str(queue)) for queue in Queue}
        return BrokerFigures(
            waiting={queue: waiting_count(redis, *own) for queue, own in lists.items()},
            next_marks={queue: next_messages(redis, *own) for queue, own in lists.items()},
            taken=redis.hlen(str(channel.unacked_key)),
            beat_age_s=read_beat_age(redis),
        )


class RedisQueues:
    """The queues as those see them who look for jobs. Each reading takes a connection of the app's pool."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def read(self, queue: Queue) -> Iterator[list[QueuedJob]]:
        """Yield the jobs of a queue that no worker has answered, in groups."""
        with self._app.connection_or_acquire() as connection:
            channel = connection.default_channel
            for items in _items(channel, redis_client(channel), str(queue)):
                yield [job for item in items if (job := _read(channel, item)) is not None]


def _items(channel: Any, redis: Redis, queue: str) -> Iterator[Sequence[Any]]:  # noqa: ANN401  kombu's
    own = _own_lists(channel, queue)
    for name in own:
        yield from _read_list(redis, name)
    for name in own:
        for moved_to in other_lists(redis, name):
            yield from _read_list(redis, moved_to)
    if isinstance(channel, Channel):
        yield from _read_taken(redis, str(channel.unacked_key), queue)


def _own_lists(channel: Any, queue: str) -> list[str]:  # noqa: ANN401  kombu's
    """Return the names of a queue's own lists: one for each priority that producers may give."""
    return [channel._q_for_pri(queue, priority) for priority in channel.priority_steps]  # noqa: SLF001


def _read_list(redis: Redis, name: str | bytes) -> Iterator[Sequence[bytes]]:
    start = 0
    while items := cast("list[bytes]", redis.lrange(cast("str", name), start, start + READ - 1)):
        yield items
        start += len(items)


def _read_taken(redis: Redis, unacked: str, queue: str) -> Iterator[list[Any]]:
    """Yield the messages of a queue that workers have taken and not answered, decoded."""
    taken: list[Any] = []
    for _, held in redis.hscan_iter(unacked, count=READ):
        try:
            message, exchange, routing_key = json_codec.decode(held)
        except (ValueError, TypeError):
            continue
        if queue in (exchange, routing_key):
            taken.append(message)
        if len(taken) == READ:
            yield taken
            taken = []
    yield taken


def _read(channel: Any, item: Any) -> QueuedJob | None:  # noqa: ANN401  kombu's channel; bytes, or JSON
    """Return the job that an item is, or None if it cannot be one."""
    try:
        message = channel.message_to_python(json_codec.decode(item) if isinstance(item, bytes) else item)
        return None if why_unfit(message) else job_of(message)
    except Exception:  # noqa: BLE001  whatever is wrong with it, a worker will find out
        return None


def job_of(message: Any) -> QueuedJob:  # noqa: ANN401  kombu's
    """Return the job of a message that is fit to be one, by either of Celery's protocols."""
    body = message.payload
    told, args = (message.headers, body[0]) if "task" in message.headers else (body, body.get("args"))
    return QueuedJob(told["task"], told["id"], args[0] if args else None)
