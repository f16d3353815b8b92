"""Celery's pool of threads, in which no request is forgotten when Celery itself fails with it.

Celery runs callbacks and chains, keeps results and sends events after a task has answered. If any of that raises, the
thread ends quietly, and the message is neither acknowledged nor given back: it takes one of the places for messages at
work for ever. Here it goes to the quarantine, with a line in the log.
"""

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import structlog
from celery.concurrency import thread
from celery.worker.request import Request

from worker.broker.transport import set_aside

log = structlog.get_logger(__name__)


class TaskPool(thread.TaskPool):
    """Threads that run requests."""

    def on_apply(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401  Celery's
        """Run a request in a thread. The option `callback` is its method that is told the result."""
        applied = super().on_apply(*args, **options)
        watch(applied.f, options)
        return applied


class PoolConsumer:
    """Celery's consumer, except that its pool is another one."""

    def __init__(self, consumer: Any, pool: Any) -> None:  # noqa: ANN401  Celery's
        self._consumer = consumer
        self.pool = pool

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._consumer, name)


def watch(future: "Future[Any]", options: Mapping[str, Any]) -> None:
    """Have the request that runs in a thread given up if Celery fails with it. `options` are those of the pool."""
    request = getattr(options.get("callback"), "__self__", None)
    if isinstance(request, Request):
        future.add_done_callback(lambda ended: give_up_if_failed(request, ended))


def give_up_if_failed(request: Any, future: "Future[Any]") -> None:  # noqa: ANN401  Celery's
    """Set the message of a request aside if Celery failed with it before it was acknowledged."""
    error = None if future.cancelled() else future.exception()
    if error is None or request.acknowledged:
        return
    request.acknowledged = True
    item = set_aside(request.message)
    # Without its text and traceback, which may show parts of the message.
    log.error("quarantined", why=f"Celery failed after the task: {type(error).__name__}", task_id=request.id, item=item)
