"""The quarantine: items that were on a queue and can never be a job, or not for this version.

They may contain anything, so only their origin and size are shown by themselves.
"""

import hashlib
import heapq
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from redis import Redis

from models.database.paging import PAGE_SIZE
from models.messages.base import Json
from models.text import sanitize
from tasks.queues import Queue
from worker.broker.fair_queue import QUARANTINE, lua

ID_LENGTH = 17
TASK_NAME_MAX = 64
"""Characters of the name of a task that are shown."""
KNOWN_QUEUES = frozenset(str(queue) for queue in Queue)


@dataclass(frozen=True, slots=True)
class QuarantinedItem:
    """An item as it was found, byte for byte."""

    raw: bytes

    @property
    def id(self) -> str:
        """An id made from the bytes: the same ones have the same."""
        return "q" + hashlib.sha256(self.raw).hexdigest()[: ID_LENGTH - 1]

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
        }

    def queue(self) -> str | None:
        """Return the queue that the item was for, if it names one that exists."""
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


def count_items(redis: Redis) -> int:
    """Return how many items there are."""
    return int(redis.llen(QUARANTINE))


def list_items(redis: Redis, after: str | None = None) -> tuple[list[QuarantinedItem], str | None]:
    """Return one page of items, from the one that follows the id `after` on, and after which id the next begins.

    Items have no time, so they come in the order of their ids, which holds while others come and go.
    """
    following = (item for item in all_items(redis) if after is None or item.id > after)
    page = heapq.nsmallest(PAGE_SIZE + 1, following, key=lambda item: item.id)
    return page[:PAGE_SIZE], page[PAGE_SIZE - 1].id if len(page) > PAGE_SIZE else None


def all_items(redis: Redis) -> Iterator[QuarantinedItem]:
    """Yield all items, newest first, each once, as they are at one moment."""
    found = cast("list[bytes]", redis.lrange(QUARANTINE, 0, -1))
    yield from {item.id: item for item in map(QuarantinedItem, found)}.values()


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
