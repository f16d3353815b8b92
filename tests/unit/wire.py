"""What tests of messages share: the example of each message, and the sentence with which one is refused."""

import json
from pathlib import Path

import pytest

from models.errors import Reason, Refused
from models.messages.wire import MESSAGES, parse

EXAMPLES_FOLDER = Path(__file__).parents[2] / "models" / "messages" / "examples"
EXAMPLES = {path.stem: json.loads(path.read_text())["job"] for path in sorted(EXAMPLES_FOLDER.glob("*.json"))}
"""The object of a valid job of each task."""
TASKS = sorted(MESSAGES)


def refusal(task: str, job: object) -> str:
    """Give the sentence with which a job is refused."""
    with pytest.raises(Refused) as refused:
        parse(task, job)
    assert refused.value.reason is Reason.INVALID_JOB
    return refused.value.detail


def is_presentable(detail: str) -> bool:
    """Whether a sentence can be printed and is short enough to be read."""
    return detail.isprintable() and 0 < len(detail) < 1000


def field_names(task: str) -> list[str]:
    """Give the names that the fields of a task's message have on the wire."""
    return [field.alias or name for name, field in MESSAGES[task].model_fields.items()]
