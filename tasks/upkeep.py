"""What beat asks for: jobs whose next attempt is due, and attempts whose holder is dead."""

from datetime import timedelta

import structlog
from celery import shared_task

from models import charges as charging
from models.fields import KINDS
from tasks.context import Context, Json
from tasks.door import InnerDoor
from tasks.sending import enqueue_resume

log = structlog.get_logger(__name__)

SWEPT_AT_ONCE = 500
LOOK_AGAIN = timedelta(seconds=60)
"""A job that was put on its queue is put there again if nobody has taken it up by then."""


def sweep(context: Context) -> Json:
    """End dead attempts, and enqueue what is due."""
    waiting, unknown = end_dead_attempts(context)
    now = context.now()
    due = context.database.transact(
        lambda connection: charging.take_due(connection, now, now + LOOK_AGAIN, SWEPT_AT_ONCE)
    )
    for kind in KINDS:
        enqueue_resume(context, kind, {job.job_id: job.attempts for job in due if job.kind == kind})
    return {"status": "done", "resumed": len(due), "expired": len(waiting), "unknown": len(unknown)}


def end_dead_attempts(context: Context) -> tuple[list[str], list[str]]:
    """End the attempts whose lease is over; the ids that will be tried again, and those that are unknown now."""
    ask_again = [kind for kind in KINDS if context.carriers[kind].honours_job_id]
    waiting, unknown = context.database.transact(
        lambda connection: charging.expire(
            connection,
            context.now(),
            ask_again=ask_again,
            attempts_max=context.patience.attempts_max,
            limit=SWEPT_AT_ONCE,
        )
    )
    for job_id in unknown:
        log.warning("unknown: its worker died while the carrier may have taken it", job=job_id)
    return waiting, unknown


@shared_task(name="upkeep.sweep", base=InnerDoor, ignore_result=True)
def upkeep_sweep(context: Context, given: Json) -> Json:  # noqa: ARG001  an empty object
    """One round of upkeep."""
    return sweep(context)
