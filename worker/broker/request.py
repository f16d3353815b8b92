"""Task requests that show ids where Celery would show the arguments, which are messages and addresses."""

import re
from typing import Any, cast

from models.errors import PostageError
from models.messages.fields import is_id
from tasks.job_ids import redacted_args
from tasks.queues import Queue
from worker.broker.signatures import SignedRequest

NOT_DONE = re.compile(r"\bstatus=(?:refused|failed|unknown)(?: reason=\w+)?$")
"""What an answer shows at its end, where a job was not done (models/messages/answer.py)."""


QUEUES = frozenset(("", *map(str, Queue)))
ROUTE = ("exchange", "routing_key")
"""What a message says of where it was sent."""


class RedactedRequest(SignedRequest):
    """Celery's request, showing the job's id and its sender only, whatever the producer said of the arguments."""

    _raised: BaseException | None = None

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401  Celery's
        super().__init__(*args, **options)
        self._argsrepr = redacted_args(self._args)  # type: ignore[attr-defined]
        self._kwargsrepr = "{}"
        self._hide_other_texts()
        # The task decides whether an answer is kept. A producer that does not mention it would ask for one.
        self._ignore_result = self._request_dict["ignore_result"] = self.task.ignore_result  # type: ignore[attr-defined]

    def _hide_other_texts(self) -> None:
        """Forget what a producer may say of a job beside its arguments, where that is no id and no queue of ours."""
        given: dict[str, Any] = self._request_dict  # type: ignore[attr-defined]
        for name in ("root_id", "parent_id"):
            if not is_id(given.get(name)):
                given[name] = None
        self._root_id, self._parent_id = given.get("root_id"), given.get("parent_id")
        route = cast("dict[str, Any]", self.delivery_info)
        for name in ROUTE:
            value = route[name]
            if not isinstance(value, str) or value not in QUEUES:
                route[name] = None
        if not isinstance(route["priority"], int):
            route["priority"] = None
        route["redelivered"] = bool(route["redelivered"])

    def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> Any:  # noqa: ANN401  Celery's
        """Note what was raised, for the event."""
        self._raised = exc_info.exception
        return super().on_failure(exc_info, *args, **options)

    def on_retry(self, exc_info: Any) -> Any:  # noqa: ANN401  Celery's
        """Note what was raised, for the event."""
        self._raised = exc_info.exception.exc
        return super().on_retry(exc_info)

    def send_event(self, type: str, **fields: Any) -> Any:  # noqa: A002, ANN401  Celery's
        """Send an event. A job that was not done has failed, for whoever watches: for Celery its answer is a result."""
        if type in ("task-failed", "task-retried"):
            # Not its text, nor a traceback, which ends with that: either may repeat what was given.
            fields |= {"exception": _words(self._raised), "traceback": None}
        not_done = NOT_DONE.search(fields["result"]) if type == "task-succeeded" else None
        if not_done is not None:
            del fields["result"]
            type, fields["exception"] = "task-failed", not_done[0]  # noqa: A001
        return super().send_event(type, **fields)

    def info(self, safe: bool = False) -> Any:  # noqa: ANN401, ARG002, FBT001, FBT002  Celery's
        """Return what remote control (so Flower) may know of this request."""
        return super().info(safe=True)


def _words(error: BaseException | None) -> str:
    """Return what an event says of an exception: its type, or the text of one of ours."""
    return str(error) if isinstance(error, PostageError) else error.__class__.__name__
