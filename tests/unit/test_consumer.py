"""The consumer: which messages a worker can make a task of, and which go to the quarantine."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.broker.consumer import why_unfit

TASK = {"task": "email.send", "id": "4711"}
BODY = [[{"sender": "john"}], {}, {"callbacks": None}]


class KombuMessage:
    """A message as kombu gives it to a worker: its body is parsed when it is asked for."""

    def __init__(self, headers: Any, body: bytes, content_type: Any = "application/json") -> None:
        self.headers, self.body, self.content_type = headers, body, content_type

    @property
    def payload(self) -> Any:
        return json.loads(self.body)


def message_of(headers: Any = TASK, body: Any = BODY, **other: Any) -> KombuMessage:
    return KombuMessage(headers, json.dumps(body).encode(), **other)


def test_a_task_message_of_either_protocol_is_fit() -> None:
    assert why_unfit(message_of()) is None
    assert why_unfit(message_of(body=[[], {}, None])) is None
    assert why_unfit(message_of(headers={}, body={"task": "email.send", "id": "1", "args": [{}], "kwargs": {}})) is None
    assert why_unfit(message_of(headers=None, body={"task": "email.send", "id": "1"})) is None


@pytest.mark.parametrize(
    "message",
    [
        message_of(content_type="application/x-python-serialize"),
        message_of(content_type=None),
        KombuMessage(TASK, b""),
        KombuMessage(TASK, b"\xff"),
        KombuMessage(TASK, b"[" * 100_000),
        message_of(headers=5),
        message_of(headers={"task": "email.send"}),
        message_of(headers={**TASK, "id": {}}),
        message_of(headers={**TASK, "task": ["email.send"]}),
        message_of(headers={**TASK, "task": ""}),
        message_of(body=None),
        message_of(body=[]),
        message_of(body=[{}, {}, {}]),
        message_of(body=[[], [], {}]),
        message_of(body=[[], {}, 5]),
        message_of(body=[[], {}, {}, {}]),
        message_of(headers={}, body={"task": "email.send"}),
        message_of(headers={}, body={"task": "email.send", "id": "1", "args": "x"}),
        message_of(headers={}, body={"task": "email.send", "id": "1", "kwargs": []}),
    ],
    ids=lambda message: f"{message.content_type} {message.headers} {message.body[:60]!r}",
)
def test_any_other_message_is_unfit_for_a_reason(message: KombuMessage) -> None:
    assert why_unfit(message)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(headers=JSON, body=JSON, content_type=st.sampled_from(["application/json", "text/plain", None, 5]))
def test_any_message_at_all_can_be_checked(headers: Any, body: Any, content_type: Any) -> None:
    why_unfit(SimpleNamespace(headers=headers, payload=body, content_type=content_type))
