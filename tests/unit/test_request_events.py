"""Events of requests: for whoever watches, a job that was not done has not succeeded."""

from types import SimpleNamespace
from typing import Any

import pytest

from models.messages.answer import Answer
from worker.broker.request import RedactedRequest


def event(answer: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Give the event of a job that was answered so."""
    sent: list[tuple[str, dict[str, Any]]] = []
    request: Any = RedactedRequest.__new__(RedactedRequest)
    request.id = "task-1"
    request._task = SimpleNamespace(send_events=True)
    request._eventer = SimpleNamespace(enabled=True, send=lambda kind, **fields: sent.append((kind, fields)))
    request.send_event("task-succeeded", result=repr(Answer(answer)), runtime=0.5)
    return sent[0]


@pytest.mark.parametrize("status", ["sent", "done", "sending", "retrying"])
def test_a_job_that_was_done_has_succeeded(status: str) -> None:
    """Also one whose id says otherwise: an id that a job gets from its Celery task may be any text."""
    kind, fields = event({"job_id": "status=refused", "status": status, "reason": None})

    assert kind == "task-succeeded"
    assert fields == {"uuid": "task-1", "result": f"job_id=status=refused status={status}", "runtime": 0.5}


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        ("refused", "insufficient_credits", "status=refused reason=insufficient_credits"),
        ("failed", "carrier_refused", "status=failed reason=carrier_refused"),
        ("unknown", None, "status=unknown"),
    ],
)
def test_a_job_that_was_not_done_has_failed_and_the_event_says_why(status: str, reason: str | None, words: str) -> None:
    answer = {"job_id": "one", "status": status, "reason": reason, "detail": "quokka@customer.example"}

    assert event(answer) == ("task-failed", {"uuid": "task-1", "exception": words, "runtime": 0.5})
