"""The same job enqueued fifty times at once: it becomes one message and one charge."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from models.sends.charges import State
from tests.flows.deployment import Deployment
from tests.flows.jobs import email_job, sms_job

pytestmark = [pytest.mark.xdist_group("same-job"), pytest.mark.timeout(180)]

TIMES = 50


def enqueue_all(deployment: Deployment, task: str, job: dict[str, object]) -> list[str]:
    """Enqueue the job from eight threads, with a task id of its own each time. Returns those ids."""
    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(lambda _: deployment.send(task, job), range(TIMES)))


def test_an_email_enqueued_fifty_times_is_sent_and_charged_once(deployment: Deployment) -> None:
    """Eight threads of the worker get it while a slow mail server holds its first attempt."""
    owner, member = deployment.people(email=TIMES + 10)
    job = email_job("same-mail", member)
    deployment.mail_server.hold()
    try:
        task_ids = enqueue_all(deployment, "email.send", job)
    finally:
        deployment.mail_server.release()
    charge = deployment.wait_until_final("same-mail")["same-mail"]
    deployment.wait_until_idle()

    assert len(set(task_ids)) == TIMES
    assert deployment.mail_server.offers["same-mail"] == 1
    assert len(deployment.mail_server.mails_of("same-mail")) == 1
    assert (charge.state, charge.attempts) == (State.SENT, 1)
    assert [move for move in deployment.moves(owner) if "same-mail" in move[0]] == [("charge:same-mail", -1)]
    assert deployment.remaining(owner)["email"] == TIMES + 9
    assert deployment.refusals(task_ids) == []


def test_a_text_message_enqueued_fifty_times_is_sent_and_charged_once(deployment: Deployment) -> None:
    """The gateway is asked only once."""
    owner, member = deployment.people(sms=TIMES + 10)

    enqueue_all(deployment, "sms.send", sms_job("same-text", member))
    deployment.wait_until_final("same-text")
    deployment.wait_until_idle()

    assert len(deployment.gateway.posts_of("same-text")) == 1
    assert [move for move in deployment.moves(owner, "sms") if "same-text" in move[0]] == [("charge:same-text", -1)]
    assert deployment.remaining(owner)["sms"] == TIMES + 9


def test_a_bulk_job_enqueued_fifty_times_is_sent_and_charged_once(deployment: Deployment) -> None:
    """Each of its messages is sent once, and all are charged once."""
    owner, member = deployment.people(email=TIMES + 10)
    recipients = [{"to": f"reader{place}@customer.example"} for place in range(5)]
    job = {"job_id": "same-bulk", "sender": member, "subject": "Hello", "text": "Hello", "recipients": recipients}

    enqueue_all(deployment, "email.send_many", job)
    deployment.wait_until_final("same-bulk")
    deployment.wait_until_idle()

    assert [len(deployment.mail_server.mails_of(f"same-bulk/{place}")) for place in range(5)] == [1] * 5
    its_messages = "+".join(f"same-bulk/{place}" for place in range(5))
    assert [move for move in deployment.moves(owner) if "same-bulk" in move[0]] == [(f"charge:{its_messages}", -5)]
    assert deployment.remaining(owner)["email"] == TIMES + 5


def test_a_purchase_enqueued_fifty_times_is_credited_once(deployment: Deployment) -> None:
    """Its credits come into the account only once."""
    owner, member = deployment.people(email=1)
    bought = {"credits": {"email": 7}, "amount": 700, "currency": "EUR"}

    enqueue_all(deployment, "credits.purchase", {"order_id": "same-order", "buyer": member, **bought})
    deployment.wait_until_idle()

    assert deployment.moves(owner)[1:] == [("purchase:same-order", 7)]
    assert deployment.remaining(owner)["email"] == 8
    assert deployment.findings() == []
