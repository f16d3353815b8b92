"""Bulk jobs end to end: each recipient gets a message of their own, and all of them are charged or none."""

import pytest

from tests.flows.deployment import Deployment
from tests.flows.jobs import new_address, new_id

pytestmark = [pytest.mark.xdist_group("bulk-jobs"), pytest.mark.timeout(180)]


def test_a_bulk_job_fills_in_each_of_fifty_emails(deployment: Deployment) -> None:
    """Each recipient gets an email of their own, with their values, which are escaped in the HTML."""
    owner, member = deployment.people(email=60)
    job_id = new_id("campaign")
    recipients = [
        {"to": new_address(f"reader{place}"), "values": {"name": f"Reader & Co {place}", "code": f"c-{place}"}}
        for place in range(50)
    ]

    deployment.send(
        "email.send_many",
        {
            "job_id": job_id,
            "sender": member,
            "subject": "Hello {{name}}",
            "text": "Dear {{ name }}, your code is {{code}}.",
            "html": "<p>Dear {{name}}</p>",
            "recipients": recipients,
        },
    )
    deployment.wait_until_final(job_id)

    for place, recipient in enumerate(recipients):
        [mail] = deployment.mail_server.mails_of(f"{job_id}/{place}")
        assert mail.recipients == [recipient["to"]]
        assert mail.content["To"] == recipient["to"]
        assert mail.content["Subject"] == f"Hello Reader & Co {place}"
        assert mail.text().strip() == f"Dear Reader & Co {place}, your code is c-{place}."
        assert mail.text("html").strip() == f"<p>Dear Reader &amp; Co {place}</p>"
    answer = deployment.message(member, job_id)
    assert (answer["status"], answer["credits"], answer["paid_by"]) == ("sent", 50, owner)
    assert answer["messages"] == {"sent": 50}
    assert deployment.message(member, f"{job_id}/7")["status"] == "sent"
    assert deployment.remaining(owner)["email"] == 10


def test_a_bulk_job_of_text_messages_is_charged_by_segment(deployment: Deployment) -> None:
    """Each message is counted by itself, for its values may make it longer."""
    owner, member = deployment.people(sms=10)
    job_id = new_id("campaign")
    recipients = [
        {"to": "+4915112345671", "values": {"name": "Ada"}},
        {"to": "+4915112345672", "values": {"name": "x" * 160}},
    ]

    deployment.send(
        "sms.send_many", {"job_id": job_id, "sender": member, "text": "Hello {{name}}", "recipients": recipients}
    )
    deployment.wait_until_final(job_id)

    posts_by_message = [deployment.gateway.posts_of(f"{job_id}/{place}") for place in range(2)]
    assert [[(post.text["text"], post.text["segments"]) for post in posts] for posts in posts_by_message] == [
        [("Hello Ada", 1)],
        [("Hello " + "x" * 160, 2)],
    ]
    assert deployment.remaining(owner)["sms"] == 7


def test_a_bulk_job_that_costs_too_much_is_refused_whole(deployment: Deployment) -> None:
    """Nobody gets a message, nothing is charged, and the answer says how many messages would fit."""
    owner, member = deployment.people(email=4)
    job_id = new_id("campaign")
    recipients = [{"to": new_address("reader")} for _ in range(6)]
    deployment.send(
        "email.send_many",
        {"job_id": job_id, "sender": member, "subject": "Hello", "text": "Hello", "recipients": recipients},
    )
    deployment.wait_until_final(job_id)
    deployment.wait_until_idle()

    answer = deployment.message(member, job_id)
    assert (answer["status"], answer["reason"], answer["credits"]) == ("refused", "insufficient_credits", 0)
    assert "4 of its 6 messages would fit" in answer["detail"]
    assert not any(deployment.mail_server.offers[f"{job_id}/{place}"] for place in range(6))
    assert deployment.remaining(owner)["email"] == 4
