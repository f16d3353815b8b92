"""Cancelling: what waits is stopped and costs nothing; what may have reached a carrier is left alone."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from celery.exceptions import Retry
from kombu import Consumer, Exchange
from kombu import Queue as KombuQueue
from redis import Redis
from sqlalchemy import select

from models.database.engine import Database
from models.database.schema import cancellations, charges
from models.messages.base import Json
from models.sends.charges import State
from models.sends.unknown import resend_unknown
from tasks.base import POSTPONED
from tasks.context import Context, QueuedJob
from tasks.queues import Queue
from tests import fakes
from tests.audits import audit_everything
from tests.factories import acme, balance, buy, email_job, save_people, sms_job
from tests.fakes import ACCEPTED, NOT_NOW, UNSURE, FakeCarrier, answer, later, make_context, run_enqueued
from tests.integration.commands import open_app
from worker.app import PostageApp

LATER = timedelta(hours=3)


def cancel(context: Context, cancel_id: str = "cancel-1", actor: str = "john", **what: str) -> Json:
    """Cancel a job or a sender's jobs."""
    return answer(context, "messages.cancel", {"cancel_id": cancel_id, "actor": actor, **what})


def done(*, cancelled: int = 0, credits: int = 0, too_late: int = 0) -> Json:  # noqa: A002
    """Give what a cancellation answers that did so much."""
    return {"status": "done", "cancelled": cancelled, "credits": credits, "too_late": too_late}


def shown(answered: Json) -> Json:
    return {name: answered.get(name) for name in ("status", "cancelled", "credits", "too_late")}


def message(context: Context, job_id: str, viewer: str = "john") -> tuple[str, str | None]:
    answered = answer(context, "views.message", {"viewer": viewer, "job_id": job_id})
    return answered["status"], answered["reason"]


def check_money(database: Database, context: Context) -> None:
    clock: Any = context.now
    with database.snapshot() as connection:
        assert audit_everything(connection, clock.now) == []


def test_a_job_that_waits_for_another_attempt_gets_its_credits_back(stocked: Database) -> None:
    carrier = FakeCarrier(NOT_NOW)
    context = make_context(stocked, email=carrier)
    answer(context, "email.send", email_job(to=["ada@example.test", "bob@example.test"]))

    assert shown(cancel(context, job_id="job-1")) == done(cancelled=1, credits=2)

    later(context)
    assert message(context, "job-1") == ("refused", "cancelled")
    assert answer(context, "views.message", {"viewer": "john", "job_id": "job-1"})["credits"] == 0
    assert balance(stocked, "john") == 10
    assert len(carrier.messages) == 1
    check_money(stocked, context)


@pytest.mark.parametrize("is_idempotent", [True, False])
@pytest.mark.parametrize("script", [[UNSURE], [NOT_NOW, UNSURE], [UNSURE, NOT_NOW]])
def test_a_job_that_was_ever_in_doubt_is_left_alone(stocked: Database, script: list[Any], is_idempotent: bool) -> None:
    carrier = FakeCarrier(*script, is_idempotent=is_idempotent)
    context = make_context(stocked, email=carrier)
    answer(context, "email.send", email_job())
    for _ in script[1:]:
        later(context)

    assert shown(cancel(context, job_id="job-1")) == done(too_late=1)

    assert balance(stocked, "john") == 9
    check_money(stocked, context)


def test_a_job_that_a_person_has_resent_is_left_alone(stocked: Database) -> None:
    """The carrier may have it from before."""
    context = make_context(stocked, email=FakeCarrier(UNSURE))
    answer(context, "email.send", email_job())
    stocked.write(lambda c: resend_unknown(c, acme("job-1"), operator="someone", now=context.now(c)))

    assert shown(cancel(context, sender="john")) == done(too_late=1)

    assert balance(stocked, "john") == 9
    later(context)
    assert message(context, "job-1") == ("sent", None)


def test_of_an_email_that_has_reached_some_only_the_others_are_stopped(stocked: Database) -> None:
    partly = replace(ACCEPTED, deferred={"bob@example.test": "Not now."})
    carrier = FakeCarrier(partly)
    context = make_context(stocked, email=carrier)
    answer(context, "email.send", email_job(to=["ada@example.test", "bob@example.test"]))

    assert shown(cancel(context, job_id="job-1")) == done(credits=1, too_late=1)

    later(context)
    assert message(context, "job-1")[0] == "sent"
    assert balance(stocked, "john") == 9
    assert len(carrier.messages) == 1
    check_money(stocked, context)


def test_the_waiting_messages_of_a_bulk_job_are_stopped(stocked: Database) -> None:
    carrier = FakeCarrier()
    context = make_context(stocked, email=carrier)
    answer(context, "email.send_many", bulk_job("campaign", 6))
    broker: Any = context.enqueue
    [(task, asked)] = broker.take()
    begun = {job_id: asked["attempts"][job_id] for job_id in ("campaign/0", "campaign/1")}
    answer(context, task, {**asked, "attempts": begun})

    assert shown(cancel(context, job_id="campaign")) == done(cancelled=4, credits=4, too_late=2)

    answer(context, task, asked)  # the worker that is told to send all
    later(context)
    assert len(carrier.messages) == 2
    bulk = answer(context, "views.message", {"viewer": "john", "job_id": "campaign"})
    assert (bulk["status"], bulk["credits"], bulk["messages"]) == ("sent", 2, {"refused": 4, "sent": 2})
    assert message(context, "campaign/5") == ("refused", "cancelled")
    assert balance(stocked, "john") == 8
    check_money(stocked, context)


def test_a_bulk_job_of_which_nothing_was_sent_is_refused(stocked: Database) -> None:
    context = make_context(stocked)
    answer(context, "email.send_many", bulk_job("campaign", 3))

    cancel(context, job_id="campaign")

    assert message(context, "campaign")[0] == "refused"
    assert balance(stocked, "john") == 10


def test_a_postponed_job_is_refused(stocked: Database) -> None:
    context = make_context(stocked)
    clock: Any = context.now
    postpone(context, email_job("mine"), clock.now + LATER)
    postpone(context, email_job("peters", sender="peter"), clock.now + LATER)

    assert shown(cancel(context, sender="john")) == done(cancelled=1)

    assert message(context, "mine") == ("refused", "cancelled")
    assert message(context, "peters", "peter") == ("sending", None)
    later(context, LATER)
    broker: Any = context.enqueue
    assert [job.key for job in broker.postponed] == ["peters"]
    check_money(stocked, context)


class OneQueue:
    """A broker whose email queue holds these jobs."""

    def __init__(self, *jobs: QueuedJob) -> None:
        self.jobs = jobs
        self.read_times = 0

    def read(self, queue: Queue) -> Iterator[list[QueuedJob]]:
        """Yield the jobs."""
        self.read_times += 1
        if queue is Queue.EMAIL:
            yield list(self.jobs)


def test_a_job_on_its_queue_is_refused_before_a_worker_takes_it(stocked: Database) -> None:
    carrier = FakeCarrier()
    mine, peters = email_job("mine"), email_job("peters", sender="peter")
    unreadable, stranger = email_job("bad", to="nobody"), email_job("strangers", sender="stranger")
    queued = [QueuedJob("email.send", "t", job) for job in (mine, peters, unreadable, stranger, 5, None)]
    context = replace(make_context(stocked, email=carrier), queues=OneQueue(*queued, *queued))

    assert shown(cancel(context, sender="john")) == done(cancelled=1)

    answers = [answer(context, "email.send", job)["status"] for job in (mine, peters)]
    assert answers == ["refused", "sent"]
    assert carrier.job_ids == ["peters"]
    assert answer(context, "email.send", {**mine, "subject": "Other"})["reason"] == "conflicting_job"
    check_money(stocked, context)


def test_a_job_of_another_organization_is_never_touched(stocked: Database) -> None:
    """It has the same id, and even names the same sender in a message that is not theirs."""
    buy(stocked, "olga", email=5)
    theirs = QueuedJob("email.send", "t", email_job("job-1", sender="olga"))
    context = replace(make_context(stocked, email=FakeCarrier(NOT_NOW)), queues=OneQueue(theirs))
    answer(context, "email.send", email_job("job-2", sender="olga"))

    assert cancel(context, job_id="job-1")["reason"] == "not_found"
    assert cancel(context, job_id="job-2")["reason"] == "not_found"
    assert cancel(context, sender="olga")["reason"] == "unknown_user"
    assert cancel(context, sender="stranger")["reason"] == "unknown_user"
    assert cancel(context, actor="stranger", sender="john")["reason"] == "unknown_user"

    assert answer(context, "email.send", theirs.given)["status"] == "sent"


def test_a_job_of_another_organization_does_not_hide_ours(stocked: Database) -> None:
    buy(stocked, "olga", email=5)
    theirs, ours = (QueuedJob("email.send", "t", email_job("same", sender=sender)) for sender in ("olga", "john"))
    context = replace(make_context(stocked), queues=OneQueue(theirs, ours))

    assert shown(cancel(context, job_id="same")) == done(cancelled=1)

    assert answer(context, "email.send", ours.given)["reason"] == "cancelled"
    assert answer(context, "email.send", theirs.given)["status"] == "sent"


def test_without_the_right_only_ones_own_jobs_can_be_cancelled(stocked: Database) -> None:
    context = make_context(stocked, email=FakeCarrier(NOT_NOW, NOT_NOW))
    answer(context, "email.send", email_job("johns"))
    answer(context, "email.send", email_job("peters", sender="peter"))

    assert cancel(context, actor="peter", sender="john")["reason"] == "not_permitted"
    assert cancel(context, actor="peter", job_id="johns")["reason"] == "not_found"
    assert shown(cancel(context, actor="peter", job_id="peters")) == done(cancelled=1, credits=1)
    assert shown(cancel(context, "cancel-2", actor="john", sender="peter")) == done()


def test_the_same_cancellation_gets_its_first_answer(stocked: Database) -> None:
    context = make_context(stocked, email=FakeCarrier(NOT_NOW, NOT_NOW))
    answer(context, "email.send", email_job("first"))
    before = cancel(context, sender="john")
    answer(context, "email.send", email_job("second"))

    assert cancel(context, sender="john") == before
    assert message(context, "second") == ("retrying", "carrier_unavailable")
    assert cancel(context, sender="peter")["reason"] == "conflicting_job"
    assert shown(cancel(context, "cancel-2", sender="john")) == done(cancelled=1, credits=1)


def test_an_interrupted_cancellation_goes_on_and_counts_everything(stocked: Database) -> None:
    class Broken(OneQueue):
        def read(self, queue: Queue) -> Iterator[list[QueuedJob]]:
            yield from super().read(queue)
            msg = "The broker is away."
            raise ConnectionError(msg)

    context = make_context(stocked, email=FakeCarrier(NOT_NOW))
    answer(context, "email.send", email_job("waits"))
    job = QueuedJob("email.send", "t", email_job("queued"))
    with pytest.raises(Exception, match="away"):
        cancel(replace(context, queues=Broken(job)), sender="john")

    assert shown(cancel(replace(context, queues=OneQueue(job)), sender="john")) == done(cancelled=2, credits=1)


def test_a_cancellation_of_nothing_may_come_again(stocked: Database) -> None:
    context = make_context(stocked, email=FakeCarrier(NOT_NOW))
    assert cancel(context, job_id="job-1")["reason"] == "not_found"
    answer(context, "email.send", email_job())

    assert shown(cancel(context, job_id="job-1")) == done(cancelled=1, credits=1)


def test_a_job_that_was_sent_is_too_late_to_cancel(stocked: Database) -> None:
    queue = OneQueue()
    context = replace(make_context(stocked), queues=queue)
    answer(context, "email.send", email_job())

    assert shown(cancel(context, job_id="job-1")) == done(too_late=1)
    assert message(context, "job-1") == ("sent", None)
    assert queue.read_times == 0  # it is known where it is


def test_thousands_of_jobs_are_cancelled_in_short_transactions(database: Database) -> None:
    save_people(database)
    buy(database, "john", email=2000)
    context = make_context(database)
    for number in range(3):
        answer(context, "email.send_many", bulk_job(f"campaign-{number}", 400))
    queued = [QueuedJob("email.send", "t", email_job(f"job-{number}")) for number in range(300)]
    context = replace(context, queues=OneQueue(*queued))

    assert shown(cancel(context, sender="john")) == done(cancelled=1500, credits=1200)

    assert balance(database, "john") == 2000
    run_enqueued(context)
    with database.snapshot() as connection:
        assert connection.execute(select(charges.c.job_id).where(charges.c.state == State.SENT)).all() == []
        assert connection.execute(select(cancellations.c.done_at)).scalar_one() is not None
    check_money(database, context)


# -- the queues of a real broker --------------------------------------------------------------------------------------


@pytest.fixture
def app(sqlite_url: str, valkey_url: str) -> Iterator[PostageApp]:
    """Give an app with an empty database and broker."""
    with open_app(sqlite_url, valkey_url) as app:
        yield app


def test_every_place_of_a_queue_is_read_and_nothing_is_taken(app: PostageApp, redis: Redis) -> None:
    """Messages that just came, that were moved to their people, and that a worker has taken; also by priority."""
    for number in range(250):
        app.send_task("email.send", args=[email_job(f"job-{number}", sender=f"sender-{number % 7}")], queue="email")
    with app.connection_for_read() as connection:
        taken = _take_some(connection)
        for number in range(250, 300):
            app.send_task("email.send", args=[email_job(f"job-{number}")], queue="email", compression="gzip")
        app.send_task("email.send", args=[email_job("job-300")], queue="email", priority=9)
        app.send_task("sms.send", args=[sms_job("text")], queue="sms")
        redis.lpush("email", b"no message", json.dumps({"headers": 5}).encode())

        # The consumer may ask for more meanwhile, so some may be read twice.
        found, again = (
            {job.given["job_id"] for group in app.context.queues.read(Queue.EMAIL) for job in group} for _ in range(2)
        )

        assert taken
    all_jobs = {f"job-{number}" for number in range(301)}
    assert found | again <= all_jobs
    assert all_jobs - found - again <= taken  # what a worker has is nearly always seen, and never cancelled for sure


def _take_some(connection: Any) -> set[str]:
    """Take some messages as a worker does, and leave them unanswered. Returns their job ids."""
    taken: list[Any] = []
    channel = connection.default_channel
    channel.basic_qos(0, 50, False)
    consumer = Consumer(channel, [app_queue("email")], on_message=taken.append, accept=["json"])
    consumer.consume()
    while not taken:
        connection.drain_events(timeout=5)
    return {message.payload[0][0]["job_id"] for message in taken}


def app_queue(name: str) -> Any:

    return KombuQueue(name, Exchange(name), routing_key=name)


def postpone(context: Context, job: Json, due_at: Any) -> None:
    """Let a job be postponed."""
    app: Any = fakes._app_of_this_thread()
    app.context = context
    task = app.tasks["email.send"]
    task.push_request(id=job["job_id"], retries=0, **{POSTPONED: (due_at.isoformat(), {})})
    try:
        with pytest.raises(Retry):
            task(job)
    finally:
        task.pop_request()


def bulk_job(job_id: str, count: int, sender: str = "john") -> Json:
    """Give a bulk job of so many emails."""
    recipients = [{"to": f"reader-{number}@example.test"} for number in range(count)]
    return {"job_id": job_id, "sender": sender, "recipients": recipients, "subject": "Hello", "text": "Hello"}
