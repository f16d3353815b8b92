"""Jobs that are refused: nothing is charged, and the refusal is recorded."""

import pytest
from sqlalchemy import select

from models.database.engine import Database
from models.database.schema import refusals
from tests.factories import balance, buy, email_job, share
from tests.fakes import FakeCarrier, answer, make_context


def test_a_job_that_is_too_expensive_is_refused_for_good_under_its_id(stocked: Database) -> None:
    carrier = FakeCarrier()
    context = make_context(stocked, email=carrier)
    job = email_job(to=[f"user{number}@example.test" for number in range(11)])

    first = answer(context, "email.send", job)
    buy(stocked, "john", email=100)
    again = answer(context, "email.send", job)
    under_another_id = answer(context, "email.send", {**job, "job_id": "job-2"})

    assert (first["status"], first["reason"]) == ("refused", "insufficient_credits")
    assert (first["credits"], first["paid_by"], first["attempts"]) == (0, None, 0)
    assert "costs 11 email credits" in first["detail"]
    assert "john holds 10" in first["detail"]
    assert again == first
    assert under_another_id["status"] == "sent"
    assert carrier.job_ids == ["job-2"]
    assert balance(stocked, "john") == 99


def test_a_credit_user_cannot_fall_back_on_credits_of_their_own(stocked: Database) -> None:
    """What they had bought before they shared stays untouched."""
    buy(stocked, "mary", email=5)
    share(stocked, "mary", "john")
    context = make_context(stocked)
    job = email_job(sender="mary", to=[f"user{number}@example.test" for number in range(11)])

    answered = answer(context, "email.send", job)

    assert answered["reason"] == "insufficient_credits"
    assert (balance(stocked, "john"), balance(stocked, "mary")) == (10, 5)


def test_an_unknown_sender_is_refused_for_good_under_the_job_id(stocked: Database) -> None:
    context = make_context(stocked)

    first = answer(context, "email.send", email_job(sender="nobody"))
    again = answer(context, "email.send", email_job(sender="nobody"))

    assert (first["status"], first["reason"], first["credits"]) == ("refused", "unknown_user", 0)
    assert "nobody" in first["detail"]
    assert again == first


def test_an_invalid_job_is_recorded_and_leaves_its_id_free(stocked: Database) -> None:
    context = make_context(stocked)

    refused = answer(context, "email.send", email_job(subject="Hello\r\nBcc: eve@example.test"))
    corrected = answer(context, "email.send", email_job())

    assert (refused["job_id"], refused["status"], refused["reason"]) == ("job-1", "refused", "invalid_job")
    assert corrected["status"] == "sent"
    with stocked.snapshot() as connection:
        [record] = connection.execute(select(refusals)).all()
    assert (record.task, record.task_id, record.key) == ("email.send", "task-1", "job-1")
    assert (record.person, record.reason) == ("john", "invalid_job")
    assert "eve" not in record.detail


@pytest.mark.parametrize("given", [None, [], "x", 7, {"\x00": "\ud800"}, {"job_id": "a b"}, {"job_id": "\x00"}])
def test_garbage_is_refused_and_recorded(stocked: Database, given: object) -> None:
    context = make_context(stocked)

    answered = answer(context, "email.send", given)

    assert (answered["job_id"], answered["status"], answered["reason"]) == ("task-1", "refused", "invalid_job")
    with stocked.snapshot() as connection:
        assert connection.execute(select(refusals.c.reason)).scalars().all() == ["invalid_job"]


@pytest.mark.parametrize(
    "task_id", ["x" * 300, "x\x00", "x\ud800", "a/0"], ids=["long", "NUL", "surrogate", "of a bulk message"]
)
def test_a_refusal_is_recorded_whatever_the_task_id_is(stocked: Database, task_id: str) -> None:
    answered = answer(make_context(stocked), "email.send", {"wrong": 1}, task_id)

    assert (answered["status"], answered["reason"]) == ("refused", "invalid_job")
    with stocked.snapshot() as connection:
        assert connection.execute(select(refusals.c.reason)).scalars().all() == ["invalid_job"]
