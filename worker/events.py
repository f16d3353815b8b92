"""Task events that lose nothing when several threads send them.

Celery gathers task events in a list that it publishes and then empties, without a lock: an event that another thread
appends in between is gone, and Flower shows its task as running for ever. With one lock around both it is not.
"""

import threading
from typing import Any

from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher

GATHERED_MAX = 200
"""Events that go out together, at most; Celery's own 24 are a round trip for every few jobs."""


class OrderlyDispatcher(EventDispatcher):
    """Celery's event dispatcher, safe for threads."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401  Celery's
        self._turn = threading.RLock()
        super().__init__(*args, **{**options, "buffer_limit": GATHERED_MAX})

    def send(self, *args: Any, **fields: Any) -> Any:  # noqa: ANN401  Celery's
        """Send one event, or put it with those that go out together."""
        with self._turn:
            return super().send(*args, **fields)

    def flush(self, *args: Any, **options: Any) -> None:  # noqa: ANN401  Celery's
        """Send what was gathered."""
        with self._turn:
            super().flush(*args, **options)


class OrderlyEvents(Events):
    """Celery's events, with that dispatcher."""

    dispatcher_cls = "worker.events:OrderlyDispatcher"
