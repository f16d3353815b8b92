"""Celery's consumer, which sets aside what it cannot run instead of dropping it.

Celery prints the whole body of such a message and acknowledges it: a job for a newer worker would be lost, and its text
would stand in the log. Here it goes to the quarantine, and the log names ids only.
"""

import json
from typing import Any

import structlog
from celery.worker.consumer import Consumer

from models.messages import printable
from worker.transport import Channel

log = structlog.get_logger(__name__)


class CarefulConsumer(Consumer):
    """Quarantines messages that are no jobs of ours."""

    def on_unknown_message(self, body: Any, message: Any) -> None:  # noqa: ANN401, ARG002  Celery's
        """A message that is not of Celery's protocol."""
        self._set_aside(message, "not a task message")

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ANN401, ARG002
        """A task that this worker does not know; a newer one may."""
        self._set_aside(message, f"unknown task {printable((message.headers or {}).get('task'))}")

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ANN401, ARG002
        """A task message with parts that cannot be."""
        self._set_aside(message, f"invalid task message ({type(exc).__name__})")

    def on_decode_error(self, message: Any, exc: Exception) -> None:  # noqa: ANN401
        """A body that cannot be read."""
        self._set_aside(message, f"unreadable body ({type(exc).__name__})")

    def _set_aside(self, message: Any, why: str) -> None:  # noqa: ANN401
        channel = message.channel
        if isinstance(channel, Channel):
            channel.qos.quarantine(  # type: ignore[attr-defined]
                message.delivery_tag,
                json.dumps(message._raw).encode(),  # noqa: SLF001  the message as it came
                why,
            )
        else:  # a broker without our transport has no quarantine
            log.error("dropped: this can never be a job", why=why)
            message.reject()
