"""Jobs that end before they begin: refused under their key, unless an earlier delivery did them."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import Retry
from hypothesis import given
from hypothesis import strategies as st

from models.database.engine import Database, utc_now
from models.errors import Reason
from models.messages.base import Json
from models.reports.status import count_postponed
from tasks.base import POSTPONED, REFUSED
from tasks.sending import email_send
from tasks.upkeep import sweep
from tests import fakes
from tests.audits import audit_everything
from tests.factories import balance, email_job, purchase_order
from tests.fakes import NOON, FakeCarrier, make_context
from worker.broker.timing import POSTPONE_AFTER, POSTPONE_MAX, TimedRequest
from worker.cli.monitor import job_answer

LATER = timedelta(hours=3)


def answer(context: Any, task: str, job: Json, **told: object) -> Json:
    """Answer a job of which the broker's side tells the task something."""
    app: Any = fakes._app_of_this_thread()
    app.context = context
    its_task = app.tasks[task]
    its_task.push_request(id="task-1", retries=0, **told)
    try:
        fields: Json = its_task(job).fields
    finally:
        its_task.pop_request()
    return fields


def test_a_job_that_was_sent_before_it_expired_gets_its_first_answer(stocked: Database) -> None:
    carrier = FakeCarrier()
    context = make_context(stocked, email=carrier)
    first = answer(context, "email.send", email_job())

    again = answer(context, "email.send", email_job(), **{REFUSED: ("expired", "It expired.")})

    assert (first["status"], again) == ("sent", first)
    assert balance(stocked, "john") == 9
    with stocked.snapshot() as connection:
        assert audit_everything(connection, NOON) == []


def test_a_refused_job_takes_its_key(stocked: Database) -> None:
    carrier = FakeCarrier()
    context = make_context(stocked, email=carrier)

    first = answer(context, "email.send", email_job(), **{REFUSED: ("cancelled", "It was revoked.")})
    again = answer(context, "email.send", email_job())
    other = answer(context, "email.send", email_job(subject="Other"))

    assert [first["status"], first["reason"], first["credits"]] == ["refused", "cancelled", 0]
    assert again == first
    assert other["reason"] == "conflicting_job"
    assert carrier.messages == []
    assert balance(stocked, "john") == 10
    with stocked.snapshot() as connection:
        assert audit_everything(connection, NOON) == []


def test_neither_is_a_dead_letter(stocked: Database) -> None:
    context = make_context(stocked)
    answer(context, "email.send", email_job(), **{REFUSED: ("expired", "It expired.")})
    answer(context, "credits.purchase", purchase_order(email=1), **{REFUSED: ("expired", "It expired.")})

    with stocked.snapshot() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM dead_letters").scalar() == 0
        assert connection.exec_driver_sql("SELECT reason FROM refusals").scalars().all() == ["expired"]


def test_a_job_that_is_delivered_twice_is_postponed_once_and_enqueued_when_due(stocked: Database) -> None:
    context = make_context(stocked)
    broker: Any = context.enqueue
    clock: Any = context.now
    due_at = clock.now + LATER
    told = {POSTPONED: (due_at.isoformat(), {"retries": 1})}
    for _ in range(2):
        with pytest.raises(Retry):
            answer(context, "email.send", email_job(), **told)

    clock.forward(LATER - timedelta(seconds=1))
    sweep(context)
    assert broker.postponed == []
    clock.forward(timedelta(seconds=1))
    sweep(context)
    sweep(context)

    [job] = broker.postponed
    assert (job.task, job.task_id, job.job, job.options) == ("email.send", "task-1", email_job(), {"retries": 1})


def test_a_job_that_cannot_be_postponed_keeps_its_time(stocked: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is away: the job must not be sent at once instead."""
    context = make_context(stocked)
    clock: Any = context.now
    due_at = clock.now + LATER
    retried: list[Any] = []

    def fail(_work: object) -> None:
        msg = "The database is away."
        raise ConnectionError(msg)

    def retry(**options: Any) -> Retry:
        retried.append(options)
        return Retry()

    monkeypatch.setattr(stocked, "write", fail)
    monkeypatch.setattr(fakes._app_of_this_thread().tasks["email.send"], "retry", retry)
    with pytest.raises(Retry):
        answer(context, "email.send", email_job(), **{POSTPONED: (due_at.isoformat(), {})})

    [options] = retried
    assert options["eta"] == due_at
    assert "countdown" not in options


def test_a_job_of_an_erased_user_is_not_stored(stocked: Database) -> None:
    context = make_context(stocked)
    erased = answer(context, "users.erase", {"erasure_id": "e", "actor": "john", "user": "mary"})
    assert erased["status"] == "done"

    told = {POSTPONED: ("2027-01-01T00:00:00+00:00", {})}
    answered = answer(context, "email.send", email_job(sender="mary"), **told)

    assert (answered["status"], answered["reason"]) == ("refused", "unknown_user")
    with stocked.snapshot() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM postponed_jobs").scalar() == 0


def test_a_user_with_a_postponed_job_is_not_erased(stocked: Database) -> None:
    context = make_context(stocked)
    with pytest.raises(Retry):
        answer(context, "email.send", email_job(sender="mary"), **{POSTPONED: ("2027-01-01T00:00:00+00:00", {})})
    erasure = {"erasure_id": "e", "actor": "john", "user": "mary"}
    assert answer(context, "users.erase", erasure)["reason"] == "user_has_open_messages"

    answer(context, "messages.cancel", {"cancel_id": "c", "actor": "john", "sender": "mary"})

    assert answer(context, "users.erase", erasure)["status"] == "done"


def test_operators_see_what_is_postponed(stocked: Database) -> None:
    context = make_context(stocked)
    with pytest.raises(Retry):
        answer(context, "email.send", email_job(), **{POSTPONED: ("2027-01-01T00:00:00+00:00", {})})

    assert job_answer(context, "job-1")["next_attempt_at"] == "2027-01-01T00:00:00.000+00:00"
    assert stocked.read(count_postponed) == 1


def test_an_invalid_job_is_refused_before_it_is_postponed(stocked: Database) -> None:
    told = {POSTPONED: ("2027-01-01T00:00:00+00:00", {})}

    answered = answer(make_context(stocked), "email.send", email_job(to="nobody"), **told)

    assert answered["reason"] == "invalid_job"


TIMES = st.none() | st.sampled_from(["soon", "", 5, [], {}, True, "2999-01-01", "0001-01-01T00:00:00+14:00"])
AHEAD = st.timedeltas(timedelta(days=-3), timedelta(days=800)).map(lambda ahead: (utc_now() + ahead).isoformat())


@given(eta=TIMES | AHEAD, expires=TIMES | AHEAD, chain=st.none() | st.sampled_from(["abc", [5], [{}]]))
def test_no_time_makes_a_request_fail_or_wait_long(eta: Any, expires: Any, chain: Any) -> None:
    """Whatever a producer says of times, the job waits at most a minute in a worker, or the task is told."""
    request = make_request(eta=eta, expires=expires, embed={"chain": chain})

    ending = request.ending()

    assert request.eta is None or request.eta <= utc_now() + POSTPONE_AFTER
    if request.postponement is not None and ending is None:
        assert utc_now() < request.postponement.due_at <= utc_now() + POSTPONE_MAX
    assert ending is None or ending.reason in (Reason.INVALID_JOB, Reason.EXPIRED)
    assert not request.revoked()


def make_request(embed: Json | None = None, **headers: object) -> TimedRequest:
    """Give the request of an email."""
    body: Any = ([email_job()], {}, embed or {})
    message = SimpleNamespace(
        headers={"id": "task-1", "task": "email.send", **headers},
        body=body,
        payload=body,
        delivery_info={},
        properties={},
        content_type="application/json",
        content_encoding="utf-8",
    )
    app = SimpleNamespace(conf=SimpleNamespace(timezone="UTC"))
    return TimedRequest(message, app=app, task=email_send)
