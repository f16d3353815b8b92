"""Emails and text messages end to end: a producer outside, and a real broker, worker, database and carriers."""

import itertools

import pytest

from models.sends.charges import State
from tests.flows.house import Deployment, until
from tests.flows.outside import DROP

pytestmark = [pytest.mark.xdist_group("house"), pytest.mark.timeout(180)]

_numbers = itertools.count(1)


def new_id(what: str) -> str:
    return f"{what}-of-sends-{next(_numbers)}"


def address(name: str) -> str:
    """An address that no other test writes to."""
    return f"{name}.{next(_numbers)}@customer.example"


def test_an_email_reaches_everybody_and_says_what_the_job_said(house: Deployment) -> None:
    """Header, bodies and envelope, as the receiver's program reads them."""
    owner, member = house.people(email=10)
    to, cc, bcc = [address("anna"), address("ben")], address("carl"), address("dora")
    job = {
        "job_id": (job_id := new_id("mail")),
        "sender": member,
        "to": to,
        "cc": cc,
        "bcc": bcc,
        "subject": "Grüße aus Köln: the order has left the house",
        "text": "Dear Anna,\n\n.a line that begins with a dot\n\nschöne Grüße",
        "html": "<p>Dear <b>Anna</b>, schöne Grüße</p>",
        "reply_to": "desk@shop.example",
        "headers": {"X-Campaign": "spring"},
    }

    house.send("email.send", job)
    house.wait_until_final(job_id)

    [letter] = house.mail.letters_of(job_id)
    assert sorted(letter.recipients) == sorted([*to, cc, bcc])
    assert letter.sender == f"{member}@postage.example"
    [author] = letter.content["From"].addresses
    assert (author.display_name, author.addr_spec) == (member, f"{member}@postage.example")
    assert letter.content["To"] == ", ".join(to)
    assert letter.content["Cc"] == cc
    assert letter.content["Bcc"] is None
    assert bcc not in str(letter.content)
    assert letter.content["Subject"] == job["subject"]
    assert letter.content["Reply-To"] == "desk@shop.example"
    assert letter.content["X-Campaign"] == "spring"
    assert letter.text().rstrip("\n") == job["text"]
    assert letter.text("html").rstrip("\n") == job["html"]

    said = house.message(member, job_id)
    assert (said["status"], said["paid_by"], said["credits"], said["attempts"]) == ("sent", owner, 4, 1)
    assert said["carrier_reference"]
    assert house.remaining(member) == {"email": 6, "sms": 0}


def test_a_text_message_reaches_the_gateway_with_its_job_id_as_key(house: Deployment) -> None:
    """Two segments of UCS-2 cost two credits."""
    owner, member = house.people(sms=5)
    text = "Schöne Grüße 👋 aus Köln! Wir treffen uns am Montag um zehn Uhr im großen Saal, wie immer."
    job_id = new_id("text")

    house.send("sms.send", {"job_id": job_id, "sender": member, "to": "+4915112345678", "text": text, "from": "Acme"})
    house.wait_until_final(job_id)

    [post] = house.gateway.posts_of(job_id)
    assert post.key == job_id
    assert post.text == {"id": job_id, "to": "+4915112345678", "from": "Acme", "text": text, "segments": 2}
    said = house.message(owner, job_id)
    assert (said["status"], said["paid_by"], said["credits"]) == ("sent", owner, 2)
    assert said["carrier_reference"] == f"ref-{job_id}"
    assert house.remaining(member) == {"email": 0, "sms": 3}


def test_a_mail_server_that_says_not_now_gets_the_mail_later_and_it_is_charged_once(house: Deployment) -> None:
    """While it waits, the job says `retrying`."""
    owner, member = house.people(email=5)
    job_id = new_id("mail")
    house.mail.will_say(job_id, *["451 4.3.0 Come back later"] * 3)

    house.send(
        "email.send", {"job_id": job_id, "sender": member, "to": address("a"), "subject": "Hello", "text": "Hello"}
    )
    between = until(lambda: _said_between(house, job_id), "the job waits for another attempt")
    charge = house.wait_until_final(job_id)[job_id]

    assert between == "retrying"
    assert charge.state is State.SENT
    assert charge.attempts == 4
    assert house.mail.offers[job_id] == 4
    assert len(house.mail.letters_of(job_id)) == 1
    assert [move for move in house.moves(owner) if job_id in move[0]] == [(f"charge:{job_id}", -1)]
    assert house.remaining(owner)["email"] == 4


def _said_between(house: Deployment, job_id: str) -> str | None:
    """What a job that has had an attempt says while it is not final."""
    charge = house.charges([job_id]).get(job_id)
    return "retrying" if charge and charge.state is State.WAITING and charge.attempts else None


def test_a_waiting_job_says_retrying_to_who_asks(house: Deployment) -> None:
    """And is still charged."""
    owner, member = house.people(email=5)
    job_id = new_id("mail")
    house.mail.will_say(job_id, *["451 4.3.0 Come back later"] * 3)
    job = {"job_id": job_id, "sender": member, "to": address("a"), "subject": "Hello", "text": "Hello"}
    house.send("email.send", job)

    seen = set()

    def asked() -> bool:
        answer = house.message(member, job_id)
        seen.add((answer["status"], answer["credits"]))
        return answer["status"] == "sent"

    until(lambda: job_id in house.charges([job_id]), "the job is charged")
    until(asked, "the job is sent")

    assert {status for status, _ in seen} <= {"sending", "retrying", "sent"}
    assert ("retrying", 1) in seen
    assert {credits_ for _, credits_ in seen} == {1}
    assert house.remaining(owner)["email"] == 4


def test_a_mail_that_is_refused_for_good_gives_the_credits_back(house: Deployment) -> None:
    """To the pool that paid."""
    owner, member = house.people(email=5)
    job_id = new_id("mail")
    house.mail.will_say(job_id, "550 5.7.1 Looks like spam")
    job = {
        "job_id": job_id,
        "sender": member,
        "to": [address("a"), address("b")],
        "subject": "Hello",
        "text": "Hello",
    }

    house.send("email.send", job)
    house.wait_until_final(job_id)

    said = house.message(member, job_id)
    assert (said["status"], said["reason"], said["credits"], said["paid_by"]) == ("failed", "carrier_refused", 0, owner)
    assert said["detail"]
    assert house.mail.offers[job_id] == 1
    assert house.mail.letters_of(job_id) == []
    assert house.moves(owner)[-2:] == [(f"charge:{job_id}", -2), (f"refund:{job_id}", 2)]
    assert house.remaining(owner)["email"] == 5


def test_one_refused_recipient_of_three_gets_their_credit_back_and_is_named(house: Deployment) -> None:
    """The other two get the mail, once."""
    owner, member = house.people(email=5)
    good, gone, fine = address("good"), address("gone"), address("fine")
    house.mail.will_say_of(gone, "550 5.1.1 No such mailbox")
    job_id = new_id("mail")

    house.send(
        "email.send",
        {"job_id": job_id, "sender": member, "to": [good, gone], "bcc": fine, "subject": "Hello", "text": "Hello"},
    )
    house.wait_until_final(job_id)

    said = house.message(member, job_id)
    assert (said["status"], said["reason"], said["credits"]) == ("sent", "recipient_refused", 2)
    assert list(said["recipients_refused"]) == [gone]
    assert [letter.recipients for letter in house.mail.letters_of(job_id)] == [[good, fine]]
    assert house.moves(owner)[-2:] == [(f"charge:{job_id}", -3), (f"refund:{job_id}", 1)]
    assert house.ask("views.usage", {"viewer": owner})["total"] == {"email": 2, "sms": 0}


def test_a_mail_whose_every_recipient_is_refused_has_failed(house: Deployment) -> None:
    """All credits go back."""
    owner, member = house.people(email=5)
    gone = [address("gone"), address("gone")]
    for one in gone:
        house.mail.will_say_of(one, "550 5.1.1 No such mailbox")
    job_id = new_id("mail")

    house.send("email.send", {"job_id": job_id, "sender": member, "to": gone, "subject": "Hello", "text": "Hello"})
    house.wait_until_final(job_id)

    said = house.message(member, job_id)
    assert (said["status"], said["reason"], said["credits"]) == ("failed", "recipient_refused", 0)
    assert sorted(said["recipients_refused"]) == sorted(gone)
    assert house.mail.offers[job_id] == 0
    assert house.remaining(owner)["email"] == 5


def test_a_line_that_breaks_after_the_final_dot_leaves_the_job_unknown_and_charged(house: Deployment) -> None:
    """The server may have taken it, so it is never sent again by itself: not by a sweep, not by a replay."""
    owner, member = house.people(email=5)
    job_id = new_id("mail")
    house.mail.will_say(job_id, DROP)
    job = {"job_id": job_id, "sender": member, "to": address("a"), "subject": "Hello", "text": "Hello"}

    house.send("email.send", job)
    until(lambda: _is(house, job_id, State.UNKNOWN), "the job is unknown")
    house.send("email.send", job)
    later = new_id("mail")
    waits = {**job, "job_id": later}
    house.mail.will_say(later, "451 4.3.0 Come back later", "451 4.3.0 Come back later")
    house.send("email.send", waits)
    house.wait_until_final(later)  # so that there were at least two sweeps
    house.wait_until_idle()

    said = house.message(member, job_id)
    assert (said["status"], said["credits"], said["paid_by"], said["attempts"]) == ("unknown", 1, owner, 1)
    assert said["detail"]
    assert house.mail.offers[job_id] == 1
    assert [move for move in house.moves(owner) if job_id in move[0]] == [(f"charge:{job_id}", -1)]


def _is(house: Deployment, job_id: str, state: State) -> bool:
    charge = house.charges([job_id]).get(job_id)
    return charge is not None and charge.state is state


def test_a_gateway_that_says_not_now_is_asked_again_under_the_same_key(house: Deployment) -> None:
    """One charge, and only one message is accepted."""
    owner, member = house.people(sms=5)
    job_id = new_id("text")
    house.gateway.will_say(job_id, 503, 429)

    house.send("sms.send", {"job_id": job_id, "sender": member, "to": "+4915112345678", "text": "Hello"})
    charge = house.wait_until_final(job_id)[job_id]

    assert charge.state is State.SENT
    assert [(post.key, post.status) for post in house.gateway.posts_of(job_id)] == [
        (job_id, 503),
        (job_id, 429),
        (job_id, 200),
    ]
    assert len({str(post.text) for post in house.gateway.posts_of(job_id)}) == 1
    assert [move for move in house.moves(owner, "sms") if job_id in move[0]] == [(f"charge:{job_id}", -1)]


def test_a_text_message_that_the_gateway_refuses_gives_the_credits_back(house: Deployment) -> None:
    """And is not offered again."""
    owner, member = house.people(sms=5)
    job_id = new_id("text")
    house.gateway.will_say(job_id, 400)

    house.send("sms.send", {"job_id": job_id, "sender": member, "to": "+4915112345678", "text": "Hello"})
    house.wait_until_final(job_id)

    said = house.message(member, job_id)
    assert (said["status"], said["reason"], said["credits"]) == ("failed", "carrier_refused", 0)
    assert len(house.gateway.posts_of(job_id)) == 1
    assert house.moves(owner, "sms")[-2:] == [(f"charge:{job_id}", -1), (f"refund:{job_id}", 1)]
    assert house.remaining(owner)["sms"] == 5


@pytest.mark.parametrize("kind", ["email", "sms"])
def test_a_job_whose_attempts_are_used_up_has_failed_and_gives_the_credits_back(house: Deployment, kind: str) -> None:
    """The house makes four attempts."""
    owner, member = house.people(email=5, sms=5)
    job_id = new_id(kind)
    if kind == "email":
        house.mail.will_say(job_id, *["451 4.3.0 Come back later"] * 9)
        house.send(
            "email.send", {"job_id": job_id, "sender": member, "to": address("a"), "subject": "Hello", "text": "Hello"}
        )
    else:
        house.gateway.will_say(job_id, *[503] * 9)
        house.send("sms.send", {"job_id": job_id, "sender": member, "to": "+4915112345678", "text": "Hello"})
    house.wait_until_final(job_id)

    said = house.message(member, job_id)
    assert (said["status"], said["reason"], said["credits"]) == ("failed", "carrier_unavailable", 0)
    assert said["attempts"] == 4
    assert (house.mail.offers[job_id] if kind == "email" else len(house.gateway.posts_of(job_id))) == 4
    assert house.remaining(owner) == {"email": 5, "sms": 5}


def test_a_job_without_an_id_gets_the_id_of_its_task(house: Deployment) -> None:
    """Sent twice under one task id it is one job."""
    _, member = house.people(email=5)
    job = {"sender": member, "to": address("a"), "subject": "Hello", "text": "Hello"}

    task_id = house.send("email.send", job)
    house.wait_until_final(task_id)
    house.send("email.send", job, task_id=task_id)
    house.wait_until_idle()

    assert len(house.mail.letters_of(task_id)) == 1
    said = house.message(member, task_id)
    assert (said["job_id"], said["status"], said["credits"]) == (task_id, "sent", 1)


def test_the_same_id_with_another_content_is_refused_and_changes_nothing(house: Deployment) -> None:
    """The first job stands."""
    owner, member = house.people(email=5)
    job = {"job_id": new_id("mail"), "sender": member, "to": address("a"), "subject": "Hello", "text": "Hello"}
    house.send("email.send", job)
    house.wait_until_final(job["job_id"])

    task_id = house.send("email.send", {**job, "text": "Something else"})
    [refusal] = until(lambda: house.refusals([task_id]), "the second job is refused")

    assert (refusal.reason, refusal.key, refusal.person) == ("conflicting_job", job["job_id"], member)
    assert len(house.mail.letters_of(job["job_id"])) == 1
    assert house.remaining(owner)["email"] == 4


def test_a_job_that_costs_too_much_is_refused_for_good(house: Deployment) -> None:
    """A later purchase does not bring it back; a job with another id goes."""
    owner, member = house.people(email=1)
    job = {
        "job_id": new_id("mail"),
        "sender": member,
        "to": [address("a"), address("b")],
        "subject": "Hello",
        "text": "Hello",
    }
    house.send("email.send", job)
    house.wait_until_final(job["job_id"])
    bought = {"credits": {"email": 5}, "amount": 100, "currency": "EUR"}
    house.producer.done("credits.purchase", {"order_id": new_id("order"), "buyer": owner, **bought})
    house.send("email.send", job)
    again = {**job, "job_id": new_id("mail")}
    house.send("email.send", again)
    house.wait_until_final(again["job_id"])
    house.wait_until_idle()

    said = house.message(member, job["job_id"])
    assert (said["status"], said["reason"], said["credits"]) == ("refused", "insufficient_credits", 0)
    assert house.mail.letters_of(job["job_id"]) == []
    assert len(house.mail.letters_of(again["job_id"])) == 1
    assert house.remaining(owner)["email"] == 4


def test_purchases_and_views_answer_an_outside_producer(house: Deployment) -> None:
    """Through the result backend, as plain JSON."""
    owner, member = house.people(email=2, sms=1)
    plan = {"plan": new_id("plan"), "name": "Small", "credits": {"email": 3}, "price": 990, "currency": "EUR"}
    house.producer.done("plans.save", plan)

    order_id = new_id("order")
    order = house.ask("credits.purchase", {"order_id": order_id, "buyer": member, "plan": plan["plan"]})
    overview = house.ask("views.overview", {"viewer": member})
    orders = house.ask("views.orders", {"viewer": owner})
    billing = house.ask("views.billing", {"viewer": member})
    users = house.ask("views.users", {"viewer": owner})
    refused = house.ask("views.users", {"viewer": member})

    assert (order["status"], order["owner"], order["credits"]) == ("done", owner, {"email": 3, "sms": 0})
    assert overview["remaining"] == {"email": 5, "sms": 1}
    assert (overview["owner"], overview["sharing"]) == (owner, True)
    assert owner in overview["reminder"]
    assert orders["reminder"] is None
    assert [(row["order_id"], row["buyer"], row["owner"]) for row in orders["rows"]][:1] == [(order_id, member, owner)]
    assert (billing["viewer"], billing["billing"]["name"]) == (member, "Acme Ltd")
    assert [(row["user_id"], row["owner"]) for row in users["rows"]] == [(member, owner), (owner, owner)]
    assert (refused["status"], refused["reason"]) == ("refused", "not_permitted")


def test_send_tasks_leave_no_result_in_the_broker(house: Deployment) -> None:
    """Neither sent nor refused ones; purchases and views do, for their producer to read."""
    owner, member = house.people(email=5, sms=5)
    mail = {"sender": member, "to": address("a"), "subject": "Hello", "text": "Hello"}
    text = {"sender": member, "to": "+4915112345678", "text": "Hello"}
    bulk = {"sender": member, "subject": "Hello", "text": "Hello", "recipients": [{"to": address("a")}]}
    bulk_text = {"sender": member, "text": "Hello", "recipients": [{"to": "+4915112345678"}]}
    good = [
        house.send("email.send", mail),
        house.send("sms.send", text),
        house.send("email.send_many", bulk),
        house.send("sms.send_many", bulk_text),
    ]
    house.wait_until_final(*good)
    bad = house.send("email.send", {**mail, "colour": "red"})
    until(lambda: house.refusals([bad]), "the bad job is refused")
    view = new_id("view")
    house.producer.ask("views.overview", {"viewer": owner}, task_id=view)
    house.wait_until_idle()

    assert house.result_keys(*good, bad) == []
    assert house.result_keys(view) == [view]


def test_a_bulk_job_fills_in_every_mail_of_fifty(house: Deployment) -> None:
    """Each recipient gets one of their own, with their values, escaped in the HTML."""
    owner, member = house.people(email=60)
    job_id = new_id("campaign")
    recipients = [
        {"to": address(f"reader{place}"), "values": {"name": f"Reader & Co {place}", "code": f"c-{place}"}}
        for place in range(50)
    ]

    house.send(
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
    house.wait_until_final(job_id)

    for place, recipient in enumerate(recipients):
        [letter] = house.mail.letters_of(f"{job_id}/{place}")
        assert letter.recipients == [recipient["to"]]
        assert letter.content["To"] == recipient["to"]
        assert letter.content["Subject"] == f"Hello Reader & Co {place}"
        assert letter.text().strip() == f"Dear Reader & Co {place}, your code is c-{place}."
        assert letter.text("html").strip() == f"<p>Dear Reader &amp; Co {place}</p>"
    said = house.message(member, job_id)
    assert (said["status"], said["credits"], said["paid_by"]) == ("sent", 50, owner)
    assert said["messages"] == {"sent": 50}
    assert house.message(member, f"{job_id}/7")["status"] == "sent"
    assert house.remaining(owner)["email"] == 10


def test_a_bulk_job_of_text_messages_is_charged_by_segment(house: Deployment) -> None:
    """Each message by itself, for values make them longer."""
    owner, member = house.people(sms=10)
    job_id = new_id("campaign")
    recipients = [
        {"to": "+4915112345671", "values": {"name": "Ada"}},
        {"to": "+4915112345672", "values": {"name": "x" * 160}},
    ]

    house.send(
        "sms.send_many", {"job_id": job_id, "sender": member, "text": "Hello {{name}}", "recipients": recipients}
    )
    house.wait_until_final(job_id)

    texts = [house.gateway.posts_of(f"{job_id}/{place}") for place in range(2)]
    assert [[(post.text["text"], post.text["segments"]) for post in posts] for posts in texts] == [
        [("Hello Ada", 1)],
        [("Hello " + "x" * 160, 2)],
    ]
    assert house.remaining(owner)["sms"] == 7


def test_a_bulk_job_that_costs_too_much_is_refused_whole_and_says_how_many_would_fit(house: Deployment) -> None:
    """Nobody gets anything, and nothing is charged."""
    owner, member = house.people(email=4)
    job_id = new_id("campaign")
    recipients = [{"to": address("reader")} for _ in range(6)]
    house.send(
        "email.send_many",
        {"job_id": job_id, "sender": member, "subject": "Hello", "text": "Hello", "recipients": recipients},
    )
    house.wait_until_final(job_id)
    house.wait_until_idle()

    said = house.message(member, job_id)
    assert (said["status"], said["reason"], said["credits"]) == ("refused", "insufficient_credits", 0)
    assert "4 of its 6 messages would fit" in said["detail"]
    assert not any(house.mail.offers[f"{job_id}/{place}"] for place in range(6))
    assert house.remaining(owner)["email"] == 4


def test_the_house_s_money_adds_up(house: Deployment) -> None:
    """After whatever other tests did in it, every invariant holds, and nothing of a final message is kept."""
    owner, member = house.people(email=1)
    job_id = new_id("mail")
    house.send(
        "email.send", {"job_id": job_id, "sender": member, "to": address("a"), "subject": "Hello", "text": "Hello"}
    )
    charge = house.wait_until_final(job_id)[job_id]

    assert charge.content is None
    assert house.remaining(owner)["email"] == 0
    assert house.findings() == []
