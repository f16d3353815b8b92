"""What the tests of sending share: carriers that follow a script, workers that crash, time that passes."""

from datetime import timedelta
from typing import Any

import pytest
from celery import Celery

from models.database.engine import Database
from models.messages.sends import SendEmail
from models.sends.carrier import OutboundMessage, Receipt
from tasks.context import Context, Json
from tests.factories import email_job
from tests.fakes import UNSURE, FakeCarrier, Scripted, answer, later, make_context, send
from tests.integration.queued import wait_for_no_broker

THREE = ["ada@example.test", "bob@example.test", "eve@example.test"]
LATER = timedelta(hours=1)
CRASH = ZeroDivisionError("the worker crashes")
"""Scripted, it is raised before anything is handed over."""


def scripted_context(database: Database, *script: Scripted, **options: Any) -> Context:
    """Give a context whose email carrier follows a script, and whose SMS carrier follows the same."""
    return make_context(database, email=FakeCarrier(*script), sms=FakeCarrier(*script), **options)


def leave_unknown(database: Database, *job_ids: str, **fields: Any) -> Context:
    """Send emails together whose outcome stays unknown."""
    context = scripted_context(database, *[UNSURE for _ in job_ids])
    jobs = [email_job(job_id, **fields) for job_id in job_ids]
    send(context, [SendEmail.model_validate(job) for job in jobs])
    return context


def context_with_a_bug(database: Database) -> Context:
    """Give a context whose carriers raise an exception, which contains an address, at their first message."""
    return scripted_context(database, ZeroDivisionError("a bug with ada@example.test in it"))


def answer_after_retries(context: Context, task: str, given: object, retries: int, *, broker: str | None = None) -> Any:
    """Answer a job after so many retries, as a worker would. The next retry is raised, and published to `broker`."""
    app: Any = Celery("fake", broker=broker, set_as_current=False)
    wait_for_no_broker(app)
    app.context = context
    app.finalize()
    its_task = app.tasks[task]
    request = {"id": "task-1", "retries": retries, "called_directly": False, "args": [given], "kwargs": {}}
    its_task.push_request(**request, is_eager=broker is None)
    try:
        return its_task(given)
    finally:
        its_task.pop_request()
        app.close()


def pass_time(context: Context, by: timedelta = LATER) -> None:
    """Set the clock of a context forward."""
    clock: Any = context.now
    clock.forward(by)


def take_enqueued(context: Context) -> list[tuple[str, Json]]:
    """Take what was enqueued, as (task, object), and do nothing with it."""
    broker: Any = context.enqueue
    taken: list[tuple[str, Json]] = broker.take()
    return taken


def crash_after_handover(_: OutboundMessage) -> Receipt:
    """Scripted, it takes the message and tells nobody."""
    raise CRASH


def crash(context: Context, task: str, given: Json) -> None:
    """Let a worker crash while it answers a job."""
    with pytest.raises(ZeroDivisionError):
        answer(context, task, given)


def crash_later(context: Context) -> None:
    """Let time pass, sweep, and let a worker crash while it does what was enqueued."""
    with pytest.raises(ZeroDivisionError):
        later(context)


def read_back(context: Context, job_id: str = "job-1", viewer: str = "john") -> Json:
    """Give the answer to a job as it can be read back at any time."""
    return answer(context, "views.message", {"viewer": viewer, "job_id": job_id})


def bulk_job(job_id: str = "bulk-1", count: int = 3, **fields: Any) -> Json:
    """Give the object of `email.send_many`, from peter to so many recipients."""
    recipients = [{"to": f"user{number}@example.test", "values": {"name": f"N{number}"}} for number in range(count)]
    job = {"sender": "peter", "subject": "Hello {{name}}", "text": "Dear {{ name }}", "recipients": recipients}
    return {"job_id": job_id, **job, **fields}
