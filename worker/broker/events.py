# mypy: disable-error-code="attr-defined"
# Celery is only partly typed.
"""Task events of which none is lost when several threads send them, and which are sent many at a time.

Celery gathers task events in a list, which it publishes and then empties without a lock. An event that another thread
appends in between is lost, and Flower shows its task as running for ever. Here one lock covers both steps.

Celery publishes what was gathered whenever its loop comes round, which is several times for each batch of jobs. Here it
is published every `FLUSH_S`, which nobody who watches notices.
"""

import threading
from time import time
from typing import Any

from celery import bootsteps
from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher
from celery.utils.time import utcoffset

FLUSH_S = 0.2
"""How long an event may wait to be published, in seconds."""
EVENT_BATCH = 1000
"""Events that are published together, at most: about 300 kB."""


class ThreadSafeDispatcher(EventDispatcher):
    """Celery's event dispatcher, safe for threads."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401  Celery's
        self._lock = threading.RLock()
        self._shared_fields: dict[str, Any] = {}
        super().__init__(*args, **{**options, "buffer_limit": EVENT_BATCH, "on_send_buffered": None})

    def send(self, type: str, *args: Any, **fields: Any) -> Any:  # noqa: A002, ANN401  Celery's
        """Send one event, or add it to those that are sent together."""
        group = type.partition("-")[0]
        if not self.enabled or (self.groups and group not in self.groups):
            return None
        with self._lock:
            if group not in self.buffer_group or args or "retry" in fields:
                return super().send(type, *args, **fields)
            return self._buffer(group, type, fields)

    def _buffer(self, group: str, type_: str, fields: dict[str, Any]) -> None:
        """Do what Celery does for the events of a job, in a third of the time: each job has three of them."""
        buffer = self._group_buffer[group]
        if not buffer:
            self._shared_fields = {"hostname": self.hostname, "pid": self.pid, "utcoffset": utcoffset()}
        buffer.append(
            {**fields, **self._shared_fields, "type": type_, "timestamp": time(), "clock": self.clock.forward()}
        )
        if len(buffer) >= self.buffer_limit:
            self.flush()

    def flush(self, *args: Any, **options: Any) -> None:  # noqa: ANN401  Celery's
        """Send what was gathered, if anything."""
        with self._lock:
            if self._outbound_buffer or any(self._group_buffer.values()):
                super().flush(*args, **options)

    def close(self) -> None:
        """Send what was gathered, and end."""
        self.flush()
        super().close()


class FlushStep(bootsteps.StartStopStep):
    """The part of a worker's consumer that publishes its events. Without Celery's event loop they are not gathered."""

    requires = ("celery.worker.consumer.events:Events",)

    def start(self, consumer: Any) -> None:  # noqa: ANN401  Celery's
        """Begin to publish, with the dispatcher of a new connection."""
        self._timer = consumer.timer.call_repeatedly(FLUSH_S, consumer.event_dispatcher.flush)

    def stop(self, consumer: Any) -> None:  # noqa: ANN401, ARG002  Celery's
        """Stop to publish before the connection ends."""
        self._timer.cancel()


class ThreadSafeEvents(Events):
    """Celery's events, with that dispatcher."""

    dispatcher_cls = "worker.broker.events:ThreadSafeDispatcher"
