"""Nothing that a message says is in events (so not in Flower), in logs or in remote control."""

import json
from typing import Any

import pytest
from sqlalchemy import text

from tests.flows.deployment import Deploy, Deployment, wait_until
from tests.flows.jobs import email_job
from tests.flows.outside import Json, collected_events

pytestmark = pytest.mark.timeout(180)

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
"""Every secret has one of these in it."""

EMAIL = {
    "to": SECRETS["address"],
    "cc": SECRETS["copy"],
    "bcc": SECRETS["blind copy"],
    "subject": SECRETS["subject"],
    "text": SECRETS["text"],
    "html": SECRETS["html"],
    "reply_to": SECRETS["reply to"],
    "headers": {"List-Id": SECRETS["header"]},
}
SMS = {"to": SECRETS["number"], "text": SECRETS["sms"]}


def private_lines(shown: object) -> list[str]:
    """Give the lines of a log, or the parts of a list, that hold a secret."""
    lines = shown.splitlines() if isinstance(shown, str) else [json.dumps(part, default=repr) for part in shown]  # type: ignore[attr-defined]
    return [line[:800] for line in lines if any(mark in line for mark in MARKS)]


def inspect(deployment: Deployment, *task_ids: str) -> list[Any]:
    """Give everything that remote control tells of tasks."""
    commands = ("active", "reserved", "scheduled", "revoked", "stats")
    replies = [deployment.producer.control(command) for command in commands]
    return [*replies, deployment.producer.control("query_task", ids=list(task_ids))]


def send_texts_and_bulk(deployment: Deployment, sms: Json) -> None:
    """Enqueue text messages, and a bulk job of either kind."""
    for name in ("text", "text-later", "text-never"):
        deployment.send("sms.send", {**sms, "job_id": name})
    reader = {"to": SECRETS["address"], "values": {"name": SECRETS["value"]}}
    bulk = {"sender": sms["sender"], "job_id": "many", "subject": "Hello {{name}}", "text": SECRETS["text"]}
    deployment.send("email.send_many", {**bulk, "recipients": [reader]})
    texts = {"sender": sms["sender"], "job_id": "texts", "text": SECRETS["sms"]}
    deployment.send("sms.send_many", {**texts, "recipients": [{"to": SECRETS["number"]}]})


def send_bad(deployment: Deployment, email: Json, sms: Json) -> list[str]:
    """Enqueue jobs that are refused, with a secret in every part of them. Returns their task ids."""
    return [
        deployment.send("email.send", {**email, "job_id": "bad", "colour": SECRETS["text"]}),
        deployment.send("email.send", {**email, "job_id": SECRETS["address"]}),
        deployment.send("email.send", {**email, "job_id": "bad-name", SECRETS["text"]: 1}),
        deployment.send("sms.send", {**sms, "job_id": "bad-number", "to": SECRETS["number"] + "99999"}),
        deployment.send("sms.send", [SECRETS["number"]]),
        deployment.producer.send_raw("email.send", [], {"job": email}),
        deployment.producer.send_raw("email.send", [email, email]),
        deployment.send("email.send", {**email, "job_id": "held", "text": SECRETS["html"]}),
    ]


@pytest.mark.parametrize(("level", "form"), [("DEBUG", "json"), ("INFO", "text")])
def test_events_logs_and_remote_control_show_nothing_private(deploy: Deploy, level: str, form: str) -> None:
    """This holds whatever becomes of a job: sent, held, refused, failed, bulk, or not even a job."""
    with deploy(beat=True, log_level=level, log_format=form, concurrency=2) as deployment:
        owner, member = deployment.people(email=20, sms=20)
        organization = f"org-{owner.removeprefix('owner-')}"
        person = {"user_id": member, "organization": organization, "role": "member", "email": SECRETS["own address"]}
        deployment.mail_server.will_answer_recipient(
            SECRETS["refused address"], f"550 5.1.1 <{SECRETS['refused address']}> is unknown"
        )
        deployment.mail_server.will_answer("later", f"451 4.3.0 not now, {SECRETS['address']}")
        deployment.mail_server.will_answer("never", f"550 5.7.1 {SECRETS['subject']} is spam")
        deployment.gateway.will_answer("text-later", 503)
        deployment.gateway.will_answer("text-never", 400)
        email, sms = {**EMAIL, "sender": member}, {**SMS, "sender": member}
        job_ids = ["held", "waits", "later", "never", "partly", "poor"]
        job_ids += ["text", "text-later", "text-never", "many", "texts"]

        with collected_events(deployment.producer.app) as events:
            deployment.mail_server.hold()
            ids = [deployment.send("email.send", {**email, "job_id": name}) for name in ("held", "waits")]
            wait_until(
                lambda: deployment.mail_server.offers["held"] and deployment.mail_server.offers["waits"],
                "both threads are held",
            )
            ids.append(deployment.send("email.send", {**email, "job_id": "later"}))
            replies = wait_until(lambda: _with_active(inspect(deployment, *ids)), "remote control shows what runs")
            deployment.mail_server.release()
            deployment.send("email.send", {**email, "job_id": "never"})
            two_addresses = [SECRETS["address"], SECRETS["refused address"]]
            deployment.send("email.send", {**email, "job_id": "partly", "to": two_addresses})
            deployment.send(
                "email.send", {**email, "job_id": "poor", "to": [f"quokka.{n}@a.example" for n in range(90)]}
            )
            send_texts_and_bulk(deployment, sms)
            bad = send_bad(deployment, email, sms)
            deployment.producer.do(
                "users.save", {**person, "name": SECRETS["name"], "billing": {"n": SECRETS["billing"]}}
            )
            order = {"order_id": "order", "buyer": member, "credits": {"sms": 1}, "amount": 1, "currency": "EUR"}
            deployment.producer.do("credits.purchase", {**order, "billing": {"name": SECRETS["order billing"]}})
            assert SECRETS["billing"] in str(deployment.ask("views.billing", {"viewer": member}))
            assert SECRETS["own address"] in str(deployment.ask("views.users", {"viewer": owner}))
            assert SECRETS["refused address"] in str(_final_message(deployment, member, "partly"))
            charges = deployment.wait_until_final(*job_ids)
            wait_until(lambda: len(deployment.refusals(bad)) == len(bad), "every bad job is refused")
            deployment.wait_until_idle()
            replies += inspect(deployment, *ids, *bad)
            wait_until(lambda: _events_of(events, "task-succeeded", "views.users"), "the events have arrived")
        deployment.worker.end()

        states = {job_id: str(charge.state) for job_id, charge in charges.items()}
        assert states["held"] == states["later"] == states["partly"] == states["text-later"] == "sent"
        assert (states["never"], states["text-never"], states["poor"]) == ("failed", "failed", "refused")
        assert len(deployment.mail_server.mails_of("held")) == 1

        assert private_lines(events) == []
        assert private_lines(replies) == []
        assert private_lines(deployment.worker.output) == []
        assert private_lines((deployment.folder / "beat.log").read_text()) == []

        _check_events(events, ids, bad, member)
        assert {task["id"] for task in replies[0]} >= set(ids[:2])
        if form == "json":
            _check_lines_of_jobs(deployment.worker.output, job_ids, owner, member)


def _check_events(events: list[Json], ids: list[str], bad: list[str], member: str) -> None:
    """Check that events tell of every task, by job id and sender."""
    received = {event["uuid"]: event for event in events if event["type"] == "task-received"}
    assert {event["type"] for event in events} >= {"task-received", "task-started", "task-succeeded"}
    assert set(bad) <= set(received)
    assert "held" in received[ids[0]]["args"]
    assert member in received[ids[0]]["args"]


def _with_active(replies: list[Any]) -> list[Any] | None:
    return replies if replies[0] and len(replies[0]) >= 2 else None


def _final_message(deployment: Deployment, viewer: str, job_id: str) -> Json:
    deployment.wait_until_final(job_id)
    return deployment.message(viewer, job_id)


def _events_of(events: list[Json], kind: str, task: str) -> list[Json]:
    """Give the events of one kind for tasks of one name."""
    ids = {event["uuid"] for event in events if event["type"] == "task-received" and event["name"] == task}
    return [event for event in events if event["type"] == kind and event["uuid"] in ids]


def _check_lines_of_jobs(log: str, job_ids: list[str], owner: str, member: str) -> None:
    """Check that every line about a job names it and its sender, and from the carrier on also who pays."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    of_postage = [line for line in lines if line["logger"].startswith(("tasks.", "worker.carriers"))]
    of_jobs = [line for line in of_postage if str(line.get("job", "")).split("/")[0] in job_ids]
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
def test_a_fault_logs_nothing_private(deploy: Deploy, form: str) -> None:
    """The database refuses a row, and names it. No log line or event does, and the job is sent by a retry."""
    with deploy(log_level="DEBUG", log_format=form) as deployment:
        _, member = deployment.people(email=20)
        with collected_events(deployment.producer.app) as events:
            with deployment.database.engine.begin() as connection:
                connection.execute(text("ALTER TABLE charges ADD CONSTRAINT no_room CHECK (false) NOT VALID"))
            task_id = deployment.send("email.send", {**EMAIL, "sender": member, "job_id": "faulty"})
            wait_until(lambda: _kinds(events, task_id) >= {"task-retried"}, "the job is retried")
            scheduled = [deployment.producer.control("scheduled"), deployment.producer.control("reserved")]
            with deployment.database.engine.begin() as connection:
                connection.execute(text("ALTER TABLE charges DROP CONSTRAINT no_room"))
            deployment.wait_until_final("faulty")
            wait_until(lambda: _kinds(events, task_id) >= {"task-succeeded"}, "the job has succeeded")

        assert len(deployment.mail_server.mails_of("faulty")) == 1
        assert "fault" in deployment.worker.output
        assert "no_room" in deployment.worker.output
        assert private_lines(events) == []
        assert private_lines(scheduled) == []
        assert private_lines(deployment.worker.output) == []


def _kinds(events: list[Json], task_id: str) -> set[str]:
    return {event["type"] for event in events if event.get("uuid") == task_id}


GARBAGE = {
    "broken JSON": (json.dumps([[EMAIL], {}, {}])[:-20], {"task": "email.send", "id": "broken"}, "application/json"),
    "an unknown task": (json.dumps([[EMAIL], {}, {}]), {"task": "email.sned", "id": "typo"}, "application/json"),
    "an object for arguments": (json.dumps([EMAIL, {}, {}]), {"task": "email.send", "id": "list"}, "application/json"),
    "no headers": (json.dumps([[EMAIL], {}, {}]), {}, "application/json"),
    "an unknown content type": (json.dumps([[EMAIL], {}, {}]), {"task": "email.send", "id": "type"}, "application/x"),
}


def test_messages_that_are_no_jobs_log_nothing_private(deploy: Deploy) -> None:
    """A typing error in a producer must not put its emails into the log."""
    with deploy(log_level="INFO") as deployment:
        _, member = deployment.people(email=1)
        for body, headers, content_type in GARBAGE.values():
            deployment.producer.publish("email", body, headers, content_type)
        deployment.send("email.send", email_job("after", member))
        deployment.wait_until_final("after")
        deployment.wait_until_idle()

        assert private_lines(deployment.worker.output) == []
