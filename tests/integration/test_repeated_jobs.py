"""The same job again: it gets the first answer, and other content under its id is refused."""

from models.database.engine import Database
from tests.factories import balance, email_job, share, sms_job
from tests.fakes import FakeCarrier, answer, make_context
from tests.integration.sending import read_back


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
