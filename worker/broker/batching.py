"""Batches: send jobs that wait at the same time are answered together, in one transaction instead of one each.

A Celery Strategy decides what happens to a message that a worker has taken. This one is Celery's own up to the moment
at which the job would go to the pool. There batchable jobs are gathered, and go to the pool together once the worker
has looked at everything it took. Nothing waits for more jobs to come, so a single job on an idle queue is not delayed.

A job that is not batchable goes Celery's way, alone: one with callbacks or a time limit, a retry, and one that was
delivered before. So do the jobs of a batch that a fault left unanswered: one bad job fails alone, and faults are
retried by Celery.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Any

import structlog
from celery import signals
from celery.concurrency.solo import TaskPool as SoloPool
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.states import SUCCESS
from celery.worker.strategy import default

from models.grouping import in_groups
from tasks.base import Arrival
from worker.broker.send_pool import send_consumer

log = structlog.get_logger(__name__)
celery_log = logging.getLogger(__name__)

SIDE_EFFECTS = ("callbacks", "errbacks", "chain", "chord")
"""What a producer may ask Celery to do after the job. Celery does it for jobs that come alone."""
BATCH_BYTES_MAX = 4_000_000
"""Bytes of the jobs of one batch, which are in memory several times while it is answered."""


def strategy(task: Any, app: Any, consumer: Any) -> Callable[..., Any]:  # noqa: ANN401  Celery's
    """Return the Strategy of tasks whose jobs are answered in batches."""
    if not isinstance(consumer.pool, (ThreadPool, SoloPool)):
        return default(task, app, consumer)  # the children of other pools take one job at a time
    return default(task, app, BatchingConsumer(send_consumer(task, consumer), task, app.settings.batch))


class BatchingConsumer:
    """Celery's consumer, except that it gathers requests instead of handing each to the pool."""

    def __init__(self, consumer: Any, task: Any, batch: int) -> None:  # noqa: ANN401  Celery's
        self._consumer = consumer
        self._task = task
        self._batch = batch
        self._gathered: list[Any] = []

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._consumer, name)

    def on_task_request(self, request: Any) -> None:  # noqa: ANN401  Celery's
        """Gather a batchable request; hand any other to the pool, as Celery does."""
        if not is_batchable(request):
            self._consumer.on_task_request(request)
            return
        if not self._gathered:
            self._call_soon(self._hand_to_pool)
        self._gathered.append(request)

    def _call_soon(self, do: Callable[[], None]) -> None:
        """Call `do` when everything that was taken has been looked at."""
        hub = self._consumer.hub
        if hub is None:  # a worker without Celery's event loop
            self._consumer.timer.call_after(0, do)
        else:
            hub.call_soon(do)

    def _hand_to_pool(self) -> None:
        gathered, self._gathered = self._gathered, []
        for batch in batches(gathered, self._batch):
            self._consumer.pool.apply_async(answer, args=(self._task, self._consumer, batch), callback=_ignore)


def _ignore(_result: object) -> None:
    """Pools insist on a callback for the result, which is None here."""


def batches(requests: Sequence[Any], most: int) -> Iterator[list[Any]]:
    """Yield requests in batches of at most `most`, and of at most `BATCH_BYTES_MAX` unless a single one has more."""
    return in_groups(requests, lambda request: len(request.body), BATCH_BYTES_MAX, most)


def is_batchable(request: Any) -> bool:  # noqa: ANN401  Celery's
    """Whether nothing has to be done with a job except to answer it."""
    headers, (_, _, embed) = request.request_dict, request._payload  # noqa: SLF001  the only way to them
    came_before = headers.get("retries") or request.delivery_info.get("redelivered")
    has_options = headers.get("group") or any(headers.get("timelimit") or ())
    return not came_before and not has_options and not any((embed or {}).get(name) for name in SIDE_EFFECTS)


def answer(task: Any, consumer: Any, requests: Sequence[Any]) -> None:  # noqa: ANN401  Celery's
    """Answer jobs together, in a thread of the pool; those that a fault leaves unanswered are handed to Celery."""
    began = monotonic()
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(task=task.name)
    left = dict(enumerate(requests))
    try:
        for request in left.values():
            request.on_accepted(os.getpid(), began)
        arrivals = [_arrival(request) for request in left.values()]
        for group in task.answer(arrivals):
            _succeed(task, consumer, [(left.pop(place), answered) for place, answered in group], began)
    except Exception:
        log.exception("batch interrupted by a fault; its other jobs are tried one by one", jobs=len(left))
    for request in left.values():
        consumer.on_task_request(request)


def _succeed(task: Any, consumer: Any, answered: Sequence[tuple[Any, Any]], began: float) -> None:  # noqa: ANN401
    """Do for answered jobs what Celery does for a task that has succeeded."""
    runtime = monotonic() - began
    try:
        for request, result in answered:
            request.acknowledged = True  # below, all at once
            signals.task_postrun.send(sender=task, task_id=request.id, task=task, args=request.args,
                                      kwargs=request.kwargs, retval=result, state=SUCCESS)  # fmt: skip
            request.on_success((False, repr(result), runtime))
    finally:  # they are answered, whatever Celery's signals and events do
        consumer.call_soon(_acknowledge, [request.message for request, _ in answered], consumer.connection_errors)


def _acknowledge(messages: Sequence[Any], errors: tuple[type[BaseException], ...]) -> None:
    """Acknowledge all at once. One by one, the worker would take as many new ones each time, and batches be small."""
    for message in messages:
        message.ack_log_error(celery_log, errors)


def _arrival(request: Any) -> Arrival:  # noqa: ANN401  Celery's
    return Arrival(
        _only_argument(request),
        request.id,
        refusal=request.ending(),
        postponement=request.postponement,
        organization=request.organization,
    )


def _only_argument(request: Any) -> object:  # noqa: ANN401  Celery's
    return request.args[0] if len(request.args) == 1 and not request.kwargs else None
