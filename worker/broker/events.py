# mypy: disable-error-code="attr-defined"
# Celery is only partly typed.
"""Task events of which none is lost when several threads send them.

Celery gathers task events in a list, which it publishes and then empties without a lock. An event that another thread
appends in between is lost, and Flower shows its task as running for ever. Here one lock covers both steps.
"""

import threading
from time import time
from typing import Any

from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher
from celery.utils.time import utcoffset

EVENT_BATCH = 200
"""Events that are published together, at most. With Celery's own 24 there is a round trip for every few jobs."""


class ThreadSafeDispatcher(EventDispatcher):
    """Celery's event dispatcher, safe for threads."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401  Celery's
        self._lock = threading.RLock()
        self._shared_fields: dict[str, Any] = {}
        super().__init__(*args, **{**options, "buffer_limit": EVENT_BATCH})

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
        elif self.on_send_buffered:
            self.on_send_buffered()

    def flush(self, *args: Any, **options: Any) -> None:  # noqa: ANN401  Celery's
        """Send what was gathered."""
        with self._lock:
            super().flush(*args, **options)


class ThreadSafeEvents(Events):
    """Celery's events, with that dispatcher."""

    dispatcher_cls = "worker.broker.events:ThreadSafeDispatcher"
