"""The quarantine: items that were on a queue and can never be a job, or not for this version.

They may hold anything, so what is shown of them by itself is where they came from and how large they are.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import click
from kombu.exceptions import OperationalError
from redis import Redis, RedisError

from models.messages import printable
from models.paging import PAGE
from tasks.context import Json
from tasks.queues import Queue
from worker.app import PostageApp
from worker.taking import QUARANTINE
from worker.transport import client_of

ID_LENGTH = 17
KNOWN_QUEUES = frozenset(str(queue) for queue in Queue)

PUT_BACK = """
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then
    return 0
end
redis.call('LPUSH', KEYS[2], ARGV[1])
return 1
"""
"""Moves an item in one step; where two ask at once, one finds that it is gone."""


@dataclass(frozen=True, slots=True)
class Item:
    """What was found in the quarantine, byte for byte."""

    raw: bytes

    @property
    def id(self) -> str:
        """A name for it: the same bytes have the same."""
        return "q" + hashlib.sha256(self.raw).hexdigest()[: ID_LENGTH - 1]

    def row(self) -> Json:
        """What may be shown in a list: nothing that it says, only what it was for."""
        message = self._message()
        headers = message.get("headers")
        task = headers.get("task") if isinstance(headers, dict) else None
        return {
            "id": self.id,
            "kind": "quarantined",
            "task": printable(task) if isinstance(task, str) else None,
            "queue": self.queue(),
            "bytes": len(self.raw),
            "detail": "A message." if message else "No message: this cannot be read.",
        }

    def queue(self) -> str | None:
        """The queue it was for, if it says so and there is such a queue."""
        try:
            queue = self._message()["properties"]["delivery_info"]["routing_key"]
        except (KeyError, TypeError):
            return None
        return queue if isinstance(queue, str) and queue in KNOWN_QUEUES else None

    def _message(self) -> Json:
        try:
            message = json.loads(self.raw)
        except (ValueError, RecursionError):
            return {}
        return message if isinstance(message, dict) else {}


@contextmanager
def asking_the_broker() -> Iterator[None]:
    """Say in a sentence that the broker does not answer.

    Raises
    ------
    click.ClickException
        If the broker does not answer.

    """
    try:
        yield
    except (OperationalError, RedisError) as error:
        raise click.ClickException("The broker does not answer: see POSTAGE_BROKER_URL.") from error


@contextmanager
def redis_of(app: PostageApp) -> Iterator[Redis]:
    """A client of the broker.

    Raises
    ------
    click.ClickException
        If the broker does not answer.

    """
    with asking_the_broker(), app.connection_for_read() as connection:
        yield client_of(connection.default_channel)


def listed(redis: Redis, page: int = 1) -> tuple[list[Item], bool]:
    """The items of one page, newest first; and whether there are more."""
    first = (page - 1) * PAGE
    found = cast("list[bytes]", redis.lrange(QUARANTINE, first, first + PAGE))
    return [Item(raw) for raw in found[:PAGE]], len(found) > PAGE


def everything(redis: Redis) -> Iterator[Item]:
    """All items, page by page."""
    page, more = 1, True
    while more:
        items, more = listed(redis, page)
        yield from items
        page += 1


def find(redis: Redis, item_id: str) -> Item | None:
    """The item of that name."""
    return next((item for item in everything(redis) if item.id == item_id), None)


def put_back(redis: Redis, item: Item) -> str | None:
    """Put an item back on the queue it was for, and out of the quarantine, in one step. Returns why not, or None."""
    queue = item.queue()
    if queue is None:
        return "It does not say for which of our queues it was, so it can only be looked at."
    if not redis.eval(PUT_BACK, 2, QUARANTINE, queue, item.raw):
        return "It is not in the quarantine any more."
    return None
