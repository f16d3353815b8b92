"""Flower's view of the queues: how many messages really wait, also those that were moved to their people.

Flower counts the list of a queue alone, where nothing is left as soon as people take turns.
"""

from collections.abc import Iterable
from typing import Any

from flower.utils import broker as flower_broker

from worker.broker.fair_queue import count_text


async def _queues(self: Any, names: Iterable[str]) -> list[dict[str, Any]]:  # noqa: ANN401  Flower's broker
    """Return the name and length of each queue, as Flower's own method does."""
    found = []
    try:
        for name in names:
            others = [self._q_for_pri(name, priority) for priority in self.priority_steps if priority]
            waiting = await self.redis.eval(count_text(), 1, name)
            lengths = [await self.redis.llen(queue) for queue in others]
            found.append({"name": name, "messages": waiting + sum(lengths)})
    finally:
        await self.redis.aclose()
    return found


def count_as_postage_does() -> None:
    """Let Flower, in this process, count what waits on queues whose people take turns."""
    flower_broker.RedisBase.queues = _queues
