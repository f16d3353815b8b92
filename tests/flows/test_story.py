"""`postage up` as a person starts it in an empty folder, with the story of John, Peter and Mary."""

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
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

from models.database.engine import Database, utc_now
from models.messages.views import View, ViewUsage
from models.reports.views import show_orders, show_overview, show_usage
from tasks.context import Json
from tests.audits import audit_everything
from tests.flows import first_hour
from tests.flows.deployment import DEADLINE_S, CommandResult, Program, environment, run, wait_until
from tests.servers import free_port

pytestmark = [pytest.mark.xdist_group("story"), pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
STORY = ROOT / "examples" / "john-peter-mary.jsonl"
EXAMPLES = ROOT / "examples" / "producers"
ENQUEUE = (ROOT / "README.md").read_text().partition("## Enqueue from your program")[2].partition("\n## ")[0]
VIEW_COMMANDS = {
    "overview": ["overview", "mary"],
    "usage": ["usage", "mary"],
    "orders": ["orders", "mary"],
    "billing": ["billing", "peter"],
    "users": ["users", "john"],
    "users, by somebody who may not": ["users", "mary"],
    "status": ["status", "mary-campaign"],
    "audit": ["audit"],
}
"""Each command that only shows something. More is read from the database, for commands take seconds to start."""


@dataclass(frozen=True)
class StoryRun:
    """Two runs of the story in one folder: their output, and after each what was sent, left running and charged."""

    folder: Path
    first: CommandResult
    second: CommandResult
    outbox: list[list[Path]]
    running: list[list[str]]
    accounts: list[Json]
    shown: dict[str, CommandResult]

    def answer(self, view: str) -> Any:
        """Give what a command has printed as JSON after the first run."""
        return json.loads(self.shown[view].out)


def accounts_in(folder: Path) -> Json:
    """Give what is left, what was spent and what was bought in both pools, and what an audit finds."""
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


def outbox_in(folder: Path) -> list[Path]:
    """Give the files of all messages that were sent."""
    return sorted((folder / "var" / "outbox").glob("*/*.*"))


def running_in(folder: Path) -> list[str]:
    """Give the command lines of processes that name a folder (Linux only)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue  # it has just ended, or belongs to somebody else
        if str(folder).encode() in command + environment:
            found.append(command.replace(b"\0", b" ").decode())
    return found


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> StoryRun:
    folder = tmp_path_factory.mktemp("story")
    # Flower has a port that nobody else takes afterwards.
    first = run("up", str(STORY), "--exit", cwd=folder, anew=True, flower_port=free_port())
    assert first.code == 0, first.out + first.err
    sent, running, accounts = [outbox_in(folder)], [running_in(folder)], [accounts_in(folder)]
    with ThreadPoolExecutor(2) as threads:
        results = threads.map(lambda words: run(*words, "--json", cwd=folder), VIEW_COMMANDS.values())
        shown = dict(zip(VIEW_COMMANDS, results, strict=True))
    second = run("up", str(STORY), "--exit", cwd=folder, anew=True)
    sent.append(outbox_in(folder))
    running.append(running_in(folder))
    accounts.append(accounts_in(folder))
    return StoryRun(folder, first, second, sent, running, accounts, shown)


def test_the_story_is_told_and_ends_by_itself(story: StoryRun) -> None:
    """The exit code is 0, and no process is left."""
    assert (story.first.code, story.first.err) == (0, "")
    assert "Ended cleanly." in story.first.out
    assert "Traceback" not in story.first.out
    assert story.running == [[], []]


def test_everything_that_is_kept_is_private(story: StoryRun) -> None:
    """Database, queues, messages and logs: other users have no right on any of it."""
    var = story.folder / "var"

    assert [str(path) for path in (var, *var.rglob("*")) if path.lstat().st_mode & 0o077] == []


def test_every_line_of_a_log_is_json(story: StoryRun) -> None:
    """Also where a process begins and ends: Celery would print banners there."""
    lines = [line for path in (story.folder / "var" / "logs").iterdir() for line in path.read_text().splitlines()]

    assert {type(json.loads(line)) for line in lines} == {dict}
    assert "worker: Warm shutdown (MainProcess)" in {json.loads(line)["event"] for line in lines}


def test_nothing_listens_afterwards(story: StoryRun) -> None:
    """Flower and the broker have ended."""
    flower = urlsplit(_flower_url(story.first.out))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((flower.hostname, flower.port)).close()
    assert not [path for path in (story.folder / "var").rglob("*.sock") if _listens(path)]


def _flower_url(output: str) -> str:
    found = re.search(r"(?<=Flower    )http://127\.0\.0\.1:\d+", output)
    assert found
    return found[0]


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def test_twelve_emails_and_three_texts_are_in_the_outbox(story: StoryRun) -> None:
    """They are files that a person can read."""
    mails = [path for path in story.outbox[0] if path.suffix == ".eml"]
    texts = [path for path in story.outbox[0] if path.suffix == ".json"]
    subjects = [message_from_bytes(path.read_bytes(), policy=policy.default)["Subject"] for path in mails]
    numbers = [json.loads(path.read_text(encoding="utf-8"))["to"] for path in texts]

    assert (len(mails), len(texts)) == (12, 3)
    assert sorted(numbers) == ["+4915112345671", "+4915112345672", "+4915112345673"]
    assert "Grüße aus Köln" in subjects
    assert {f"Hello {name}" for name in ("Ada", "Bob", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hal")} <= set(subjects)


def test_the_output_says_what_was_refused_and_why(story: StoryRun) -> None:
    """Every refusal of the story is named with its reason."""
    for reason in (
        "not_permitted",
        "purchase_for_self_while_sharing",
        "billing_information_missing",
        "insufficient_credits",
    ):
        assert reason in story.first.out


def test_the_balances_are_what_the_story_leaves(story: StoryRun) -> None:
    """John has bought 15 email and 6 SMS credits, and Peter 3 email credits."""
    [first, _] = story.accounts

    assert first["john"]["overview"]["remaining"] == {"email": 2, "sms": 2}
    assert first["peter"]["overview"]["remaining"] == {"email": 2, "sms": 0}
    assert first["john"]["usage"]["total"] == {"email": 13, "sms": 4}
    assert first["peter"]["usage"]["total"] == {"email": 1, "sms": 0}
    assert first["findings"] == []


def test_owners_of_credits_are_not_reminded(story: StoryRun) -> None:
    """John spends his own credits, and so does Peter again."""
    for owner in ("john", "peter"):
        overview = story.accounts[0][owner]["overview"]
        assert (overview["owner"], overview["sharing"], overview["reminder"]) == (owner, False, None)


def test_peter_sees_what_he_paid_himself(story: StoryRun) -> None:
    """That is one email and one order."""
    peter = story.accounts[0]["peter"]

    assert [(row["job_id"], row["credits"], row["status"], row["paid_by"]) for row in peter["usage"]["rows"]] == [
        ("peter-mail-3", 1, "sent", "peter")
    ]
    assert [(row["order_id"], row["credits"]) for row in peter["orders"]["rows"]] == [
        ("order-5", {"email": 3, "sms": 0})
    ]


def test_the_story_told_again_sends_and_charges_nothing(story: StoryRun) -> None:
    """Each job gets its first answer, except a refused order.

    Peter does not share any more, so the order that he made for himself is done now.
    """
    [first, second] = story.accounts

    assert (story.second.code, story.second.err) == (0, "")
    assert story.outbox[1] == story.outbox[0]
    for owner in ("john", "peter"):
        assert second[owner]["usage"] == first[owner]["usage"]
    assert second["john"] == first["john"]
    assert second["peter"]["overview"]["remaining"] == {"email": 2 + 10, "sms": 0 + 4}
    assert [row["order_id"] for row in second["peter"]["orders"]["rows"]] == ["order-3", "order-5"]
    assert second["findings"] == []


def test_mary_sees_johns_credits_and_is_reminded_whose_they_are(story: StoryRun) -> None:
    """The reminder is in overview, usage and orders."""
    overview, usage, orders = (story.answer(view) for view in ("overview", "usage", "orders"))

    for view in (overview, usage, orders):
        assert (view["status"], view["viewer"], view["owner"], view["sharing"]) == ("done", "mary", "john", True)
        assert "credits of john" in view["reminder"]
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
    assert "Low Street" not in story.shown["orders"].out


def test_other_commands_show_users_billing_and_jobs(story: StoryRun) -> None:
    """Only John may see the users. Mary's role lacks the right, so the command ends with exit code 1."""
    refused, campaign = story.answer("users, by somebody who may not"), story.answer("status")

    assert [(row["user_id"], row["owner"]) for row in story.answer("users")["rows"]] == [
        ("john", "john"),
        ("mary", "john"),
        ("peter", "peter"),
    ]
    assert refused["reason"] == "not_permitted"
    assert story.answer("billing")["billing"] == {"name": "Peter Stone", "address": "2 Low Street, Leeds"}
    assert (campaign["status"], campaign["credits"], campaign["messages"]) == ("sent", 8, {"sent": 8})
    assert story.answer("audit")["findings"] == []
    failed = {view: result.code for view, result in story.shown.items() if result.code}
    assert failed == {"users, by somebody who may not": 1}
    assert {result.err for result in story.shown.values()} == {""}


@contextmanager
def serving(folder: Path, ended_by: signal.Signals, *arguments: str) -> Iterator[Program]:
    """Run `postage up` until the block ends. Then it must end cleanly."""
    up = Program(folder, "up", ["up", *arguments], {}, anew=True, FLOWER_UNAUTHENTICATED_API="true")
    try:
        wait_until(lambda: up.check() or "Ctrl-C ends it" in up.output, "it serves")
        yield up
    finally:
        code = up.end(ended_by)
    assert code == 0, up.output
    assert "Ended cleanly." in up.output
    assert "Traceback" not in up.output
    assert running_in(folder) == []


@dataclass(frozen=True)
class Served:
    """A copy of the folder in which the story was told, where `postage up` runs."""

    folder: Path
    up: Program


@pytest.fixture(scope="module")
def served(story: StoryRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Give `postage up`, which serves several tests; Ctrl-C ends it afterwards."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(
        story.folder / "var",
        folder / "var",
        ignore=lambda _, names: [name for name in names if name.endswith(".sock")],
    )
    (folder / "examples").symlink_to(EXAMPLES.parent)
    with serving(folder, signal.SIGINT) as up:
        bought = run("buy", "john", "--email", "10", "--amount", "990", "--currency", "EUR", cwd=folder)
        assert bought.code == 0, bought.err
        yield Served(folder, up)


def test_people_send_by_command_while_postage_up_serves(served: Served) -> None:
    """Flower shows no content of the sends, and a second `postage up` in the same folder is refused."""
    before = len(outbox_in(served.folder))
    email = ["--to", "quokka@customer.example", "--subject", "quokka", "--text", "quokka"]
    text = ["--to", "+4915177788899", "--text", "quokka"]
    with ThreadPoolExecutor(3) as threads:
        send_email = threads.submit(run, "send-email", "--sender", "john", *email, "--json", cwd=served.folder)
        send_sms = threads.submit(run, "send-sms", "--sender", "mary", *text, "--json", cwd=served.folder)
        second_up = threads.submit(run, "up", cwd=served.folder)
        results = [future.result() for future in (send_email, send_sms, second_up)]
    tasks = wait_until(lambda: _tasks_of(_flower_url(served.up.output), 2), "Flower has seen both")
    status = json.loads(run("status", "--json", cwd=served.folder).out)

    email_sent, text_sent, refused = results
    for sent in (email_sent, text_sent):
        assert (sent.code, json.loads(sent.out)["status"], json.loads(sent.out)["paid_by"]) == (0, "sent", "john")
    assert len(outbox_in(served.folder)) == before + 2
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
    """Give what Flower's API tells of sends, once it knows of so many that have ended; None before."""
    with urllib.request.urlopen(f"{flower}/api/tasks", timeout=20) as answer:  # noqa: S310  the Flower of this test
        tasks = json.load(answer)
    sends = {task_id: task for task_id, task in tasks.items() if str(task["name"]).endswith(".send")}
    return sends if sum(task["state"] == "SUCCESS" for task in sends.values()) >= count else None


def test_readme_and_the_examples_work_word_for_word(served: Served) -> None:
    """Pasted into a shell in the folder of `make run`; and the password is nowhere but where it must be."""
    folder = served.folder
    before = len(outbox_in(folder))
    export, python = re.findall(r"^```(?:python)?\n(.*?)^```", ENQUEUE, re.MULTILINE | re.DOTALL)
    (folder / "readme.py").write_text(python)
    example = f'{shlex.quote(sys.executable)} {EXAMPLES / "python" / "enqueue.py"} "$BROKER_URL" mary you@example.org'
    greeted = re.search(r"^export BROKER_URL=.*$", served.up.output, re.MULTILINE)
    assert greeted
    paste(f"{export}{shlex.quote(sys.executable)} readme.py", folder)
    wait_until(lambda: len(outbox_in(folder)) == before + 1, "README's email is sent")
    assert "status   sent" in paste(f"{greeted[0]}\n{example}", folder)
    said = [run("inspect", *words, cwd=folder).out for words in (["stats"], ["conf"])]

    password = urlsplit((folder / "var" / "broker-url").read_text()).password
    assert password
    assert all("valkey.sock" in answer for answer in said)
    logs = [path.read_text() for path in (folder / "var" / "logs").iterdir()]
    assert [text for text in (*said, *logs, served.up.output) if password in text] == []


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node")
def test_the_example_for_node_works(served: Served) -> None:
    shutil.copytree(EXAMPLES / "node", served.folder / "node", ignore=shutil.ignore_patterns("node_modules"))
    installed = subprocess.run(["npm", "install", "--silent"], cwd=served.folder / "node", check=False)
    if installed.returncode:
        pytest.skip("npm finds no registry here")
    export = re.findall(r"^```\n(.*?)^```", ENQUEUE, re.MULTILINE | re.DOTALL)[0]
    command = f'{export}node node/enqueue.mjs "$BROKER_URL" peter you@example.org'
    assert "status   sent" in paste(command, served.folder)


def paste(lines: str, folder: Path) -> str:
    """Run lines in a shell, as a person pastes them, and give what they print."""
    shell = subprocess.run(
        ["/bin/sh", "-euc", lines], cwd=folder, env=environment({}), capture_output=True, text=True, check=False
    )
    assert shell.returncode == 0, shell.stdout + shell.stderr
    return shell.stdout


def test_the_first_hour_goes_as_it_says(served: Served) -> None:
    done = first_hour.follow(served.folder)

    assert {"doctor", "send-email", "buy", "share", "statement", "audit"} <= set(done)
    assert len([line for line in first_hour.lines() if line.endswith(first_hour.REFUSED)]) == 4


def test_two_that_start_at_once_find_ports_of_their_own(tmp_path: Path) -> None:
    """Both see the same port free before either listens there. SIGTERM ends them cleanly, as a supervisor would.

    One tells the story, and serves afterwards, as `make run` has it.
    """

    def serve(name: str, *arguments: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        with serving(folder, signal.SIGTERM, *arguments) as up:
            both_serve.wait(DEADLINE_S)
        assert len(outbox_in(folder)) == (15 if arguments else 0)
        return _flower_url(up.output)

    both_serve = Barrier(2)
    with ThreadPoolExecutor(2) as threads:
        started = [threads.submit(serve, "one"), threads.submit(serve, "other", str(STORY))]
        assert len({each.result() for each in started}) == 2
