"""Jobs that live through everything that a story can tell, and what stories say of credits."""

from datetime import timedelta
from typing import Any

from sqlalchemy import select

from models.database.engine import Database
from models.database.schema import charges
from models.reports.story import show_story_to_operator
from models.sends.carrier import Outcome, Receipt
from models.sends.charges import State
from models.sends.postponed import PostponedJob, postpone_jobs
from tasks.operating import decide, replay_letters
from tests.factories import email_job, stock
from tests.fakes import ACCEPTED, NEVER, NOON, UNSURE, answer, carrier_of, later, run_enqueued
from tests.integration.sending import THREE, bulk_job, crash, crash_after_handover, pass_time, scripted_context

Json = dict[str, Any]

GREYLISTED = Receipt(Outcome.NOT_NOW, f"450 4.2.0 <{THREE[0]}>: greylisted")
IN_PART = Receipt(Outcome.ACCEPTED, refused={THREE[0]: "550"}, deferred={THREE[1]: "451"})


AFTERWARDS = NOON + timedelta(hours=7, minutes=1)
"""When all of it has happened."""


def live_through_everything(database: Database) -> None:
    """Let jobs of john and peter live through everything that a story can tell."""
    stock(database, email=60, sms=10)
    script = [GREYLISTED, IN_PART, ACCEPTED, NEVER, UNSURE, UNSURE, UNSURE]
    context = scripted_context(database, *script)
    pass_time(context, timedelta(minutes=1))
    answer(context, "email.send", email_job("in-part", "peter", to=THREE))
    later(context)
    later(context)
    for job_id in ("never", "resent", "given-back", "unknown"):
        answer(context, "email.send", email_job(job_id, to=THREE))
        pass_time(context)
    decide(context, "resend", ["resent"], operator="anna", note=f"asked {THREE[0]}")
    later(context)
    decide(context, "refund", ["given-back"], operator="anna", note=None)
    answer(context, "email.send_many", bulk_job("bulk", 3))
    run_enqueued(context)
    answer(context, "email.send_many", bulk_job("cancelled", 2))
    answer(context, "messages.cancel", {"cancel_id": "c-1", "actor": "peter", "job_id": "cancelled"})
    answer(context, "email.send", email_job("poor", to=[f"user{number}@example.test" for number in range(90)]))
    replay_letters(context, "refused", None)
    run_enqueued(context)
    answer(context, "email.send", {"job_id": "wrong", "sender": "john"})
    postpone(database, "later")
    carrier_of(context, "email").script += [crash_after_handover, GREYLISTED]
    crash(context, "email.send", email_job("held", to=THREE))
    answer(context, "email.send", email_job("waits", to=THREE))
    clock: Any = context.now
    assert clock.now == AFTERWARDS


def postpone(database: Database, job_id: str) -> None:
    """Let john send an email tomorrow."""
    job = PostponedJob(
        task="email.send",
        task_id="task-9",
        key=job_id,
        person="john",
        job=email_job(job_id),
        options={},
        due_at=NOON + timedelta(days=1),
    )
    database.write(lambda connection: postpone_jobs(connection, [job], NOON))


def story_of(database: Database, job_id: str, organization: str | None = None) -> list[Json]:
    """Give the story of a job as operators see it."""
    with database.snapshot() as connection:
        story: list[Json] = show_story_to_operator(connection, job_id, organization)["story"]
        return story


def moved(story: list[Json], kind: str) -> list[Json]:
    """Give the events of a story that moved credits, without their times and sentences."""
    names = ("credits", "paid_by", "entry", "entry_amount")
    return [{name: event[name] for name in names} for event in story if event["kind"] == kind]


def all_charges(database: Database) -> list[Any]:
    """Give all charges but those of bulk jobs, whose messages have charges of their own."""
    with database.snapshot() as connection:
        return list(connection.execute(select(charges).where(charges.c.state != State.BULK)))
