"""Many jobs enqueued at once, by the client and by `postage enqueue`, and answered by a real worker."""

import json
from base64 import b64encode
from collections import Counter
from pathlib import Path

import pytest
from jsonschema import Draft7Validator
from redis import Redis

from models.messages.billing import Purchase
from models.messages.sends import SendEmail
from models.sends.charges import State
from tasks.client import JobLike, enqueue, producer_app
from tests.flows.deployment import CommandResult, Deployment, run, wait_until
from tests.flows.outside import Json

pytestmark = [pytest.mark.xdist_group("enqueuing"), pytest.mark.timeout(240)]


def email_message(job_id: str, sender: str) -> SendEmail:
    return SendEmail(job_id=job_id, sender=sender, to=[f"{job_id}@customer.example"], subject="Hello", text="Hello")


def as_line(task: str, job: Json) -> str:
    return json.dumps({"task": task, "job": job}) + "\n"


def test_jobs_enqueued_twice_are_charged_and_sent_once(deployment: Deployment, broker_url: str) -> None:
    """Half of them are enqueued first, as if the broker had gone away then; one comes a third time by `send_task`."""
    owner, member = deployment.people(email=40)
    jobs: list[JobLike] = [email_message(f"client-{number}", member) for number in range(40)]

    with producer_app(broker_url) as app:
        enqueue(app, jobs[:20])
        enqueue(app, jobs)
    deployment.send("email.send", {**email_message("client-7", member).model_dump(mode="json", exclude_none=True)})
    ended = deployment.wait_until_final(*(f"client-{number}" for number in range(40)))

    assert {charge.state for charge in ended.values()} == {State.SENT}
    assert deployment.remaining(owner)["email"] == 0
    sent = Counter(mail.job_id for mail in deployment.mail_server.mails if mail.job_id.startswith("client-"))
    assert sent == Counter(f"client-{number}" for number in range(40))


def test_a_purchase_is_answered_under_the_id_that_enqueue_gives(deployment: Deployment, broker_url: str) -> None:
    owner, _ = deployment.people()
    order = Purchase(order_id="client-order", buyer=owner, credits={"email": 3}, amount=100, currency="EUR")

    with producer_app(broker_url, results_url=broker_url) as app:
        [task_id] = enqueue(app, [order])
        answer = app.AsyncResult(task_id).get(timeout=30)

    assert (answer["status"], answer["owner"], answer["credits"]) == ("done", owner, {"email": 3, "sms": 0})


def test_a_message_with_only_what_the_contract_asks_for_is_done_and_answered_as_it_says(
    deployment: Deployment, broker_url: str
) -> None:
    """Made of the AsyncAPI document alone, as a producer in any language would make it."""
    owner, _ = deployment.people()
    order = {"order_id": "bare-order", "buyer": owner, "credits": {"email": 2}, "amount": 1, "currency": "EUR"}
    answer = of_contract("credits.purchase.answer")["payload"]

    with Redis.from_url(broker_url, decode_responses=True) as redis:
        redis.lpush("billing", bare_message("credits.purchase", "bare-purchase", order))
        wait_until(lambda: redis.exists("celery-task-meta-bare-purchase"), "the purchase is answered")
        kept = json.loads(str(redis.get("celery-task-meta-bare-purchase")))
        redis.lpush("email", bare_message("email.send", "bare-task", {**EXAMPLE, "sender": owner}))
        deployment.wait_until_final("bare-email")

    Draft7Validator({**answer, "components": CONTRACT["components"]}).validate(kept)
    assert (kept["result"]["status"], kept["result"]["owner"]) == ("done", owner)


CONTRACT = json.loads((Path(__file__).parents[2] / "docs/contract/asyncapi.json").read_text())
EXAMPLE = {"job_id": "bare-email", "to": "a@customer.example", "subject": "Hello", "text": "Hello"}


def of_contract(name: str) -> Json:
    """Give a message of the contract."""
    message: Json = CONTRACT["components"]["messages"][name]
    return message


def of_queue(task: str) -> str:
    """Give the address of the channel of a task."""
    channel = CONTRACT["operations"][task]["channel"]["$ref"].rpartition("/")[2]
    return str(CONTRACT["channels"][channel]["address"])


def bare_message(task: str, task_id: str, job: Json) -> str:
    """Make a message with the properties and headers that are required, and no others."""
    required = CONTRACT["components"]["schemas"]["TaskHeaders"]["required"]
    headers = {name: {"task": task, "id": task_id}[name] for name in required}
    message = {
        "body": b64encode(json.dumps([[job], {}, {}]).encode()).decode(),
        "headers": headers,
        "properties": {
            "body_encoding": "base64",
            "delivery_tag": f"tag-of-{task_id}",
            "delivery_info": {"exchange": "", "routing_key": of_queue(task)},
        },
        "content-type": "application/json",
        "content-encoding": "utf-8",
    }
    schemas = CONTRACT["components"]["schemas"]
    assert sorted(message) == sorted(schemas["RedisMessage"]["required"])
    Draft7Validator({**schemas["RedisMessage"], "components": CONTRACT["components"]}).validate(message)
    return json.dumps(message)


# -- postage enqueue --------------------------------------------------------------------------------------------------


def test_a_file_of_jobs_is_enqueued_and_sent(
    deployment: Deployment, broker_url: str, tmp_path: Path, sqlite_url: str
) -> None:
    _, member = deployment.people(email=30)
    file = tmp_path / "jobs.jsonl"
    jobs = [email_message(f"file-{number}", member).model_dump(mode="json", exclude_unset=True) for number in range(30)]
    file.write_text("# thirty emails\n\n" + "".join(as_line("email.send", job) for job in jobs))

    first = run("enqueue", str(file), cwd=tmp_path, broker_url=broker_url, database_url=sqlite_url)
    again = run("enqueue", str(file), "--json", cwd=tmp_path, broker_url=broker_url, database_url=sqlite_url)
    ended = deployment.wait_until_final(*(f"file-{number}" for number in range(30)))

    assert first.code == 0
    assert first.out.startswith("30 jobs are on their queues.")
    assert json.loads(again.out) == {"status": "done", "reason": None, "detail": None, "enqueued": 30}
    assert {charge.state for charge in ended.values()} == {State.SENT}


def refused(file: Path, *options: str, broker_url: str = "redis://127.0.0.1:1/0") -> CommandResult:
    """Give the result of a command that must refuse a file, or a broker that is away."""
    result = run("enqueue", str(file), *options, cwd=file.parent, broker_url=broker_url)
    assert result.code == 1, result
    assert "Traceback" not in result.err
    return result


def test_every_bad_line_is_named_and_nothing_is_enqueued(tmp_path: Path) -> None:
    file = tmp_path / "jobs.jsonl"
    good = email_message("good", "mary").model_dump(mode="json", exclude_unset=True)
    without_id = {name: value for name, value in good.items() if name != "job_id"}
    bad_number = {"job_id": "sms", "sender": "mary", "to": "0151", "text": "Hello"}
    file.write_text(as_line("email.send", good) + as_line("email.send", without_id) + as_line("sms.send", bad_number))

    lines = refused(file).err.splitlines()
    answer = json.loads(refused(file, "--json").out)

    assert lines[0].startswith("Refused (invalid_job): Line 2 (email.send): `job_id`: must be there")
    assert lines[1].startswith("Line 3 (sms.send): `to`: ")
    assert lines[2] == "Nothing was enqueued."
    assert (answer["status"], answer["enqueued"]) == ("refused", 0)
    assert [(line["line"], line["task"]) for line in answer["lines"]] == [(2, "email.send"), (3, "sms.send")]


def test_a_line_that_is_no_job_is_named(tmp_path: Path) -> None:
    file = tmp_path / "jobs.jsonl"
    file.write_text('# a comment\n{"task": "email.sned", "job": {}}\n')

    assert f'{file}, line 2: not {{"task": …, "job": …}} with one of the tasks email.send' in refused(file).err


def test_a_broker_that_is_away_is_named_with_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "jobs.jsonl"
    file.write_text(as_line("email.send", email_message("one", "mary").model_dump(mode="json", exclude_unset=True)))

    printed = refused(file, broker_url="redis://:s3cret@127.0.0.1:1/0").err

    assert "Error: The broker redis://:**@127.0.0.1:1/0 cannot be used: " in printed
    assert "Nothing was published. Enqueue the others, or simply all, again as they are" in printed
    assert "s3cret" not in printed
