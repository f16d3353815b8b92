"""What a message says is nobody's business: not in events (so not in Flower), not in logs, not in remote control."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import text

from tests.flows.house import Deployment, until
from tests.flows.outside import Json

pytestmark = pytest.mark.timeout(180)

OpenHouse = Callable[..., Deployment]

SECRETS = {
    "address": "quokka.address@customer.example",
    "copy": "quokka.copy@customer.example",
    "blind copy": "quokka.blind@customer.example",
    "refused address": "quokka.refused@customer.example",
    "reply to": "quokka.reply@customer.example",
    "subject": "quokka-subject",
    "text": "quokka-text",
    "html": "quokka-html",
    "header": "quokka-header",
    "value": "quokka-value",
    "number": "+4915177788899",
    "sms": "quokka-sms",
    "billing": "quokka-billing",
    "order billing": "quokka-order-billing",
    "name": "quokka-name",
    "own address": "quokka.own@postage.example",
}
MARKS = ("quokka", "15177788899")
"""Whatever is private above has one of these in it."""

EMAIL = {
    "to": SECRETS["address"],
    "cc": SECRETS["copy"],
    "bcc": SECRETS["blind copy"],
    "subject": SECRETS["subject"],
    "text": SECRETS["text"],
    "html": SECRETS["html"],
    "reply_to": SECRETS["reply to"],
    "headers": {"X-Secret": SECRETS["header"]},
}
SMS = {"to": SECRETS["number"], "text": SECRETS["sms"]}


@contextmanager
def watching(broker: Celery) -> Iterator[list[Json]]:
    """Collect every event that the workers send, as Flower does."""
    events: list[Json] = []
    ready, over = threading.Event(), threading.Event()

    def watch() -> None:
        with broker.connection_for_read() as connection:
            receiver = broker.events.Receiver(connection, handlers={"*": events.append})
            with receiver.consumer_context() as (its_connection, _, _):
                ready.set()
                while not over.is_set():
                    with suppress(TimeoutError):
                        its_connection.drain_events(timeout=0.2)

    thread = threading.Thread(target=watch)
    thread.start()
    assert ready.wait(30)
    try:
        yield events
    finally:
        over.set()
        thread.join()


def found(where: object) -> list[str]:
    """The lines of something in which there is anything private."""
    lines = where.splitlines() if isinstance(where, str) else [json.dumps(part, default=repr) for part in where]  # type: ignore[attr-defined]
    return [line[:800] for line in lines if any(mark in line for mark in MARKS)]


def inspect(house: Deployment, *task_ids: str) -> list[Any]:
    """All that remote control tells of tasks."""
    commands = ("active", "reserved", "scheduled", "revoked", "stats")
    replies = [house.producer.control(command) for command in commands]
    return [*replies, house.producer.control("query_task", ids=list(task_ids))]


def send_texts_and_bulk(house: Deployment, sms: Json) -> None:
    """Text messages, and a bulk job of either kind."""
    for name in ("text", "text-later", "text-never"):
        house.send("sms.send", {**sms, "job_id": name})
    reader = {"to": SECRETS["address"], "values": {"name": SECRETS["value"]}}
    bulk = {"sender": sms["sender"], "job_id": "many", "subject": "Hello {{name}}", "text": SECRETS["text"]}
    house.send("email.send_many", {**bulk, "recipients": [reader]})
    texts = {"sender": sms["sender"], "job_id": "texts", "text": SECRETS["sms"]}
    house.send("sms.send_many", {**texts, "recipients": [{"to": SECRETS["number"]}]})


def send_bad(house: Deployment, email: Json, sms: Json) -> list[str]:
    """Jobs that are refused, with what is private in every corner of them; returns their task ids."""
    return [
        house.send("email.send", {**email, "job_id": "bad", "colour": SECRETS["text"]}),
        house.send("email.send", {**email, "job_id": SECRETS["address"]}),
        house.send("email.send", {**email, "job_id": "bad-name", SECRETS["text"]: 1}),
        house.send("sms.send", {**sms, "job_id": "bad-number", "to": SECRETS["number"] + "99999"}),
        house.send("sms.send", [SECRETS["number"]]),
        house.producer.send_raw("email.send", [], {"job": email}),
        house.producer.send_raw("email.send", [email, email]),
        house.send("email.send", {**email, "job_id": "held", "text": SECRETS["html"]}),
    ]


@pytest.mark.parametrize(("level", "form"), [("DEBUG", "json"), ("INFO", "text")])
def test_nothing_private_is_in_events_logs_or_remote_control(open_house: OpenHouse, level: str, form: str) -> None:
    """Whatever becomes of a job: sent, held, refused, failed, bulk, or not even a job."""
    with open_house(beat=True, log_level=level, log_format=form, concurrency=2) as house:
        owner, member = house.people(email=20, sms=20)
        organization = f"org-{owner.removeprefix('owner-')}"
        person = {"user_id": member, "organization": organization, "role": "member", "email": SECRETS["own address"]}
        house.mail.will_say_of(SECRETS["refused address"], f"550 5.1.1 <{SECRETS['refused address']}> is unknown")
        house.mail.will_say("later", f"451 4.3.0 not now, {SECRETS['address']}")
        house.mail.will_say("never", f"550 5.7.1 {SECRETS['subject']} is spam")
        house.gateway.will_say("text-later", 503)
        house.gateway.will_say("text-never", 400)
        email, sms = {**EMAIL, "sender": member}, {**SMS, "sender": member}
        done = [
            "held",
            "waits",
            "later",
            "never",
            "partly",
            "poor",
            "text",
            "text-later",
            "text-never",
            "many",
            "texts",
        ]

        with watching(house.producer.app) as events:
            house.mail.hold()
            ids = [house.send("email.send", {**email, "job_id": name}) for name in ("held", "waits")]
            until(lambda: house.mail.offers["held"] and house.mail.offers["waits"], "both threads are held")
            ids.append(house.send("email.send", {**email, "job_id": "later"}))
            replies = until(lambda: _with_active(inspect(house, *ids)), "remote control shows what runs")
            house.mail.let_go()
            house.send("email.send", {**email, "job_id": "never"})
            both = [SECRETS["address"], SECRETS["refused address"]]
            house.send("email.send", {**email, "job_id": "partly", "to": both})
            house.send("email.send", {**email, "job_id": "poor", "to": [f"quokka.{n}@a.example" for n in range(90)]})
            send_texts_and_bulk(house, sms)
            bad = send_bad(house, email, sms)
            house.producer.done("users.save", {**person, "name": SECRETS["name"], "billing": {"n": SECRETS["billing"]}})
            order = {"order_id": "order", "buyer": member, "credits": {"sms": 1}, "amount": 1, "currency": "EUR"}
            house.producer.done("credits.purchase", {**order, "billing": {"name": SECRETS["order billing"]}})
            assert SECRETS["billing"] in str(house.ask("views.billing", {"viewer": member}))
            assert SECRETS["own address"] in str(house.ask("views.users", {"viewer": owner}))
            assert SECRETS["refused address"] in str(_final_message(house, member, "partly"))
            charges = house.wait_until_final(*done)
            until(lambda: len(house.refusals(bad)) == len(bad), "every bad job is refused")
            house.wait_until_idle()
            replies += inspect(house, *ids, *bad)
            until(lambda: _events_of(events, "task-succeeded", "views.users"), "the events have arrived")
        house.worker.end()

        states = {job_id: str(charge.state) for job_id, charge in charges.items()}
        assert states["held"] == states["later"] == states["partly"] == states["text-later"] == "sent"
        assert (states["never"], states["text-never"], states["poor"]) == ("failed", "failed", "refused")
        assert len(house.mail.letters_of("held")) == 1

        assert found(events) == []
        assert found(replies) == []
        assert found(house.worker.said) == []
        assert found((house.folder / "beat.log").read_text()) == []

        check_events(events, ids, bad, member)
        assert {task["id"] for task in replies[0]} >= set(ids[:2])
        if form == "json":
            _check_lines_of_jobs(house.worker.said, done, owner, member)


def check_events(events: list[Json], ids: list[str], bad: list[str], member: str) -> None:
    """Events tell of every task, by job id and sender."""
    received = {event["uuid"]: event for event in events if event["type"] == "task-received"}
    assert {event["type"] for event in events} >= {"task-received", "task-started", "task-succeeded"}
    assert set(bad) <= set(received)
    assert "held" in received[ids[0]]["args"]
    assert member in received[ids[0]]["args"]


def _with_active(replies: list[Any]) -> list[Any] | None:
    return replies if replies[0] and len(replies[0]) >= 2 else None


def _final_message(house: Deployment, viewer: str, job_id: str) -> Json:
    house.wait_until_final(job_id)
    return house.message(viewer, job_id)


def _events_of(events: list[Json], kind: str, task: str) -> list[Json]:
    """The events of one kind for tasks of one name."""
    ids = {event["uuid"] for event in events if event["type"] == "task-received" and event["name"] == task}
    return [event for event in events if event["type"] == kind and event["uuid"] in ids]


def _check_lines_of_jobs(said: str, job_ids: list[str], owner: str, member: str) -> None:
    """Every line that a job's work writes names job and sender, and from the carrier on also who pays."""
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    ours = [line for line in lines if line["logger"].startswith(("tasks.", "worker.carriers"))]
    of_jobs = [line for line in ours if str(line.get("job", "")).split("/")[0] in job_ids]
    assert {line["job"].split("/")[0] for line in of_jobs} == set(job_ids)
    assert {
        line.get("sender") for line in of_jobs if line["event"] != "answered" or line["task"] != "views.message"
    } == {member}
    attempts = [
        line for line in of_jobs if line["event"] == "attempted" or line["logger"].startswith("worker.carriers")
    ]
    assert {line.get("payer") for line in attempts} == {owner}
    sent = [line for line in of_jobs if line["event"] == "answered" and line["status"] == "sent"]
    assert {line.get("payer") for line in sent if line["task"].endswith(".send")} == {owner}


@pytest.mark.parametrize("form", ["json", "text"])
def test_nothing_private_is_logged_of_a_job_that_meets_a_fault(open_house: OpenHouse, form: str) -> None:
    """The database fails under a job: the traceback names no value, and the job is sent when it is tried again."""
    with open_house(log_level="DEBUG", log_format=form) as house:
        _, member = house.people(email=20)
        with watching(house.producer.app) as events:
            with house.database.engine.begin() as connection:
                connection.execute(text("ALTER TABLE entries RENAME TO entries_away"))
            task_id = house.send("email.send", {**EMAIL, "sender": member, "job_id": "faulty"})
            until(lambda: _kinds(events, task_id) >= {"task-retried"}, "the job is to be tried again")
            scheduled = [house.producer.control("scheduled"), house.producer.control("reserved")]
            with house.database.engine.begin() as connection:
                connection.execute(text("ALTER TABLE entries_away RENAME TO entries"))
            house.wait_until_final("faulty")
            until(lambda: _kinds(events, task_id) >= {"task-succeeded"}, "its end is told")

        assert len(house.mail.letters_of("faulty")) == 1
        assert "fault" in house.worker.said
        assert "entries" in house.worker.said
        assert found(events) == []
        assert found(scheduled) == []
        assert found(house.worker.said) == []


def _kinds(events: list[Json], task_id: str) -> set[str]:
    return {event["type"] for event in events if event.get("uuid") == task_id}


NO_JOBS = {
    "broken JSON": (json.dumps([[EMAIL], {}, {}])[:-20], {"task": "email.send", "id": "broken"}, "application/json"),
    "an unknown task": (json.dumps([[EMAIL], {}, {}]), {"task": "email.sned", "id": "typo"}, "application/json"),
    "an object for arguments": (json.dumps([EMAIL, {}, {}]), {"task": "email.send", "id": "list"}, "application/json"),
    "no headers": (json.dumps([[EMAIL], {}, {}]), {}, "application/json"),
    "an unknown content type": (json.dumps([[EMAIL], {}, {}]), {"task": "email.send", "id": "type"}, "application/x"),
}


def test_nothing_private_is_logged_of_messages_that_are_no_jobs(open_house: OpenHouse) -> None:
    """A typing error in a producer must not put its mails into the log."""
    with open_house(log_level="INFO") as house:
        _, member = house.people(email=1)
        for body, headers, content_type in NO_JOBS.values():
            house.producer.publish("email", body, headers, content_type)
        job = {"job_id": "after", "sender": member, "to": "a@customer.example", "subject": "Hello", "text": "Hello"}
        house.send("email.send", job)
        house.wait_until_final("after")
        house.wait_until_idle()

        assert found(house.worker.said) == []
