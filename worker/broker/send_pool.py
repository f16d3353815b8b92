"""Threads for what is handed to carriers, apart from the pool of all other tasks, and apart for each kind.

A thread holds its jobs until the carrier has answered, or the job is given up. If a carrier is slow, all threads of its
kind wait; the other kind, and purchases, views and changes, go on.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery import bootsteps
from celery.concurrency.base import apply_target
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.worker.strategy import default

from models.messages.fields import KINDS, Kind
from worker.broker.pool import PoolConsumer, watch


class SendPool:
    """A pool, as Celery's requests use one, whose threads begin when they are needed."""

    def __init__(self, threads: int, kind: Kind) -> None:
        self._executor = ThreadPoolExecutor(threads, f"send-{kind}")

    def apply_async(self, target: Callable[..., Any], args: tuple[Any, ...] = (), **options: Any) -> None:  # noqa: ANN401  Celery's
        """Run `target` in a thread."""
        watch(self._executor.submit(apply_target, target, args, **options), options)

    def start(self) -> None:
        """Do nothing: threads begin when they are needed."""

    def stop(self) -> None:
        """Finish what runs. What has not begun stays unacknowledged, so it goes back to its queue."""
        self._executor.shutdown(cancel_futures=True)


class SendPools:
    """The pools of all kinds."""

    def __init__(self, threads: int) -> None:
        self._pools: dict[str, SendPool] = {kind: SendPool(threads, kind) for kind in KINDS}

    def of(self, task: str) -> SendPool:
        """Return the pool of a task by its name, which begins with the kind."""
        return self._pools[task.partition(".")[0]]

    def start(self) -> None:
        """Do nothing, as each of them."""

    def stop(self) -> None:
        """Stop each of them."""
        for pool in self._pools.values():
            pool.stop()


class SendPoolStep(bootsteps.StartStopStep):
    """The part of a worker that makes these pools, and stops them.

    They are stopped just before the pool, while what they have finished can still be acknowledged.
    """

    requires = ("celery.worker.components:Pool",)

    def create(self, worker: Any) -> Any:  # noqa: ANN401  Celery's
        """Make the pools, which stay when the connection to the broker is made anew."""
        worker.send_pools = SendPools(worker.app.settings.send_threads)
        return worker.send_pools  # to be started and stopped with the worker


def strategy(task: Any, app: Any, consumer: Any) -> Callable[..., Any]:  # noqa: ANN401  Celery's
    """Return the Strategy of tasks that hand jobs to carriers. Celery's other pools run them as any task."""
    return default(task, app, send_consumer(task, consumer))


def send_consumer(task: Any, consumer: Any) -> Any:  # noqa: ANN401  Celery's
    """Return the consumer of a task that hands jobs to carriers."""
    if not isinstance(consumer.pool, ThreadPool):
        return consumer
    return PoolConsumer(consumer, consumer.controller.send_pools.of(task.name))
