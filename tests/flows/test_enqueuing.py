"""Jobs enqueued many at once, by the client and by the command, and answered by a real worker."""

import json
from collections import Counter
from pathlib import Path

import pytest

from models.messages.billing import Purchase
from models.messages.sends import SendEmail
from models.sends.charges import State
from tasks.client import JobLike, enqueue, producer_app
from tests.flows.house import Deployment, Ran, run
from tests.flows.outside import Json

pytestmark = pytest.mark.timeout(240)


def email(sender: str, job_id: str) -> SendEmail:
    return SendEmail(job_id=job_id, sender=sender, to=[f"{job_id}@customer.example"], subject="Hello", text="Hello")


def as_line(task: str, job: Json) -> str:
    return json.dumps({"task": task, "job": job}) + "\n"


def test_jobs_enqueued_twice_are_charged_and_sent_once(house: Deployment, broker_url: str) -> None:
    """Half of them first by themselves, as if the broker had gone away; and once more by plain `send_task`."""
    owner, member = house.people(email=40)
    jobs: list[JobLike] = [email(member, f"client-{number}") for number in range(40)]

    with producer_app(broker_url) as app:
        enqueue(app, jobs[:20])
        enqueue(app, jobs)
    house.send("email.send", {**email(member, "client-7").model_dump(mode="json", exclude_none=True)})
    ended = house.wait_until_final(*(f"client-{number}" for number in range(40)))

    assert {charge.state for charge in ended.values()} == {State.SENT}
    assert house.remaining(owner)["email"] == 0
    sent = Counter(letter.job_id for letter in house.mail.letters if letter.job_id.startswith("client-"))
    assert sent == Counter(f"client-{number}" for number in range(40))


def test_the_answer_of_a_purchase_is_found_under_the_id_that_enqueue_gives(house: Deployment, broker_url: str) -> None:
    owner, _ = house.people()
    order = Purchase(order_id="client-order", buyer=owner, credits={"email": 3}, amount=100, currency="EUR")

    with producer_app(broker_url, results_url=broker_url) as app:
        [task_id] = enqueue(app, [order])
        answer = app.AsyncResult(task_id).get(timeout=30)

    assert (answer["status"], answer["owner"], answer["credits"]) == ("done", owner, {"email": 3, "sms": 0})


# -- postage enqueue --------------------------------------------------------------------------------------------------


def test_a_file_is_enqueued_and_worked_off(house: Deployment, broker_url: str, tmp_path: Path, sqlite_url: str) -> None:
    _, member = house.people(email=30)
    file = tmp_path / "jobs.jsonl"
    jobs = [email(member, f"file-{number}").model_dump(mode="json", exclude_unset=True) for number in range(30)]
    file.write_text("# thirty emails\n\n" + "".join(as_line("email.send", job) for job in jobs))

    said = run("enqueue", str(file), cwd=tmp_path, broker_url=broker_url, database_url=sqlite_url)
    again = run("enqueue", str(file), "--json", cwd=tmp_path, broker_url=broker_url, database_url=sqlite_url)
    ended = house.wait_until_final(*(f"file-{number}" for number in range(30)))

    assert said.code == 0
    assert said.out.startswith("30 jobs are on their queues.")
    assert json.loads(again.out) == {"status": "done", "reason": None, "detail": None, "enqueued": 30}
    assert {charge.state for charge in ended.values()} == {State.SENT}


def refused(file: Path, *options: str, broker_url: str = "redis://127.0.0.1:1/0") -> Ran:
    """What the command says of a file, or of a broker that it need not ask for that."""
    ran = run("enqueue", str(file), *options, cwd=file.parent, broker_url=broker_url)
    assert ran.code == 1, ran
    assert "Traceback" not in ran.err
    return ran


def test_every_bad_line_is_named_and_nothing_is_enqueued(tmp_path: Path) -> None:
    file = tmp_path / "jobs.jsonl"
    good = email("mary", "good").model_dump(mode="json", exclude_unset=True)
    without_id = {name: value for name, value in good.items() if name != "job_id"}
    bad_number = {"job_id": "sms", "sender": "mary", "to": "0151", "text": "Hello"}
    file.write_text(as_line("email.send", good) + as_line("email.send", without_id) + as_line("sms.send", bad_number))

    lines = refused(file).err.splitlines()
    answer = json.loads(refused(file, "--json").out)

    assert lines[0].startswith("Refused (invalid_job): Line 2 (email.send): `job_id`: must be there")
    assert lines[1].startswith("Line 3 (sms.send): `to`: ")
    assert lines[2] == "Nothing was enqueued."
    assert (answer["status"], answer["enqueued"]) == ("refused", 0)
    assert [(one["line"], one["task"]) for one in answer["lines"]] == [(2, "email.send"), (3, "sms.send")]


def test_a_line_that_is_no_job_is_named(tmp_path: Path) -> None:
    file = tmp_path / "jobs.jsonl"
    file.write_text('# a comment\n{"task": "email.sned", "job": {}}\n')

    assert f'{file}, line 2: not {{"task": …, "job": …}} with one of the tasks email.send' in refused(file).err


def test_a_broker_that_is_away_is_said_with_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "jobs.jsonl"
    file.write_text(as_line("email.send", email("mary", "one").model_dump(mode="json", exclude_unset=True)))

    said = refused(file, broker_url="redis://:s3cret@127.0.0.1:1/0").err

    assert "Error: The broker redis://:**@127.0.0.1:1/0 cannot be used: " in said
    assert "Nothing was published. Enqueue the others, or simply all, again as they are" in said
    assert "s3cret" not in said
