"""Bulk jobs: charged as a whole, sent message by message."""

from sqlalchemy import select

from models.database.engine import Database
from models.database.schema import charges
from models.sends.carrier import Email
from tests.factories import balance, buy
from tests.fakes import ACCEPTED, NEVER, NOBODY, FakeCarrier, answer, later, make_context, run_enqueued
from tests.integration.sending import bulk_job, read_back, take_enqueued
from tests.integration.stored import entries_of, findings


def test_a_bulk_job_is_charged_at_once_and_sent_by_resume_tasks(stocked: Database) -> None:
    carrier = FakeCarrier()
    context = make_context(stocked, email=carrier)

    first = answer(context, "email.send_many", bulk_job())

    assert (first["job_id"], first["status"], first["paid_by"], first["credits"]) == ("bulk-1", "sending", "john", 3)
    assert balance(stocked, "john") == 7
    assert carrier.messages == []

    run_enqueued(context)

    assert carrier.job_ids == ["bulk-1/0", "bulk-1/1", "bulk-1/2"]
    texts = [(message.subject, message.text) for message in carrier.messages if isinstance(message, Email)]
    assert texts == [("Hello N0", "Dear N0"), ("Hello N1", "Dear N1"), ("Hello N2", "Dear N2")]
    final = read_back(context, "bulk-1")
    assert (final["status"], final["messages"], final["credits"]) == ("sent", {"sent": 3}, 3)
    assert read_back(context, "bulk-1/1", viewer="peter")["status"] == "sent"
    assert balance(stocked, "john") == 7
    assert findings(stocked) == []


def test_a_bulk_job_is_charged_as_a_whole_or_not_at_all(stocked: Database) -> None:
    context = make_context(stocked)

    first = answer(context, "email.send_many", bulk_job(count=12))
    again = answer(context, "email.send_many", bulk_job(count=12))

    assert (first["status"], first["reason"], first["credits"]) == ("refused", "insufficient_credits", 0)
    assert first["paid_by"] is None
    assert "10 of its 12 messages would fit" in first["detail"]
    assert again == first
    assert balance(stocked, "john") == 10
    assert run_enqueued(context) == []
    with stocked.snapshot() as connection:
        assert connection.execute(select(charges.c.job_id)).scalars().all() == ["bulk-1"]
    assert [entry.amount for entry in entries_of(stocked, "john")] == [10]
    assert findings(stocked) == []


def test_a_refused_bulk_job_says_how_many_messages_would_fit(stocked: Database) -> None:
    context = make_context(stocked)
    recipients = [{"to": "+31612345678", "values": {"x": "y" * (161 if number < 4 else 1)}} for number in range(12)]

    answered = answer(context, "sms.send_many", {"sender": "john", "text": "{{x}}", "recipients": recipients})

    assert "costs 16 sms credits" in answered["detail"]
    assert "6 of its 12 messages would fit" in answered["detail"]


def test_a_bulk_job_of_an_unknown_sender_is_refused(stocked: Database) -> None:
    answered = answer(make_context(stocked), "email.send_many", bulk_job(sender="nobody"))

    assert (answered["status"], answered["reason"], answered["credits"]) == ("refused", "unknown_user", 0)


def test_an_open_placeholder_is_refused_and_its_recipient_is_named(stocked: Database) -> None:
    """The refusal leaves the job id free."""
    context = make_context(stocked)
    job = bulk_job()
    job["recipients"][1]["values"] = {}

    refused = answer(context, "email.send_many", job)
    corrected = answer(context, "email.send_many", bulk_job())

    assert (refused["reason"], corrected["status"]) == ("invalid_job", "sending")
    assert "recipients.1" in refused["detail"]


def test_a_repeated_bulk_job_gets_its_answer_and_enqueues_nothing(stocked: Database) -> None:
    carrier = FakeCarrier()
    context = make_context(stocked, email=carrier)
    first = answer(context, "email.send_many", bulk_job())
    run_enqueued(context)

    again = answer(context, "email.send_many", bulk_job())

    assert (first["job_id"], first["cost"]) == (again["job_id"], again["cost"])
    assert (again["status"], again["paid_by"], again["credits"]) == ("sent", "john", 3)
    assert run_enqueued(context) == []
    assert balance(stocked, "john") == 7


def test_another_bulk_job_under_the_same_id_is_a_conflicting_job(stocked: Database) -> None:
    context = make_context(stocked)
    answer(context, "email.send_many", bulk_job())

    answered = answer(context, "email.send_many", bulk_job(count=2))

    assert answered["reason"] == "conflicting_job"
    assert balance(stocked, "john") == 7


def test_bulk_messages_that_no_worker_took_up_are_enqueued_by_a_sweep(stocked: Database) -> None:
    carrier = FakeCarrier()
    context = make_context(stocked, email=carrier)
    answer(context, "email.send_many", bulk_job())
    take_enqueued(context)

    later(context)

    assert len(carrier.messages) == 3
    assert read_back(context, "bulk-1")["status"] == "sent"


def test_a_bulk_job_is_refunded_for_its_failed_messages(stocked: Database) -> None:
    context = make_context(stocked, email=FakeCarrier(ACCEPTED, NEVER, NOBODY))
    answer(context, "email.send_many", bulk_job())

    run_enqueued(context)

    final = read_back(context, "bulk-1")
    assert (final["status"], final["messages"], final["credits"]) == ("sent", {"failed": 2, "sent": 1}, 1)
    assert balance(stocked, "john") == 9
    assert findings(stocked) == []


def test_each_copy_of_a_bulk_email_costs_a_credit(stocked: Database) -> None:
    """Each message of a bulk job goes to its recipient and to everybody in cc."""
    context = make_context(stocked)

    answered = answer(context, "email.send_many", bulk_job(cc="copy@example.test"))

    assert answered["cost"] == 6
    assert balance(stocked, "john") == 4


def test_a_large_bulk_job_is_enqueued_in_parts(stocked: Database) -> None:
    buy(stocked, "john", email=240)
    context = make_context(stocked)
    answer(context, "email.send_many", bulk_job(count=250))
    enqueued = take_enqueued(context)

    answers = [answer(context, task, given) for task, given in enqueued]

    assert [task for task, _ in enqueued] == ["email.resume"] * len(enqueued)
    assert len(enqueued) > 1
    assert sum(answered["sent"] for answered in answers) == 250
    assert read_back(context, "bulk-1")["messages"] == {"sent": 250}


def test_the_largest_bulk_job_is_charged_at_once(stocked: Database) -> None:
    buy(stocked, "john", email=500)

    answered = answer(make_context(stocked), "email.send_many", bulk_job(count=500))

    assert (answered["status"], answered["credits"], answered["messages"]) == ("sending", 500, {"waiting": 500})
    assert balance(stocked, "john") == 10
    assert findings(stocked) == []
