"""Flower's view of the queues: how many messages really wait, also those that were moved to their people.

Flower counts the list of a queue alone, where nothing is left as soon as people take turns. It also reaches the broker
by means of its own, which know neither several Sentinels nor TLS that is set up in the URL.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

from celery import Celery
from flower.utils import broker as flower_broker


class QueueLengths:
    """What Flower asks for the lengths of queues; it asks them through the app's own connections."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    async def queues(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Return the name and length of each queue."""
        return await asyncio.to_thread(self._count, list(names))

    def _count(self, names: list[str]) -> list[dict[str, Any]]:
        # With a channel of its own: kombu would wait for the default one until the broker is back.
        with self._app.connection_for_read() as connection, connection.channel() as opened:
            channel: Any = opened
            return [{"name": name, "messages": channel._size(name)} for name in names]  # noqa: SLF001  kombu's


def count_as_postage_does(app: Celery) -> None:
    """Let Flower, in this process, count what waits on queues as the app does."""
    flower_broker.Broker.__new__ = lambda *_args, **_options: QueueLengths(app)
