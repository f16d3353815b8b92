"""The main job as a person starts it: `postage up` with the story of John, Peter and Mary, in an empty folder."""

import json
import re
import shutil
import signal
import socket
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from email import message_from_bytes, policy
from pathlib import Path
from threading import Barrier
from typing import Any
from urllib.parse import urlsplit

import pytest

from models.database.engine import Database
from models.messages.views import View, ViewUsage
from models.reports.views import show_orders, show_overview, show_usage
from tasks.context import Json, utc_now
from tests.audits import audit_everything
from tests.flows.house import DEADLINE_S, Program, Ran, run, until

pytestmark = [pytest.mark.xdist_group("story"), pytest.mark.timeout(300)]

STORY = Path(__file__).parents[2] / "examples" / "john-peter-mary.jsonl"
LOOKS = {
    "overview": ["overview", "mary"],
    "usage": ["usage", "mary"],
    "orders": ["orders", "mary"],
    "billing": ["billing", "peter"],
    "users": ["users", "john"],
    "users, by somebody who may not": ["users", "mary"],
    "status": ["status", "mary-campaign"],
    "audit": ["audit"],
}
"""Each command that only looks, once. What is seen beyond that is read here, for a command takes seconds to start."""


@dataclass(frozen=True)
class Told:
    """The story told twice in one folder: what was said, sent and booked, and what people saw."""

    folder: Path
    first: Ran
    second: Ran
    outbox: list[list[Path]]
    running: list[list[str]]
    books: list[Json]
    seen: dict[str, Ran]

    def answer(self, look: str) -> Any:
        """What a command printed as JSON after the first time."""
        return json.loads(self.seen[look].out)


def books(folder: Path) -> Json:
    """What is left, what was spent and what was bought in both pools, and what an audit finds."""
    with closing(Database(f"sqlite:///{folder}/var/postage.db")) as database, database.snapshot() as connection:
        pools = {
            owner: {
                "overview": show_overview(connection, View(viewer=owner)),
                "usage": show_usage(connection, ViewUsage(viewer=owner, by="message")),
                "orders": show_orders(connection, View(viewer=owner)),
            }
            for owner in ("john", "peter")
        }
        return {**pools, "findings": audit_everything(connection, utc_now())}


def outbox(folder: Path) -> list[Path]:
    """All messages that were sent."""
    return sorted((folder / "var" / "outbox").glob("*/*.*"))


def running(folder: Path) -> list[str]:
    """The command lines of processes that have to do with a folder (Linux only)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue  # it has just ended, or is somebody else's
        if str(folder).encode() in command + environment:
            found.append(command.replace(b"\0", b" ").decode())
    return found


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    folder = tmp_path_factory.mktemp("story")
    first = run("up", str(STORY), "--exit", cwd=folder)
    assert first.code == 0, first.out + first.err
    sent, left, booked = [outbox(folder)], [running(folder)], [books(folder)]
    with ThreadPoolExecutor(2) as threads:
        seen = threads.map(lambda words: run(*words, "--json", cwd=folder), LOOKS.values())
        looks = dict(zip(LOOKS, seen, strict=True))
    second = run("up", str(STORY), "--exit", cwd=folder)
    for kept, now in ((sent, outbox(folder)), (left, running(folder)), (booked, books(folder))):
        kept.append(now)  # type: ignore[attr-defined]
    return Told(folder, first, second, sent, left, booked, looks)


def test_the_story_is_told_and_ends_by_itself(told: Told) -> None:
    """With exit code 0, and no process left."""
    assert (told.first.code, told.first.err) == (0, "")
    assert "Ended cleanly." in told.first.out
    assert "Traceback" not in told.first.out
    assert told.running == [[], []]


def test_nobody_listens_afterwards(told: Told) -> None:
    """Neither Flower nor the broker."""
    flower = urlsplit(_flower_url(told.first.out))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((flower.hostname, flower.port)).close()
    assert not [path for path in (told.folder / "var").rglob("*.sock") if _listens(path)]


def _flower_url(said: str) -> str:
    found = re.search(r"http://127\.0\.0\.1:\d+", said)
    assert found
    return found[0]


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as line:
        return line.connect_ex(str(path)) == 0


def test_twelve_mails_and_three_texts_are_in_the_outbox(told: Told) -> None:
    """As files that a person can read."""
    mails = [path for path in told.outbox[0] if path.suffix == ".eml"]
    texts = [path for path in told.outbox[0] if path.suffix == ".json"]
    subjects = [message_from_bytes(path.read_bytes(), policy=policy.default)["Subject"] for path in mails]
    numbers = [json.loads(path.read_text(encoding="utf-8"))["to"] for path in texts]

    assert (len(mails), len(texts)) == (12, 3)
    assert sorted(numbers) == ["+4915112345671", "+4915112345672", "+4915112345673"]
    assert "Grüße aus Köln" in subjects
    assert {f"Hello {name}" for name in ("Ada", "Bob", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hal")} <= set(subjects)


def test_the_end_says_what_was_not_done_and_why(told: Told) -> None:
    """A story is told by its refusals."""
    for reason in (
        "not_permitted",
        "purchase_for_self_while_sharing",
        "billing_information_missing",
        "insufficient_credits",
    ):
        assert reason in told.first.out


def test_the_balances_are_what_the_story_leaves(told: Told) -> None:
    """Of John's 15 email and 6 SMS credits, and of Peter's 3."""
    [first, _] = told.books

    assert first["john"]["overview"]["remaining"] == {"email": 2, "sms": 2}
    assert first["peter"]["overview"]["remaining"] == {"email": 2, "sms": 0}
    assert first["john"]["usage"]["total"] == {"email": 13, "sms": 4}
    assert first["peter"]["usage"]["total"] == {"email": 1, "sms": 0}
    assert first["findings"] == []


def test_owners_are_not_reminded(told: Told) -> None:
    """John's credits are his own, and Peter's are again."""
    for owner in ("john", "peter"):
        overview = told.books[0][owner]["overview"]
        assert (overview["owner"], overview["sharing"], overview["reminder"]) == (owner, False, None)


def test_peter_sees_what_he_paid_himself(told: Told) -> None:
    """One mail, and one order."""
    peter = told.books[0]["peter"]

    assert [(row["job_id"], row["credits"], row["status"], row["paid_by"]) for row in peter["usage"]["rows"]] == [
        ("peter-mail-3", 1, "sent", "peter")
    ]
    assert [(row["order_id"], row["credits"]) for row in peter["orders"]["rows"]] == [
        ("order-5", {"email": 3, "sms": 0})
    ]


def test_the_story_told_again_sends_and_charges_nothing(told: Told) -> None:
    """Each job gets its first answer.

    But a refused order is not done with: Peter shares no longer, so the order that he made for himself goes through.
    """
    [first, second] = told.books

    assert (told.second.code, told.second.err) == (0, "")
    assert told.outbox[1] == told.outbox[0]
    for owner in ("john", "peter"):
        assert second[owner]["usage"] == first[owner]["usage"]
    assert second["john"] == first["john"]
    assert second["peter"]["overview"]["remaining"] == {"email": 2 + 10, "sms": 0 + 4}
    assert [row["order_id"] for row in second["peter"]["orders"]["rows"]] == ["order-3", "order-5"]
    assert second["findings"] == []


def test_mary_sees_john_s_credits_and_is_reminded_whose_they_are(told: Told) -> None:
    """In overview, usage and orders."""
    overview, usage, orders = (told.answer(what) for what in ("overview", "usage", "orders"))

    for seen in (overview, usage, orders):
        assert (seen["status"], seen["viewer"], seen["owner"], seen["sharing"]) == ("done", "mary", "john", True)
        assert "credits of john" in seen["reminder"]
    assert overview["remaining"] == {"email": 2, "sms": 2}
    assert [(plan["plan"], plan["orders"]) for plan in overview["plans"]] == [("small", 1)]
    assert usage["total"] == {"email": 13, "sms": 4}
    assert sorted((row["user"], row["kind"], row["credits"]) for row in usage["rows"]) == [
        ("john", "email", 1),
        ("john", "sms", 1),
        ("mary", "email", 10),
        ("mary", "sms", 1),
        ("peter", "email", 2),
        ("peter", "sms", 2),
    ]
    assert sorted((row["order_id"], row["buyer"], row["owner"]) for row in orders["rows"]) == [
        ("order-1", "john", "john"),
        ("order-2", "peter", "john"),
    ]
    assert "Low Street" not in told.seen["orders"].out


def test_the_other_commands_tell_of_users_billing_and_jobs(told: Told) -> None:
    """Only John may see the users; Mary's role lacks the right, and the command ends with 1."""
    refused, campaign = told.answer("users, by somebody who may not"), told.answer("status")

    assert [(row["user_id"], row["owner"]) for row in told.answer("users")["rows"]] == [
        ("john", "john"),
        ("mary", "john"),
        ("peter", "peter"),
    ]
    assert refused["reason"] == "not_permitted"
    assert told.answer("billing")["billing"] == {"name": "Peter Stone", "address": "2 Low Street, Leeds"}
    assert (campaign["status"], campaign["credits"], campaign["messages"]) == ("sent", 8, {"sent": 8})
    assert told.answer("audit")["findings"] == []
    assert {look: ran.code for look, ran in told.seen.items() if ran.code} == {"users, by somebody who may not": 1}
    assert {ran.err for ran in told.seen.values()} == {""}


@contextmanager
def serving(folder: Path, ended_by: signal.Signals) -> Iterator[Program]:
    """`postage up` that serves on, until it is ended; then it must have ended cleanly."""
    up = Program(folder, "up", ["up"], {}, FLOWER_UNAUTHENTICATED_API="true")
    try:
        until(lambda: up.check() or "Ctrl-C ends it" in up.said, "it serves")
        yield up
    finally:
        code = up.end(ended_by)
    assert code == 0, up.said
    assert "Ended cleanly." in up.said
    assert "Traceback" not in up.said
    assert running(folder) == []


@pytest.fixture
def stage(told: Told, tmp_path: Path) -> Path:
    """Give a folder in which the story was told, to go on in."""
    shutil.copytree(
        told.folder / "var",
        tmp_path / "var",
        ignore=lambda _, names: [name for name in names if name.endswith(".sock")],
    )
    return tmp_path


def test_while_it_serves_people_send_by_command_and_flower_shows_names_only(stage: Path) -> None:
    """Ctrl-C ends it. A second one in the same folder is refused."""
    before = len(outbox(stage))
    mail = ["--to", "quokka@customer.example", "--subject", "quokka", "--text", "quokka"]
    with serving(stage, signal.SIGINT) as up:
        with ThreadPoolExecutor(3) as threads:
            by_mail = threads.submit(run, "send-email", "--sender", "john", *mail, "--json", cwd=stage)
            words = ["--to", "+4915177788899", "--text", "quokka"]
            by_text = threads.submit(run, "send-sms", "--sender", "mary", *words, "--json", cwd=stage)
            again = threads.submit(run, "up", cwd=stage)
            ran = [future.result() for future in (by_mail, by_text, again)]
        flower = _flower_url(up.said)
        tasks = until(lambda: _tasks_of(flower, 2), "Flower has seen both")
        status = json.loads(run("status", "--json", cwd=stage).out)

    mailed, texted, refused = ran
    assert (mailed.code, json.loads(mailed.out)["status"], json.loads(mailed.out)["paid_by"]) == (0, "sent", "john")
    assert (texted.code, json.loads(texted.out)["status"], json.loads(texted.out)["paid_by"]) == (0, "sent", "john")
    assert len(outbox(stage)) == before + 2
    assert refused.code == 1
    assert "already runs" in refused.err
    assert "Traceback" not in refused.err
    assert len(status["workers"]) == 1

    assert {(task["name"], task["state"]) for task in tasks.values()} == {
        ("email.send", "SUCCESS"),
        ("sms.send", "SUCCESS"),
    }
    assert all(task["runtime"] > 0 for task in tasks.values())
    assert all("sender=" in task["args"] for task in tasks.values())
    assert "quokka" not in json.dumps(tasks)
    assert "15177788899" not in json.dumps(tasks)


def _tasks_of(flower: str, count: int) -> dict[str, Any] | None:
    """What Flower's API tells of sends, once it knows of so many that have ended."""
    with urllib.request.urlopen(f"{flower}/api/tasks", timeout=20) as answer:  # noqa: S310  our own Flower
        tasks = json.load(answer)
    sends = {task_id: task for task_id, task in tasks.items() if str(task["name"]).endswith(".send")}
    return sends if sum(task["state"] == "SUCCESS" for task in sends.values()) >= count else None


def test_two_that_start_at_once_find_ports_of_their_own_and_a_supervisor_ends_them_cleanly(tmp_path: Path) -> None:
    """By SIGTERM, in folders where nothing was ever done. Both see the same port free before either listens there."""

    def serve(name: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        with serving(folder, signal.SIGTERM) as up:
            both_serve.wait(DEADLINE_S)
        assert outbox(folder) == []
        return _flower_url(up.said)

    both_serve = Barrier(2)
    with ThreadPoolExecutor(2) as threads:
        assert len(set(threads.map(serve, ("one", "other")))) == 2
