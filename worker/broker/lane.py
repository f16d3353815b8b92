"""Saves in order: a worker process answers the saves of users, roles and plans one after another, as it took them.

Side by side in a pool of threads, the first of two saves of one user may end last, and so win. Here saves share a lane:
one thread beside the pool, on which Celery runs them as it runs any task. No other task waits for them.

A save that is retried after a fault, or has an ETA, joins the lane when its time has come.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

from celery import bootsteps
from celery.concurrency.base import apply_target
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.worker.strategy import default

from worker.broker.pool import PoolConsumer, watch

WAIT_MAX_S = 60.0
"""How long a save waits for those before it, in seconds. A database that is away holds up each of them for minutes, so
that the last of many would outlast the visibility timeout, after which Redis delivers it once more."""


class Lane:
    """A pool, as Celery's requests use one, that runs what it is given one by one and in order.

    What has waited for longer than `wait_max_s` when its turn comes goes to `pool` instead, where its order is lost.
    """

    def __init__(self, pool: Any, wait_max_s: float = WAIT_MAX_S) -> None:  # noqa: ANN401  Celery's
        self._pool = pool
        self._wait_max_s = wait_max_s
        self._thread = ThreadPoolExecutor(1, "lane")

    def apply_async(self, target: Callable[..., Any], **options: Any) -> None:  # noqa: ANN401  Celery's
        """Run `target` once everything that was given before has ended."""
        watch(self._thread.submit(self._run, monotonic() + self._wait_max_s, target, options), options)

    def _run(self, until: float, target: Callable[..., Any], options: dict[str, Any]) -> None:
        run = apply_target if monotonic() <= until else self._pool.apply_async
        run(target, **options)

    def start(self) -> None:
        """Do nothing: the thread begins when it is needed."""

    def stop(self) -> None:
        """Finish what runs. What has not begun stays unacknowledged, so it goes back to its queue."""
        self._thread.shutdown(cancel_futures=True)


class LaneStep(bootsteps.StartStopStep):
    """The part of a worker that makes its lane, and stops it.

    It is stopped just before the pool, while what it has finished can still be acknowledged.
    """

    requires = ("celery.worker.components:Pool",)

    def create(self, worker: Any) -> Any:  # noqa: ANN401  Celery's
        """Make the lane, which stays when the connection to the broker is made anew."""
        worker.lane = Lane(worker.pool)
        return worker.lane  # to be started and stopped with the worker


def strategy(task: Any, app: Any, consumer: Any) -> Callable[..., Any]:  # noqa: ANN401  Celery's
    """Return the Strategy of tasks that are answered in order. In other pools than that of threads there is no lane."""
    has_lane = isinstance(consumer.pool, ThreadPool)
    return default(task, app, PoolConsumer(consumer, consumer.controller.lane) if has_lane else consumer)
