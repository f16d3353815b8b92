"""`messages.cancel`: send jobs that wait are stopped, wherever they wait.

A job waits in one of three places, and may move from one to the next while they are searched: postponed in the
database, on its queue in the broker, and charged in the database. They are searched in that order, and the postponed
ones once more, so none slips through. Nothing is taken from a queue: a job there is refused under its key, and
the worker that takes it answers it so. Each step is a short transaction, and what was interrupted goes on where it was.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from celery import shared_task
from sqlalchemy import Connection

from models.errors import Reason, Refused
from models.messages.base import Json
from models.messages.billing import CancelMessages
from models.messages.bulk import SendMany
from models.messages.sends import SendOne
from models.messages.wire import SEND_TASKS, parse
from models.sends.cancelling import (
    Cancellation,
    begin_as_operator,
    begin_cancellation,
    cancel_uncharged,
    cancel_waiting,
    finish_cancellation,
    is_charged,
    organizations_with,
)
from models.sends.charges import SendJob
from models.sends.postponed import delete_postponed, lock_postponed
from models.users.users import find_user
from tasks.base import PostageTask
from tasks.bulk import as_bulk_job
from tasks.context import Context, QueuedJob
from tasks.job_ids import first_id
from tasks.queues import Queue
from tasks.sending import as_send_job

CANCEL_BATCH = 500
"""Jobs that one transaction cancels."""
SEARCHED = (Queue.EMAIL, Queue.SMS, Queue.BULK)
"""The queues on which send jobs wait."""

Progress = Callable[[Cancellation], None]


def cancel(context: Context, message: CancelMessages) -> Json:
    """Cancel jobs for a user."""

    def begin(connection: Connection) -> Cancellation:
        return begin_cancellation(connection, message, context.now(connection))

    return _carry_out(context, begin, lambda _: None)


def cancel_as_operator(context: Context, message: CancelMessages, org_id: int, progress: Progress) -> Json:
    """Cancel jobs of an organization for an operator. `progress` is told how the cancellation stands from time to time.

    Raises
    ------
    Refused
        `conflicting_job` or `not_found`.

    """

    def begin(connection: Connection) -> Cancellation:
        return begin_as_operator(connection, message, org_id, context.now(connection))

    return _carry_out(context, begin, progress)


def organizations_of(context: Context, message: CancelMessages) -> set[int]:
    """Return the organizations whose jobs a cancellation may mean: that of the sender, or all that have such a job."""
    if message.sender is not None:
        user = context.database.read(lambda connection: find_user(connection, message.sender or ""))
        return set() if user is None else {user.org_id}
    job_id = message.job_id or ""
    known = context.database.read(lambda connection: organizations_with(connection, job_id))
    return known or context.database.read(
        lambda connection: {
            user.org_id
            for sender in _senders_on_queues(context, job_id)
            if (user := find_user(connection, sender)) is not None
        }
    )


def _senders_on_queues(context: Context, job_id: str) -> set[str]:
    """Return the senders of the jobs of this id that wait on a queue."""
    senders = set()
    for queue in SEARCHED:
        for group in context.queues.read(queue):
            senders |= {first_id(job.given, ("sender",)) for job in group if _is_job(job, job_id)}
    return {sender for sender in senders if sender is not None}


def _carry_out(context: Context, begin: Callable[[Connection], Cancellation], progress: Progress) -> Json:
    cancellation = context.database.write(begin)
    if not cancellation.is_done:
        if not context.database.read(lambda connection: is_charged(connection, cancellation)):
            _cancel_postponed(context, cancellation)
            for queue in SEARCHED:
                for group in context.queues.read(queue):
                    _cancel_queued(context, cancellation, group)
                    progress(cancellation)
            _cancel_postponed(context, cancellation)
        while _cancel_some_waiting(context, cancellation):
            progress(cancellation)
        _finish(context, cancellation)
        cancellation = context.database.write(begin)
    return _answer(cancellation)


def _finish(context: Context, cancellation: Cancellation) -> None:
    found = context.database.write(
        lambda connection: finish_cancellation(connection, cancellation, context.now(connection))
    )
    if not found:
        sentence = f"There is no job {cancellation.job_id} that waits, or not for you."
        raise Refused(Reason.NOT_FOUND, sentence)


def _answer(cancellation: Cancellation) -> Json:
    return {
        "cancel_id": cancellation.cancel_id,
        "status": "done",
        "reason": None,
        "detail": None,
        "actor": cancellation.actor,
        "cancelled": cancellation.cancelled,
        "credits": cancellation.credits,
        "too_late": cancellation.too_late,
    }


def _cancel_postponed(context: Context, cancellation: Cancellation) -> None:
    """Cancel jobs that are not due yet."""

    def cancel_some(connection: Connection) -> int:
        now = context.now(connection)
        postponed = lock_postponed(
            connection,
            CANCEL_BATCH,
            org_id=cancellation.org_id,
            tasks=SEND_TASKS,
            key=cancellation.job_id,
            person=cancellation.sender,
        )
        jobs = [QueuedJob(job.task, job.task_id, job.job) for job in postponed]
        for group in _send_jobs(cancellation, jobs):
            cancel_uncharged(connection, cancellation, group, now)
        delete_postponed(connection, postponed)
        return len(postponed)

    while context.database.write(cancel_some) == CANCEL_BATCH:
        pass


def _cancel_queued(context: Context, cancellation: Cancellation, jobs: Sequence[QueuedJob]) -> None:
    """Cancel those of these jobs that the cancellation covers."""
    groups = _send_jobs(cancellation, [job for job in jobs if _covers(cancellation, job)])
    for group in groups:
        context.database.write(
            lambda connection, group=group: cancel_uncharged(connection, cancellation, group, context.now(connection))  # type: ignore[misc]
        )


def _cancel_some_waiting(context: Context, cancellation: Cancellation) -> int:
    ended = context.database.write(
        lambda connection: cancel_waiting(connection, cancellation, context.now(connection), CANCEL_BATCH)
    )
    context.metrics.note_ends(ended)
    return len(ended)


def _covers(cancellation: Cancellation, job: QueuedJob) -> bool:
    if job.task not in SEND_TASKS or not isinstance(job.given, dict):
        return False
    is_theirs = cancellation.sender in (None, job.given.get("sender"))
    return is_theirs and (cancellation.job_id is None or _is_job(job, cancellation.job_id))


def _is_job(job: QueuedJob, job_id: str) -> bool:
    return isinstance(job.given, dict) and (job.given.get("job_id") or job.task_id) == job_id


def _send_jobs(cancellation: Cancellation, jobs: Iterable[QueuedJob]) -> list[list[tuple[SendJob, int]]]:
    """Return jobs as they are refused, for each task apart, each with the number of its messages.

    Those that cannot be read are left out: they will be refused for that.
    """
    by_task: defaultdict[str, dict[tuple[str, str], tuple[SendJob, int]]] = defaultdict(dict)
    for job in jobs:
        try:
            message = parse(job.task, job.given, job_id=job.task_id)
        except Refused:
            continue
        if isinstance(message, SendMany):
            refused = as_bulk_job(message, list(message.each()), cancellation.refusal), len(message.recipients)
        else:
            refused = as_send_job(cast("SendOne", message), cancellation.refusal), 1
        by_task[job.task].setdefault((refused[0].sender, refused[0].job_id), refused)
    return [list(group.values()) for group in by_task.values()]


@shared_task(name="messages.cancel", base=PostageTask)
def messages_cancel(context: Context, message: CancelMessages) -> Json:
    """A cancellation."""
    return cancel(context, message)
