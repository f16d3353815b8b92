"""Emails and text messages end to end: from a producer through a real broker, worker and database to the carriers."""

import pytest

from tests.flows.deployment import Deployment, wait_until
from tests.flows.jobs import email_job, new_address, new_id, sms_job

pytestmark = [pytest.mark.xdist_group("sends"), pytest.mark.timeout(180)]


def test_an_email_reaches_every_recipient_as_the_job_says(deployment: Deployment) -> None:
    """The headers, bodies and envelope are compared as the program of a recipient reads them."""
    owner, member = deployment.people(email=10)
    anna, ben, cc, dora = map(new_address, ("anna", "ben", "carl", "dora"))
    to, bcc = [f"Anna Schöne <{anna}>", ben, f'"Anna, again" <{anna}>'], f"Dora <{dora}>"
    job = {
        "job_id": (job_id := new_id("mail")),
        "sender": member,
        "to": to,
        "cc": cc,
        "bcc": bcc,
        "subject": "Grüße aus Köln: the order has left the house",
        "text": "Dear Anna,\n\n.a line that begins with a dot\n\nschöne Grüße",
        "html": "<p>Dear <b>Anna</b>, schöne Grüße</p>",
        "reply_to": ["Desk <desk@shop.example>", "more@shop.example"],
        "headers": {"List-Id": "spring"},
    }

    deployment.send("email.send", job)
    deployment.wait_until_final(job_id)

    [mail] = deployment.mail_server.mails_of(job_id)
    assert sorted(mail.recipients) == sorted([anna, ben, cc, dora])
    assert mail.sender == f"{member}@postage.example"
    [author] = mail.content["From"].addresses
    assert (author.display_name, author.addr_spec) == (member, f"{member}@postage.example")
    shown = [(each.display_name, each.addr_spec) for each in mail.content["To"].addresses]
    assert shown == [("Anna Schöne", anna), ("", ben), ("Anna, again", anna)]
    assert mail.content["Cc"] == cc
    assert mail.content["Bcc"] is None
    assert dora not in str(mail.content)
    assert mail.content["Subject"] == job["subject"]
    assert mail.content["Reply-To"] == "Desk <desk@shop.example>, more@shop.example"
    assert mail.content["List-Id"] == "spring"
    assert mail.text().rstrip("\n") == job["text"]
    assert mail.text("html").rstrip("\n") == job["html"]

    answer = deployment.message(member, job_id)
    assert (answer["status"], answer["paid_by"], answer["credits"], answer["attempts"]) == ("sent", owner, 4, 1)
    assert answer["carrier_reference"]
    assert deployment.remaining(member) == {"email": 6, "sms": 0}


def test_a_text_message_reaches_the_gateway_with_its_job_id_and_organization_as_key(deployment: Deployment) -> None:
    """Its two segments of UCS-2 cost two credits."""
    owner, member = deployment.people(sms=5)
    text = "Schöne Grüße 👋 aus Köln! Wir treffen uns am Montag um zehn Uhr im großen Saal, wie immer."
    job_id = new_id("text")

    deployment.send("sms.send", sms_job(job_id, member, **{"text": text, "from": "Acme"}))
    charge = deployment.wait_until_final(job_id)[job_id]

    [post] = deployment.gateway.posts_of(job_id)
    assert post.key == f"{job_id}@{charge.org_id}"
    assert post.text == {"id": job_id, "to": "+4915112345678", "from": "Acme", "text": text, "segments": 2}
    answer = deployment.message(owner, job_id)
    assert (answer["status"], answer["paid_by"], answer["credits"]) == ("sent", owner, 2)
    assert answer["carrier_reference"] == f"ref-{job_id}"
    assert deployment.remaining(member) == {"email": 0, "sms": 3}


def test_a_job_without_an_id_gets_the_id_of_its_task(deployment: Deployment) -> None:
    """Enqueued twice under one task id it is one job."""
    _, member = deployment.people(email=5)
    job = {"sender": member, "to": new_address("a"), "subject": "Hello", "text": "Hello"}

    task_id = deployment.send("email.send", job)
    deployment.wait_until_final(task_id)
    deployment.send("email.send", job, task_id=task_id)
    deployment.wait_until_idle()

    assert len(deployment.mail_server.mails_of(task_id)) == 1
    answer = deployment.message(member, task_id)
    assert (answer["job_id"], answer["status"], answer["credits"]) == (task_id, "sent", 1)


def test_the_same_id_with_other_content_is_refused(deployment: Deployment) -> None:
    """The first job stays as it was."""
    owner, member = deployment.people(email=5)
    job = email_job(new_id("mail"), member)
    deployment.send("email.send", job)
    deployment.wait_until_final(job["job_id"])

    task_id = deployment.send("email.send", {**job, "text": "Something else"})
    [refusal] = wait_until(lambda: deployment.refusals([task_id]), "the second job is refused")

    assert (refusal.reason, refusal.key, refusal.person) == ("conflicting_job", job["job_id"], member)
    assert len(deployment.mail_server.mails_of(job["job_id"])) == 1
    assert deployment.remaining(owner)["email"] == 4


def test_a_job_that_costs_too_much_is_refused_for_good(deployment: Deployment) -> None:
    """A later purchase does not bring it back, but a job with another id is sent."""
    owner, member = deployment.people(email=1)
    job = email_job(new_id("mail"), member, to=[new_address("a"), new_address("b")])
    deployment.send("email.send", job)
    deployment.wait_until_final(job["job_id"])
    bought = {"credits": {"email": 5}, "amount": 100, "currency": "EUR"}
    deployment.producer.do("credits.purchase", {"order_id": new_id("order"), "buyer": owner, **bought})
    deployment.send("email.send", job)
    again = {**job, "job_id": new_id("mail")}
    deployment.send("email.send", again)
    deployment.wait_until_final(again["job_id"])
    deployment.wait_until_idle()

    answer = deployment.message(member, job["job_id"])
    assert (answer["status"], answer["reason"], answer["credits"]) == ("refused", "insufficient_credits", 0)
    assert deployment.mail_server.mails_of(job["job_id"]) == []
    assert len(deployment.mail_server.mails_of(again["job_id"])) == 1
    assert deployment.remaining(owner)["email"] == 4


def test_purchases_and_views_answer_a_producer(deployment: Deployment) -> None:
    """Their answers come through the result backend, as plain JSON."""
    owner, member = deployment.people(email=2, sms=1)
    plan = {"plan": new_id("plan"), "name": "Small", "credits": {"email": 3}, "price": 990, "currency": "EUR"}
    deployment.producer.do("plans.save", plan)

    order_id = new_id("order")
    order = deployment.ask("credits.purchase", {"order_id": order_id, "buyer": member, "plan": plan["plan"]})
    overview = deployment.ask("views.overview", {"viewer": member})
    orders = deployment.ask("views.orders", {"viewer": owner})
    billing = deployment.ask("views.billing", {"viewer": member})
    users = deployment.ask("views.users", {"viewer": owner})
    refused = deployment.ask("views.users", {"viewer": member})

    assert (order["status"], order["owner"], order["credits"]) == ("done", owner, {"email": 3, "sms": 0})
    assert overview["remaining"] == {"email": 5, "sms": 1}
    assert (overview["owner"], overview["sharing"]) == (owner, True)
    assert owner in overview["reminder"]
    assert orders["reminder"] is None
    assert [(row["order_id"], row["buyer"], row["owner"]) for row in orders["rows"]][:1] == [(order_id, member, owner)]
    assert (billing["viewer"], billing["billing"]["name"]) == (member, "Acme Ltd")
    assert [(row["user_id"], row["owner"]) for row in users["rows"]] == [(member, owner), (owner, owner)]
    assert (refused["status"], refused["reason"]) == ("refused", "not_permitted")


def test_send_tasks_leave_no_result_in_the_broker(deployment: Deployment) -> None:
    """Neither sent nor refused jobs leave one; purchases and views do, for their producer to read."""
    owner, member = deployment.people(email=5, sms=5)
    email = {"sender": member, "to": new_address("a"), "subject": "Hello", "text": "Hello"}
    text = {"sender": member, "to": "+4915112345678", "text": "Hello"}
    bulk = {"sender": member, "subject": "Hello", "text": "Hello", "recipients": [{"to": new_address("a")}]}
    bulk_text = {"sender": member, "text": "Hello", "recipients": [{"to": "+4915112345678"}]}
    good = [
        deployment.send("email.send", email),
        deployment.send("sms.send", text),
        deployment.send("email.send_many", bulk),
        deployment.send("sms.send_many", bulk_text),
    ]
    deployment.wait_until_final(*good)
    bad = deployment.send("email.send", {**email, "colour": "red"})
    wait_until(lambda: deployment.refusals([bad]), "the bad job is refused")
    view = new_id("view")
    deployment.producer.ask("views.overview", {"viewer": owner}, task_id=view)
    deployment.wait_until_idle()

    assert deployment.result_keys(*good, bad) == []
    assert deployment.result_keys(view) == [view]


def test_the_money_of_the_shared_deployment_adds_up(deployment: Deployment) -> None:
    """Whatever other tests did in it before, every invariant holds, and no final message keeps its content."""
    owner, member = deployment.people(email=1)
    job_id = new_id("mail")
    deployment.send("email.send", email_job(job_id, member))
    charge = deployment.wait_until_final(job_id)[job_id]

    assert charge.content is None
    assert deployment.remaining(owner)["email"] == 0
    assert deployment.findings() == []
