"""The same job again: it gets the first answer, and other content under its id is refused."""

from typing import Any

import pytest
from sqlalchemy import update

from models.database.engine import Database
from models.database.schema import charges
from tests.factories import balance, email_job, share, sms_job
from tests.fakes import FakeCarrier, answer, answer_together, make_context
from tests.integration.sending import bulk_job, read_back

Json = dict[str, Any]


def test_a_repeated_job_gets_the_first_answer_and_changes_nothing(stocked: Database) -> None:
    carrier = FakeCarrier()
    context = make_context(stocked, email=carrier)
    first = answer(context, "email.send", email_job(), "task-1")

    again = answer(context, "email.send", dict(reversed(email_job().items())), "task-2")

    assert again == first
    assert len(carrier.messages) == 1
    assert balance(stocked, "john") == 9


def test_a_repeated_job_gets_the_first_answer_after_a_change_of_owner(stocked: Database) -> None:
    context = make_context(stocked)
    first = answer(context, "email.send", email_job(sender="peter"))
    share(stocked, "peter", "mary")

    again = answer(context, "email.send", email_job(sender="peter"))

    assert again == first
    assert balance(stocked, "john") == 9


def test_other_content_under_the_same_id_is_a_conflicting_job(stocked: Database) -> None:
    carrier = FakeCarrier()
    context = make_context(stocked, email=carrier)
    first = answer(context, "email.send", email_job())

    answered = answer(context, "email.send", email_job(subject="Other"))

    assert (answered["job_id"], answered["status"], answered["reason"]) == ("job-1", "refused", "conflicting_job")
    assert (answered["credits"], answered["paid_by"]) == (0, None)
    assert read_back(context) == first
    assert len(carrier.messages) == 1
    assert balance(stocked, "john") == 9


def test_another_kind_of_message_under_the_same_id_is_a_conflicting_job(stocked: Database) -> None:
    context = make_context(stocked)
    answer(context, "email.send", email_job())

    answered = answer(context, "sms.send", sms_job())

    assert answered["reason"] == "conflicting_job"
    assert balance(stocked, "john", "sms") == 10


def test_a_job_without_an_id_is_known_by_its_task_id(stocked: Database) -> None:
    context = make_context(stocked)

    first = answer(context, "email.send", email_job(job_id=None), "celery-task-1")
    again = answer(context, "email.send", email_job(job_id=None), "celery-task-1")

    assert first["job_id"] == "celery-task-1"
    assert again == first
    assert balance(stocked, "john") == 9


@pytest.mark.parametrize(
    ("task", "job", "digest"),
    [
        ("email.send", email_job(), "f417d055be461ba0e9e3d834d5bc7fb9e03fe0e799a033decb54aeefcb7242cc"),
        ("sms.send", sms_job(), "042b49af3c5e112000a50215e1782a95276d685ec6e2a59ecd0959adf4ad28cf"),
        ("email.send_many", bulk_job(), "eef7821a26b59285b4e0ba2de58a7cea898f371b163ae55a9b0c56667afc0285"),
    ],
)
def test_a_job_that_an_older_release_charged_gets_the_first_answer(
    stocked: Database, task: str, job: Json, digest: str
) -> None:
    context = make_context(stocked)
    first = answer(context, task, job)
    with stocked.engine.begin() as connection:
        connection.execute(update(charges).values(digest=digest))

    again = answer(context, task, job)
    other = answer(context, task, {**job, "text": "Other"})

    for name in ("job_id", "status", "paid_by", "credits"):
        assert again[name] == first[name]
    assert other["reason"] == "conflicting_job"


def test_two_jobs_of_one_batch_under_one_id_are_told_apart(stocked: Database) -> None:
    jobs = [email_job(), email_job(text="Other"), email_job(to=["ada@example.test"])]

    first, other, same = answer_together(make_context(stocked), "email.send", jobs)

    assert (first["status"], other["reason"]) == ("sent", "conflicting_job")
    assert same == first
    assert balance(stocked, "john") == 9
