"""Every job ends on the record, also one that expired or was revoked, or is not due for long."""

import json
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from models.database.engine import utc_now
from models.database.schema import postponed_jobs
from tests.flows.deployment import Deployment, wait_until
from tests.flows.jobs import email_job, new_id, sms_job
from tests.flows.outside import QUEUES, Json

pytestmark = [pytest.mark.xdist_group("endings"), pytest.mark.timeout(180)]

LATER = timedelta(hours=3)


def send(deployment: Deployment, task: str, job: Json, **options: Any) -> str:
    """Enqueue a job with options of Celery's. Returns its task id."""
    return str(deployment.producer.app.send_task(task, args=[job], queue=QUEUES[task], **options))


def ending(deployment: Deployment, viewer: str, job_id: str) -> tuple[str, str | None]:
    """Give how a job has ended, as its sender reads it."""
    return wait_until(lambda: _ending(deployment, viewer, job_id), f"{job_id} ends")


def _ending(deployment: Deployment, viewer: str, job_id: str) -> tuple[str, str | None] | None:
    answer = deployment.message(viewer, job_id)
    over = answer.get("final_at") and answer["status"] != "sending"
    return (answer["status"], answer["reason"]) if over else None


def test_jobs_that_expired_are_refused_and_can_be_read_back(deployment: Deployment) -> None:
    owner, member = deployment.people(email=10, sms=10)
    past = utc_now() - timedelta(minutes=1)
    mail, text, bulk, fresh = (new_id("expires") for _ in range(4))

    send(deployment, "email.send", email_job(mail, member), expires=past)
    send(deployment, "sms.send", sms_job(text, member), expires=past, link=[])
    send(deployment, "email.send_many", _bulk_job(bulk, member), expires=past)
    send(deployment, "email.send", email_job(fresh, member), expires=utc_now() + LATER)

    assert ending(deployment, member, fresh) == ("sent", None)
    assert [ending(deployment, member, job) for job in (mail, text, bulk)] == [("refused", "expired")] * 3
    assert deployment.remaining(owner) == {"email": 9, "sms": 10}
    send(deployment, "email.send", email_job(mail, member))  # the same job again, in time
    deployment.wait_until_idle()
    assert ending(deployment, member, mail) == ("refused", "expired")
    assert deployment.mail_server.mails_of(mail) == []
    assert deployment.findings() == []


def test_a_purchase_that_expired_is_refused_and_can_be_made_again(deployment: Deployment) -> None:
    owner, _ = deployment.people()
    order = {"order_id": new_id("order"), "buyer": owner, "credits": {"email": 5}, "amount": 1, "currency": "EUR"}

    task_id = send(deployment, "credits.purchase", order, expires=utc_now() - timedelta(minutes=1))
    wait_until(lambda: deployment.refusals([task_id]), "the purchase is refused")

    assert [(row.reason, row.key) for row in deployment.refusals([task_id])] == [("expired", order["order_id"])]
    deployment.producer.do("credits.purchase", order)
    assert deployment.remaining(owner)["email"] == 5


def test_a_revoked_job_is_refused(deployment: Deployment) -> None:
    _, member = deployment.people(email=1)
    job_id, task_id = new_id("revoked"), new_id("task")
    deployment.producer.control("revoke", task_id=task_id)

    send(deployment, "email.send", email_job(job_id, member), task_id=task_id)

    assert ending(deployment, member, job_id) == ("refused", "cancelled")


def test_a_job_that_is_due_much_later_waits_in_the_database(deployment: Deployment) -> None:
    owner, member = deployment.people(email=1, sms=1)
    mail, text, task_id = new_id("later"), new_id("later"), new_id("task")
    job = email_job(mail, member)
    del job["job_id"]
    link = {"task": "views.overview", "args": [{"viewer": member}], "options": {"queue": "views"}, "immutable": True}

    send(deployment, "email.send", job, task_id=task_id, countdown=LATER.total_seconds())
    send(deployment, "sms.send", sms_job(text, member), eta=utc_now() + LATER, link=[link])
    wait_until(lambda: len(postponed(deployment, member)) == 2, "both are stored")
    deployment.wait_until_idle()

    waiting = deployment.message(member, task_id)
    assert (waiting["status"], waiting["credits"], waiting["final_at"]) == ("sending", 0, None)
    assert waiting["next_attempt_at"] > (utc_now() + LATER - timedelta(minutes=2)).isoformat()
    assert deployment.message(owner, text)["reason"] == "not_found"  # only its sender sees it
    assert deployment.remaining(owner) == {"email": 1, "sms": 1}

    make_due(deployment, member)

    assert ending(deployment, member, task_id) == ("sent", None)
    assert ending(deployment, member, text) == ("sent", None)
    wait_until(lambda: not postponed(deployment, member), "they are stored no more")
    assert len(deployment.mail_server.mails_of(task_id)) == 1
    assert deployment.remaining(owner) == {"email": 0, "sms": 0}


def test_a_purchase_with_an_eta_is_answered_when_it_is_due(deployment: Deployment) -> None:
    owner, _ = deployment.people()
    order = {"order_id": new_id("order"), "buyer": owner, "credits": {"sms": 2}, "amount": 1, "currency": "EUR"}
    with deployment.producer.asked("credits.purchase", order, countdown=LATER.total_seconds()) as result:
        wait_until(lambda: postponed(deployment, owner), "the purchase is stored")
        assert not result.ready()

        make_due(deployment, owner)

        assert result.get(timeout=60)["status"] == "done"
    assert deployment.remaining(owner) == {"email": 0, "sms": 2}


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"eta": "2999-01-01T00:00:00Z"}, "invalid_job"),
        ({"eta": "9999-12-31T23:59:59-14:00"}, "invalid_job"),
        ({"eta": "soon"}, "invalid_job"),
        ({"eta": 5}, "invalid_job"),
        ({"eta": {"at": 5}}, "invalid_job"),
        ({"expires": "never"}, "invalid_job"),
        ({"expires": "0001-01-01T00:00:00+14:00"}, "invalid_job"),
        ({"eta": "LATER", "chain": "abc"}, "invalid_job"),
        ({"eta": "LATER", "expires": "2020-01-01T00:00:00"}, "expired"),
        ({"expires": "2020-01-01T00:00:00"}, "expired"),
    ],
    ids=str,
)
def test_impossible_times_are_refused(deployment: Deployment, headers: Json, reason: str) -> None:
    _, member = deployment.people(email=1)
    job_id = new_id("impossible")
    later = (utc_now() + LATER).isoformat()
    headers = {name: later if value == "LATER" else value for name, value in headers.items()}
    task = {"id": new_id("task"), "task": "email.send", "lang": "js", **headers}
    embed = {"chain": headers.pop("chain", None)}

    deployment.producer.publish("email", json.dumps([[email_job(job_id, member)], {}, embed]), task)

    assert ending(deployment, member, job_id) == ("refused", reason)


def postponed(deployment: Deployment, person: str) -> list[Any]:
    """Give the jobs of a person that are not due yet."""
    with deployment.database.snapshot() as connection:
        return list(connection.execute(select(postponed_jobs).where(postponed_jobs.c.person == person)))


def make_due(deployment: Deployment, person: str) -> None:
    """Let the jobs of a person be due now."""
    its_own = postponed_jobs.c.person == person
    deployment.database.write(
        lambda connection: connection.execute(
            update(postponed_jobs).where(its_own).values(due_at=utc_now() - timedelta(seconds=1))
        )
    )


def _bulk_job(job_id: str, sender: str) -> Json:
    recipients = [{"to": f"{job_id}-{number}@customer.example"} for number in range(3)]
    return {"job_id": job_id, "sender": sender, "recipients": recipients, "subject": "Hello", "text": "Hello"}
