"""What a viewer changes: a task on its queue like any producer's, and its answer, which only that viewer can read."""

import uuid

from celery.states import READY_STATES

from models.messages.base import Json
from tasks.job_ids import redacted_args
from worker.app import PostageApp
from worker.broker.signing import BY_US

_OURS = uuid.UUID("5f0c7ad2-6a64-4a55-8f4b-6a5b7e1c9d30")


def new_key() -> str:
    """Return an id for what a form will enqueue."""
    return f"console-{uuid.uuid4().hex}"


def enqueue(app: PostageApp, viewer: str, task: str, key: str, message: Json) -> None:
    """Put a task on its queue, for a viewer and under the key of its message."""
    app.send_task(
        task,
        args=[message],
        task_id=_task_id(viewer, key),
        argsrepr=redacted_args([message]),
        headers=BY_US,
        ignore_result=True,  # or this process would subscribe to each answer; the worker decides what is kept
    )


def answer_of(app: PostageApp, viewer: str, key: str) -> Json | None:
    """Return the answer to what a viewer has enqueued under a key; None if there is none (yet, or any more)."""
    result = app.backend.get_task_meta(_task_id(viewer, key))
    answer = result["result"] if result["status"] in READY_STATES else None
    return answer if isinstance(answer, dict) else None


def _task_id(viewer: str, key: str) -> str:
    """Return the id of a task. It is made of the viewer, who so finds no task of somebody else's."""
    return str(uuid.uuid5(_OURS, f"{viewer}\n{key}"))
