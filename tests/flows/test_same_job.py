"""The same job over and over: one message, one charge."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from models.sends.charges import State
from tests.flows.house import Deployment

pytestmark = [pytest.mark.xdist_group("house"), pytest.mark.timeout(180)]

TIMES = 50


def enqueue_all(house: Deployment, task: str, job: dict[str, object]) -> list[str]:
    """Enqueue the job from eight threads, with a task id of its own each time; returns those ids."""
    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(lambda _: house.send(task, job), range(TIMES)))


def test_an_email_that_is_enqueued_fifty_times_at_once_is_sent_and_charged_once(house: Deployment) -> None:
    """By eight threads of the worker, while the first attempt is held by a slow server."""
    owner, member = house.people(email=TIMES + 10)
    job = {"job_id": "same-mail", "sender": member, "to": "ada@customer.example", "subject": "Hello", "text": "Hello"}
    house.mail.hold()
    try:
        task_ids = enqueue_all(house, "email.send", job)
    finally:
        house.mail.let_go()
    charge = house.wait_until_final("same-mail")["same-mail"]
    house.wait_until_idle()

    assert len(set(task_ids)) == TIMES
    assert house.mail.offers["same-mail"] == 1
    assert len(house.mail.letters_of("same-mail")) == 1
    assert (charge.state, charge.attempts) == (State.SENT, 1)
    assert [move for move in house.moves(owner) if "same-mail" in move[0]] == [("charge:same-mail", -1)]
    assert house.remaining(owner)["email"] == TIMES + 9
    assert house.refusals(task_ids) == []


def test_a_text_message_that_is_enqueued_fifty_times_at_once_is_posted_and_charged_once(house: Deployment) -> None:
    """The gateway is not even asked again."""
    owner, member = house.people(sms=TIMES + 10)
    job = {"job_id": "same-text", "sender": member, "to": "+4915112345678", "text": "Hello"}

    enqueue_all(house, "sms.send", job)
    house.wait_until_final("same-text")
    house.wait_until_idle()

    assert len(house.gateway.posts_of("same-text")) == 1
    assert [move for move in house.moves(owner, "sms") if "same-text" in move[0]] == [("charge:same-text", -1)]
    assert house.remaining(owner)["sms"] == TIMES + 9


def test_a_bulk_job_that_is_enqueued_fifty_times_at_once_is_sent_and_charged_once(house: Deployment) -> None:
    """Each of its messages."""
    owner, member = house.people(email=TIMES + 10)
    recipients = [{"to": f"reader{place}@customer.example"} for place in range(5)]
    job = {"job_id": "same-bulk", "sender": member, "subject": "Hello", "text": "Hello", "recipients": recipients}

    enqueue_all(house, "email.send_many", job)
    house.wait_until_final("same-bulk")
    house.wait_until_idle()

    assert [len(house.mail.letters_of(f"same-bulk/{place}")) for place in range(5)] == [1] * 5
    assert [move for move in house.moves(owner) if "same-bulk" in move[0]] == [("charge:same-bulk", -5)]
    assert house.remaining(owner)["email"] == TIMES + 5


def test_a_purchase_that_is_enqueued_fifty_times_at_once_is_credited_once(house: Deployment) -> None:
    """Whatever the credits, they come once."""
    owner, member = house.people(email=1)
    bought = {"credits": {"email": 7}, "amount": 700, "currency": "EUR"}

    enqueue_all(house, "credits.purchase", {"order_id": "same-order", "buyer": member, **bought})
    house.wait_until_idle()

    assert house.moves(owner)[1:] == [("purchase:same-order:email", 7)]
    assert house.remaining(owner)["email"] == 8
    assert house.findings() == []
