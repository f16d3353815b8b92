"""The AsyncAPI document of the contract, as the official parser reads it: a program for Node, of fixed versions."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from models.messages.wire import MESSAGES, SEND_TASKS
from tasks.queues import ROUTES

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DOCUMENT = (ROOT / "docs/contract/asyncapi.json").read_text()
FILES = ("package.json", "package-lock.json", "check.js")

pytestmark = [
    pytest.mark.xdist_group("asyncapi"),
    pytest.mark.timeout(240),
    pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node"),
]


@pytest.fixture(scope="module")
def parser() -> Path:
    """Give the folder in which the parser is installed. It is kept as long as its lock is the same."""
    folder = ROOT / ".venv/asyncapi-parser"
    installed = folder / "installed-lock.json"
    lock = (HERE / "package-lock.json").read_text()
    folder.mkdir(exist_ok=True)
    for name in FILES:
        shutil.copy(HERE / name, folder)
    if not installed.exists() or installed.read_text() != lock:
        install = ["npm", "ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
        if subprocess.run(install, cwd=folder, capture_output=True, check=False, timeout=180).returncode:
            pytest.skip("npm finds no registry here")
        installed.write_text(lock)
    return folder


@pytest.fixture(scope="module")
def parsed(parser: Path) -> tuple[Any, Any]:
    """Give what the parser says of the document, and of one in which there are mistakes."""
    documents = json.dumps([json.loads(DOCUMENT), with_mistakes(json.loads(DOCUMENT))])
    ended = subprocess.run(
        ["node", "check.js"], cwd=parser, input=documents, capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    right, wrong = json.loads(ended.stdout)
    return right, wrong


def with_mistakes(document: Any) -> Any:
    """Give the part of the document that is about text messages, with mistakes."""
    for part in (document["operations"], document["components"]["messages"]):
        for name in part.keys() - {"sms.send", "email.send"}:
            del part[name]
    for name in document["channels"].keys() - {"sms", "email"}:
        del document["channels"][name]
    document["operations"]["sms.send"]["messages"] = [{"$ref": "#/channels/email/messages/email.send"}]
    document["components"]["schemas"]["SendSms"]["type"] = "text"
    return document


def test_the_parser_finds_every_task_and_nothing_to_say(parsed: tuple[Any, Any]) -> None:
    said, _ = parsed

    assert said["diagnostics"] == []
    assert said["operations"] == [
        {
            "id": task,
            "action": "receive",
            "channels": [ROUTES[task]],
            "messages": [task],
            "replies": [] if task in SEND_TASKS else [f"{task}.answer", "failure"],
        }
        for task in MESSAGES
    ]


def test_the_parser_would_find_mistakes(parsed: tuple[Any, Any]) -> None:
    _, said = parsed

    assert {
        "asyncapi-document-resolved: components.schemas.SendSms.type",
        "asyncapi3-operation-messages-from-referred-channel: operations.sms.send.messages.0",
    } <= set(said["diagnostics"])
