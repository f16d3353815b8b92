"""Batches: send jobs that wait at the same time are answered together, in one transaction instead of one each.

A Celery Strategy decides what becomes of a message that a worker has taken. This one is Celery's own up to the moment
at which the job would go to the pool: there plain jobs are gathered, and go to the pool together once the worker has
looked at everything it took. Nothing waits for more to come, so a single job on an idle queue is not delayed.

What is not plain goes Celery's way alone: a job with callbacks or a time limit, a retry, one that was delivered before,
and every job of a batch that could not be answered there. So one bad job fails alone, and faults are tried again as
ever.
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

log = structlog.get_logger(__name__)
celery_log = logging.getLogger(__name__)

BESIDES = ("callbacks", "errbacks", "chain", "chord")
"""What a producer may want done when the job is done: Celery does it for jobs that come alone."""


BYTES_MAX = 4_000_000
"""Bytes of the jobs of one batch: they are in memory several times while it is answered."""


def strategy(task: Any, app: Any, consumer: Any) -> Callable[..., Any]:  # noqa: ANN401  Celery's
    """The Strategy of tasks that have `answer_many`."""
    if not isinstance(consumer.pool, (ThreadPool, SoloPool)):
        return default(task, app, consumer)  # the children of other pools take one job at a time
    return default(task, app, Gathering(consumer, task, app.settings.batch))


class Gathering:
    """A consumer that gathers requests instead of handing each to the pool."""

    def __init__(self, consumer: Any, task: Any, most: int) -> None:  # noqa: ANN401  Celery's
        self._consumer = consumer
        self._task = task
        self._most = most
        self._gathered: list[Any] = []

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._consumer, name)

    def on_task_request(self, request: Any) -> None:  # noqa: ANN401  Celery's
        """Gather a plain request; Celery hands any other to the pool."""
        if not is_plain(request):
            self._consumer.on_task_request(request)
            return
        if not self._gathered:
            self._soon(self._hand_over)
        self._gathered.append(request)

    def _soon(self, do: Callable[[], None]) -> None:
        """Have it done when everything that was taken has been looked at."""
        hub = self._consumer.hub
        if hub is None:  # a worker without Celery's event loop
            self._consumer.timer.call_after(0, do)
        else:
            hub.call_soon(do)

    def _hand_over(self) -> None:
        gathered, self._gathered = self._gathered, []
        for batch in batches(gathered, self._most):
            # Pools call back with what it gave, which is nothing here, whether anybody wants it or not.
            self._consumer.pool.apply_async(answer, (self._task, self._consumer, batch), callback=bool)


def batches(requests: Sequence[Any], most: int) -> Iterator[list[Any]]:
    """Requests in batches of `most` at most, and of no more bytes than `BYTES_MAX` unless one alone has more."""
    batch: list[Any] = []
    size = 0
    for request in requests:
        its_size = len(request.body)
        if batch and (len(batch) == most or size + its_size > BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(request)
        size += its_size
    if batch:
        yield batch


def is_plain(request: Any) -> bool:  # noqa: ANN401  Celery's
    """Whether nothing is to be done with a job but to answer it."""
    headers, (_, _, besides) = request.request_dict, request._payload  # noqa: SLF001  its only way to them
    again = headers.get("retries") or request.delivery_info.get("redelivered")
    asked = headers.get("group") or any(headers.get("timelimit") or ())
    return not again and not asked and not any((besides or {}).get(name) for name in BESIDES)


def answer(task: Any, consumer: Any, requests: Sequence[Any]) -> None:  # noqa: ANN401  Celery's
    """Answer jobs together, in a thread of the pool; those that are not answered so are handed to Celery."""
    began = monotonic()
    left = {place: request for place, request in enumerate(requests) if not request.revoked()}
    for request in left.values():
        request.on_accepted(os.getpid(), began)
    places = list(left)
    try:
        for group in task.answer_many([(request.id, _only_argument(request)) for request in left.values()]):
            _succeed(task, consumer, [(left.pop(places[place]), answered) for place, answered in group], began)
    except Exception:
        log.exception("a batch could not be answered whole: the rest of its jobs is tried one by one", jobs=len(left))
    for request in left.values():
        consumer.on_task_request(request)


def _succeed(task: Any, consumer: Any, answered: Sequence[tuple[Any, Any]], began: float) -> None:  # noqa: ANN401
    """Do for answered jobs what Celery does for a task that has ended well."""
    runtime = monotonic() - began
    for request, one in answered:
        request.acknowledged = True  # below, all at once
        signals.task_postrun.send(sender=task, task_id=request.id, task=task, args=request.args,
                                  kwargs=request.kwargs, retval=one, state=SUCCESS)  # fmt: skip
        request.on_success((False, repr(one), runtime))
    consumer.call_soon(_acknowledge, [request.message for request, _ in answered], consumer.connection_errors)


def _acknowledge(messages: Sequence[Any], errors: tuple[type[BaseException], ...]) -> None:
    """Acknowledge all at once: one by one, the worker would take as many new ones each time, and batches be small."""
    for message in messages:
        message.ack_log_error(celery_log, errors)


def _only_argument(request: Any) -> object:  # noqa: ANN401  Celery's
    return request.args[0] if len(request.args) == 1 and not request.kwargs else None
