"""Celery's consumer, which sets aside what can never be a job instead of dropping it or dying of it.

A message that is not of Celery's protocol ends a stock worker, or is acknowledged with its whole body printed: a job
for a newer worker would be lost, and its text would stand in the log. Here each message is looked at first. What no
task can be made of goes to the quarantine, and the log names ids only.
"""

import json
from collections.abc import Callable
from typing import Any

import structlog
from celery.worker.consumer import Consumer

from models.messages import printable
from worker.codec import JSON
from worker.transport import Channel

log = structlog.get_logger(__name__)


class CarefulConsumer(Consumer):
    """Quarantines messages that are no jobs of ours."""

    def __init__(self, *args: Any, worker_options: dict[str, Any] | None = None, **options: Any) -> None:  # noqa: ANN401
        # Workers need not know of each other. Mingle would hold each start up by a second, and leave the channel
        # consuming in kombu's own way for a while; gossip makes every worker read the heartbeats of all.
        quiet = {**(worker_options or {}), "without_mingle": True, "without_gossip": True}
        super().__init__(*args, **{**options, "worker_options": quiet})

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], None]:  # noqa: ANN401  Celery's
        """The handler of every message: Celery's, for those that are task messages."""
        handle: Callable[[Any], None] = super().create_task_handler(*args, **options)

        def look_first(message: Any) -> None:  # noqa: ANN401  kombu's
            why = unfit(message)
            if why is None:
                handle(message)
            else:
                self._set_aside(message, why)

        return look_first

    def on_unknown_message(self, body: Any, message: Any) -> None:  # noqa: ANN401, ARG002  Celery's
        """A message that is not of Celery's protocol."""
        self._set_aside(message, "not a task message")

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ANN401, ARG002
        """A task that this worker does not know; a newer one may."""
        self._set_aside(message, "a task that this worker does not know")

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ANN401, ARG002
        """A task message with parts that cannot be."""
        self._set_aside(message, "an invalid task message")

    def on_decode_error(self, message: Any, exc: Exception) -> None:  # noqa: ANN401, ARG002
        """A body that cannot be read."""
        self._set_aside(message, "a body that cannot be read")

    def _set_aside(self, message: Any, why: str) -> None:  # noqa: ANN401
        headers = message.headers if isinstance(message.headers, dict) else {}
        log.error("quarantined", why=why, task=printable(headers.get("task")), task_id=printable(headers.get("id")))
        channel = message.channel
        if isinstance(channel, Channel):
            channel.qos.quarantine(message.delivery_tag, json.dumps(message._raw).encode())  # type: ignore[attr-defined]  # noqa: SLF001
        else:  # a broker without our transport has no quarantine
            message.reject()


def unfit(message: Any) -> str | None:  # noqa: ANN401  kombu's
    """Why no task can be made of a message; None if one can.

    Both of Celery's protocols are known: in the second, headers name the task and the body is [args, kwargs, embed]; in
    the first, the body is one object.
    """
    if message.content_type != JSON:
        return "a content type other than application/json"
    try:
        body = message.payload
    except Exception:  # noqa: BLE001  whatever its bytes do to a decoder
        return "a body that cannot be read"
    headers = message.headers or {}
    if not isinstance(headers, dict):
        return "headers that are no object"
    if "task" in headers:
        return None if _is_second(headers, body) else "not a task message of protocol 2"
    return None if _is_first(body) else "not a task message of protocol 1"


def _is_second(headers: dict[str, Any], body: object) -> bool:
    return (
        _are_names(headers.get("task"), headers.get("id"))
        and isinstance(body, list)
        and [type(part) for part in body[:2]] == [list, dict]
        and len(body) == 3  # noqa: PLR2004  args, kwargs, embed
        and isinstance(body[2], (dict, type(None)))
    )


def _is_first(body: object) -> bool:
    return (
        isinstance(body, dict)
        and _are_names(body.get("task"), body.get("id"))
        and isinstance(body.get("args", []), list)
        and isinstance(body.get("kwargs", {}), dict)
    )


def _are_names(*values: object) -> bool:
    return all(isinstance(value, str) and value for value in values)
