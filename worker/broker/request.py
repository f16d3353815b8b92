"""Task requests that show ids where Celery would show the arguments, which are messages and addresses."""

import re
from typing import Any

from tasks.job_ids import redacted_args
from worker.broker.signatures import SignedRequest

NOT_DONE = re.compile(r"\bstatus=(?:refused|failed|unknown)(?: reason=\w+)?$")
"""What an answer shows at its end, where a job was not done (models/messages/answer.py)."""


class RedactedRequest(SignedRequest):
    """Celery's request, showing the job's id and its sender only, whatever the producer said of the arguments."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401  Celery's
        super().__init__(*args, **options)
        self._argsrepr = redacted_args(self._args)  # type: ignore[attr-defined]
        self._kwargsrepr = "{}"
        # The task decides whether an answer is kept. A producer that does not mention it would ask for one.
        self._ignore_result = self._request_dict["ignore_result"] = self.task.ignore_result  # type: ignore[attr-defined]

    def send_event(self, type: str, **fields: Any) -> Any:  # noqa: A002, ANN401  Celery's
        """Send an event. A job that was not done has failed, for whoever watches: for Celery its answer is a result."""
        not_done = NOT_DONE.search(fields["result"]) if type == "task-succeeded" else None
        if not_done is not None:
            del fields["result"]
            type, fields["exception"] = "task-failed", not_done[0]  # noqa: A001
        return super().send_event(type, **fields)

    def info(self, safe: bool = False) -> Any:  # noqa: ANN401, ARG002, FBT001, FBT002  Celery's
        """Return what remote control (so Flower) may know of this request."""
        return super().info(safe=True)
