"""Task requests that show ids where Celery would show the arguments, which are messages and addresses."""

from typing import Any

from tasks.job_ids import redacted_args
from worker.broker.timing import TimedRequest


class RedactedRequest(TimedRequest):
    """Celery's request, showing the job's id and its sender only, whatever the producer said of the arguments."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401  Celery's
        super().__init__(*args, **options)
        self._argsrepr = redacted_args(self._args)  # type: ignore[attr-defined]
        self._kwargsrepr = "{}"
        # The task decides whether an answer is kept. A producer that does not mention it would ask for one.
        self._ignore_result = self._request_dict["ignore_result"] = self.task.ignore_result  # type: ignore[attr-defined]

    def info(self, safe: bool = False) -> Any:  # noqa: ANN401, ARG002, FBT001, FBT002  Celery's
        """Return what remote control (so Flower) may know of this request."""
        return super().info(safe=True)
