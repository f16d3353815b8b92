"""The package for producers in Python: built, installed alone into an empty environment, and used against a worker."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from models.messages.answers import ANSWERS
from models.messages.wire import MESSAGES
from tests.flows.deployment import Deployment
from tests.servers import ValkeyServer

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.xdist_group("python-client"), pytest.mark.timeout(240)]

PACKAGE = Path(__file__).parents[2] / "clients/python"
UV = Path(sys.executable).parent / "uv"

PRODUCER = """
import json, sys
from postage_client import PostageClient, Purchase, SendEmail, SendSms
broker, owner, member = sys.argv[1:]
postage = PostageClient(broker)
postage.send(SendEmail(job_id="wheel-mail", sender=member, to=["a@customer.example"], subject="Hello", text="Hello"))
many = [SendSms(job_id=f"wheel-{n}", sender=member, to="+4915112345671", text="Hello") for n in range(700)]
order = Purchase(order_id="wheel-order", buyer=owner, credits={"email": 1}, amount=1, currency="EUR")
print(json.dumps([
    len(set(postage.send_many(iter(many)))),
    postage.ask(order),
    postage.ask(order),
    postage.ask(Purchase(order_id="wheel-order-2", buyer=owner, plan="none")),
    postage.ask(("views.overview", {"viewer": member})),
]))
"""
SCHEMAS = """
import json
from postage_client.models.messages.answers import ANSWERS
from postage_client.models.messages.wire import MESSAGES
print(json.dumps([{task: each.model_json_schema() for task, each in of.items()} for of in (MESSAGES, ANSWERS)]))
"""
ERRORS = """
import sys
from postage_client import BrokerAwayError, InvalidJobError, NoAnswerError, PostageClient
away, empty = map(PostageClient, sys.argv[1:])
view = ("views.billing", {"viewer": "mary"})
for error, job, postage in (
    (InvalidJobError, ("email.send", {"sender": "mary", "secret": "s3cret"}), away),
    (BrokerAwayError, view, away),
    (NoAnswerError, view, empty),
):
    try:
        postage.ask(job, timeout_s=0.2)
    except error as why:
        print(why)
"""


OPTIONS = """
import sys
from postage_client import NoAnswerError, PostageClient
postage = PostageClient(sys.argv[1], key_prefix="shop-1:", sentinel_master="shop", sentinel_password="unused")
try:
    postage.ask(("views.billing", {"viewer": "mary"}), timeout_s=0.1)
except NoAnswerError:
    print("asked")
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the interpreter of an environment that has the package, and nothing of the server."""
    folder = tmp_path_factory.mktemp("client")
    call(UV, "build", "--quiet", "--wheel", "--out-dir", folder, PACKAGE)
    call(UV, "venv", "--quiet", "--python", sys.executable, folder / "venv")
    interpreter = folder / "venv/bin/python"
    call(UV, "pip", "install", "--quiet", "--python", interpreter, *folder.glob("*.whl"))
    return interpreter


def call(*command: Any) -> str:
    """Run a command to its end; gives what it printed."""
    ended = subprocess.run([*map(str, command)], capture_output=True, encoding="utf-8", cwd="/", check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_it_sends_and_asks(python: Path, deployment: Deployment, broker_url: str) -> None:
    owner, member = deployment.people(email=1, sms=700)

    count, order, again, refused, overview = json.loads(call(python, "-c", PRODUCER, broker_url, owner, member))

    assert count == 700
    assert (order["status"], order["credits"]) == ("done", {"email": 1, "sms": 0})
    assert again == order
    assert (refused["reason"], refused["credits"]) == ("unknown_plan", None)
    assert set(refused) == set(order)
    assert overview["owner"] == owner
    deployment.wait_until_final("wheel-mail", *(f"wheel-{number}" for number in range(700)))
    assert deployment.remaining(owner) == {"email": 1, "sms": 0}


def test_its_messages_and_answers_are_those_of_the_server(python: Path) -> None:
    messages, answers = json.loads(call(python, "-c", SCHEMAS))

    assert messages == {task: model.model_json_schema() for task, model in MESSAGES.items()}
    assert answers == {task: model.model_json_schema() for task, model in ANSWERS.items()}


def test_errors_are_sentences_that_say_what_to_do_and_repeat_nothing(python: Path, tmp_path: Path) -> None:
    with ValkeyServer(tmp_path / "valkey") as broker:
        invalid, away, silent = call(python, "-c", ERRORS, "redis://:pw@127.0.0.1:1/0", broker.url()).splitlines()

    assert "`subject`: Field required." in invalid
    assert "s3cret" not in invalid
    assert "Connection refused. Nothing was published." in away
    assert ":pw@" not in away
    assert silent.startswith("There is no answer after 0.2 s: is a worker running?")


def test_it_takes_the_prefix_and_what_sentinels_need(python: Path, valkey_url: str) -> None:
    assert call(python, "-c", OPTIONS, valkey_url) == "asked\n"

    with Redis.from_url(valkey_url) as redis:
        assert redis.keys() == [b"shop-1:views"]


def test_it_takes_no_import_name_but_its_own_and_imports_nothing_of_the_server(python: Path) -> None:
    [site] = python.parents[1].glob("lib/*/site-packages")
    modules = list((site / "postage_client").rglob("*.py"))

    assert len(modules) > 15
    assert not any((site / name).exists() for name in ("models", "tasks", "worker"))
    for module in modules:
        for node in ast.walk(ast.parse(module.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & {"models", "tasks", "worker"}, module


def test_the_example_in_the_documentation_works(python: Path, valkey_url: str) -> None:
    document = (ROOT / "docs" / "producers.md").read_text()
    section = document.partition("### Many at once")[2]
    [example, *_] = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)

    call(python, "-c", example.replace("redis://127.0.0.1:6379/0", valkey_url))

    with Redis.from_url(valkey_url) as redis:
        assert [redis.llen(queue) for queue in ("email", "sms")] == [10_000, 1]
