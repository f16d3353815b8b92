"""A consumer that sets aside messages that can never be a job, where Celery's would drop them or end.

A message that is not of Celery's protocol ends a stock worker, or is acknowledged with its whole body logged: a job for
a newer worker would be lost, and its text would stand in the log. Here each message is checked first. One of which no
task can be made goes to the quarantine, and the log names ids only.
"""

from collections.abc import Callable
from contextlib import suppress
from time import sleep
from typing import Any, ClassVar

import structlog
from celery.worker.consumer import Consumer
from redis import ResponseError

from models.messages.fields import is_id
from worker.broker.json_codec import JSON
from worker.broker.transport import set_aside
from worker.fault_words import describe

log = structlog.get_logger(__name__)

REFUSED_WAIT_S = 1.0
"""How long a worker waits before it tries again after the broker answered with an error, in seconds."""
BACK_AFTER_S = 3.0
"""How long the broker must have answered well before that is logged, in seconds."""


class QuarantiningConsumer(Consumer):
    """Celery's consumer, which quarantines messages that are not jobs of ours."""

    class Blueprint(Consumer.Blueprint):  # type: ignore[valid-type,misc]  # a class within a class
        """Celery's steps, with our mailbox for remote control."""

        default_steps: ClassVar = [
            "worker.broker.control:Control" if step.endswith(":Control") else step
            for step in Consumer.Blueprint.default_steps
        ]

    def __init__(self, *args: Any, worker_options: dict[str, Any] | None = None, **options: Any) -> None:  # noqa: ANN401
        # Workers need not know of each other. Mingle would delay each start by a second, and leave the channel
        # consuming in kombu's own way for a while. Gossip makes every worker read the heartbeats of all others.
        quiet = {**(worker_options or {}), "without_mingle": True, "without_gossip": True}
        super().__init__(*args, **{**options, "worker_options": quiet})
        self._refused = False

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Wait for a broker that answers with an error, and say so once; anything else is Celery's."""
        if not isinstance(exc, ResponseError):
            super().on_connection_error_after_connected(exc)
            return
        if not self._refused:
            log.error("broker answers with an error; waiting until it is over", error=describe(exc))
        self._refused = True
        with suppress(Exception):  # whatever the rest of the connection does
            self.connection.collect()  # type: ignore[union-attr]
        sleep(REFUSED_WAIT_S)

    def on_ready(self) -> None:
        """Take messages, and say when the broker is well again."""
        super().on_ready()
        if self._refused:
            self.timer.call_after(BACK_AFTER_S, self._note_broker_is_back)  # cleared if the connection ends before

    def _note_broker_is_back(self) -> None:
        self._refused = False
        log.warning("broker answers again")

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], None]:  # noqa: ANN401  Celery's
        """Return the handler of all messages: Celery's, for those that are task messages."""
        handle: Callable[[Any], None] = super().create_task_handler(*args, **options)

        def check_and_handle(message: Any) -> None:  # noqa: ANN401  kombu's
            why = why_unfit(message)
            if why is not None:
                self._quarantine(message, why)
                return
            try:
                handle(message)
            except self.connection_errors:  # type: ignore[attr-defined]
                raise
            except Exception as error:  # noqa: BLE001  whatever Celery does with one message, it takes the next
                self._quarantine(message, f"{type(error).__name__} before it reached its task")

        return check_and_handle

    def on_unknown_message(self, body: Any, message: Any) -> None:  # noqa: ANN401, ARG002  Celery's
        """Quarantine a message that is not of Celery's protocol."""
        self._quarantine(message, "not a task message")

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ANN401, ARG002
        """Quarantine a task that this worker does not know; a newer one may."""
        self._quarantine(message, "a task that this worker does not know")

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ANN401, ARG002
        """Quarantine a task message with impossible parts."""
        self._quarantine(message, "an invalid task message")

    def on_decode_error(self, message: Any, exc: Exception) -> None:  # noqa: ANN401, ARG002
        """Quarantine a message whose body cannot be decoded."""
        self._quarantine(message, "a body that cannot be read")

    def _quarantine(self, message: Any, why: str) -> None:  # noqa: ANN401
        """Quarantine a message. The log names its id there, and a name in it only if it is one of ours, or an id."""
        headers = message.headers if isinstance(message.headers, dict) else {}
        task, task_id = headers.get("task"), headers.get("id")
        item = set_aside(message)
        log.error(
            "quarantined",
            why=why,
            task=task if isinstance(task, str) and task in self.app.tasks else None,
            task_id=task_id if is_id(task_id) else None,
            item=item,
        )


def why_unfit(message: Any) -> str | None:  # noqa: ANN401  kombu's
    """Return why no task can be made of a message, or None if one can.

    Both of Celery's protocols are known. In version 2, headers name the task and the body is [args, kwargs, embed]; in
    version 1, the body is one object.
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
    if _names_task_of_celery(headers) or _names_task_of_celery(body):
        return "one of Celery's own tasks, which would show what it is given"
    if "task" in headers:
        return None if _is_version_2(headers, body) else "not a task message of protocol 2"
    return None if _is_version_1(body) else "not a task message of protocol 1"


def _names_task_of_celery(named: object) -> bool:
    """Whether headers, or the body of protocol 1, name a task that Celery brings along."""
    return isinstance(named, dict) and str(named.get("task")).startswith("celery.")


def _is_version_2(headers: dict[str, Any], body: object) -> bool:
    return (
        _are_names(headers.get("task"), headers.get("id"))
        and isinstance(body, list)
        and [type(part) for part in body[:2]] == [list, dict]
        and len(body) == 3  # noqa: PLR2004  args, kwargs, embed
        and isinstance(body[2], (dict, type(None)))
    )


def _is_version_1(body: object) -> bool:
    return (
        isinstance(body, dict)
        and _are_names(body.get("task"), body.get("id"))
        and isinstance(body.get("args", []), list)
        and isinstance(body.get("kwargs", {}), dict)
    )


def _are_names(*values: object) -> bool:
    return all(isinstance(value, str) and value for value in values)
