"""The quarantine: items that were on a queue and can never be a job, or not for this version.

They may contain anything, so only their origin and size are shown by themselves. Each has the time at which it came,
and is erased when the time is over for which data that names people is kept.
"""

import base64
import heapq
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

from celery import Celery
from redis import Redis

from models.database.paging import PAGE_SIZE
from models.messages.answer import iso_time
from models.messages.base import Json
from models.text import sanitize
from tasks.job_ids import names_user
from tasks.queues import Queue
from worker.broker.fair_queue import QUARANTINE, lua
from worker.broker.transport import item_id, redis_client

TASK_NAME_MAX = 64
"""Characters of the name of a task that are shown."""
LIST_BEFORE = "postage.quarantine"
"""The list where workers of earlier releases put such items, without their times."""
KNOWN_QUEUES = frozenset(str(queue) for queue in Queue)


@dataclass(frozen=True, slots=True)
class QuarantinedItem:
    """An item as it was found, byte for byte, and when."""

    raw: bytes
    at: datetime

    @property
    def id(self) -> str:
        """An id made from the bytes: the same ones have the same."""
        return item_id(self.raw)

    def row(self) -> Json:
        """Return what a list may show: where the item was going, and nothing of its contents."""
        message = self._message()
        headers = message.get("headers")
        task = headers.get("task") if isinstance(headers, dict) else None
        return {
            "id": self.id,
            "kind": "quarantined",
            "task": sanitize(task, TASK_NAME_MAX) if isinstance(task, str) else None,
            "queue": self.queue(),
            "bytes": len(self.raw),
            "detail": "A message." if message else "No message: this cannot be read.",
            "at": iso_time(self.at),
        }

    def queue(self) -> str | None:
        """Return the queue that the item was for, if it names one that exists."""
        try:
            queue = self._message()["properties"]["delivery_info"]["routing_key"]
        except (KeyError, TypeError):
            return None
        return queue if isinstance(queue, str) and queue in KNOWN_QUEUES else None

    def names(self, user: str) -> bool:
        """Whether the item is a message about a job of this user, as far as it can be read."""
        return names_user(self._given(), user)

    def _given(self) -> object:
        """Return the object that a task was to get, by either of Celery's protocols; None if there is none."""
        try:
            body = json.loads(base64.b64decode(self._message()["body"]))
            args = body["args"] if isinstance(body, dict) else body[0]
            return args[0]
        except (ValueError, RecursionError, KeyError, TypeError, IndexError):
            return None

    def _message(self) -> Json:
        try:
            message = json.loads(self.raw)
        except (ValueError, RecursionError):
            return {}
        return message if isinstance(message, dict) else {}


def count_items(redis: Redis) -> int:
    """Return how many items there are."""
    return int(redis.zcard(QUARANTINE))


def list_items(
    redis: Redis, after: str | None = None, since: datetime | None = None
) -> tuple[list[QuarantinedItem], str | None]:
    """Return one page of items, from the one that follows the id `after` on, and after which id the next begins.

    They come in the order of their ids, which tells each from all others and holds while others come and go.
    """
    following = (item for item in all_items(redis, since) if after is None or item.id > after)
    page = heapq.nsmallest(PAGE_SIZE + 1, following, key=lambda item: item.id)
    return page[:PAGE_SIZE], page[PAGE_SIZE - 1].id if len(page) > PAGE_SIZE else None


def all_items(redis: Redis, since: datetime | None = None) -> Iterator[QuarantinedItem]:
    """Yield the items that came since then, or all of them, newest first, as they are at one moment."""
    oldest = "-inf" if since is None else since.timestamp()
    found = redis.zrevrangebyscore(QUARANTINE, "+inf", oldest, withscores=True)
    for raw, at_s in cast("list[tuple[bytes, float]]", found):
        yield QuarantinedItem(raw, datetime.fromtimestamp(at_s, UTC))


def find_item(redis: Redis, item_id: str) -> QuarantinedItem | None:
    """Return the item with this id."""
    return next((item for item in all_items(redis) if item.id == item_id), None)


def put_back(redis: Redis, item: QuarantinedItem) -> str | None:
    """Move an item back to the queue that it was for, in one step. Returns why that was not possible, or None."""
    queue = item.queue()
    if queue is None:
        return "It does not say for which of our queues it was, so it can only be looked at."
    if not redis.register_script(lua("put_back.lua"))(keys=[QUARANTINE, queue], args=[item.raw]):
        return "It is not in the quarantine any more."
    return None


class RedisQuarantine:
    """The quarantine as upkeep sees it, which erases what is in it. Each call takes a connection of the app's pool."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def erase_before(self, before: datetime, limit: int) -> int:
        """Erase items that came before then, at most `limit`. Returns how many."""
        with self._redis() as redis:
            erase = redis.register_script(lua("clock.lua", "erase.lua"))
            return int(erase(keys=[QUARANTINE, LIST_BEFORE], args=[before.timestamp(), limit]))

    def erase_of(self, user: str) -> int:
        """Erase the messages about jobs of a user. Returns how many. What cannot be read stays until its time is over.

        Items from earlier releases that have no time yet are there once a sweep has given them one.
        """
        with self._redis() as redis:
            named = [item.raw for item in all_items(redis) if item.names(user)]
            return sum(int(redis.zrem(QUARANTINE, raw)) for raw in named)

    @contextmanager
    def _redis(self) -> Iterator[Redis]:
        with self._app.connection_or_acquire() as connection:
            yield redis_client(connection.default_channel)
