"""Which messages a task can be made of."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.broker.consumer import why_unfit

TASK = {"task": "email.send", "id": "4711"}
BODY = [[{"sender": "john"}], {}, {"callbacks": None}]


class Arrived:
    """A message as kombu hands it over: its body is read when it is asked for."""

    def __init__(self, headers: Any, body: bytes, content_type: Any = "application/json") -> None:
        self.headers, self.body, self.content_type = headers, body, content_type

    @property
    def payload(self) -> Any:
        return json.loads(self.body)


def arrived(headers: Any = TASK, body: Any = BODY, **other: Any) -> Arrived:
    return Arrived(headers, json.dumps(body).encode(), **other)


def test_a_task_message_of_either_protocol_is_fit() -> None:
    assert why_unfit(arrived()) is None
    assert why_unfit(arrived(body=[[], {}, None])) is None
    assert why_unfit(arrived(headers={}, body={"task": "email.send", "id": "1", "args": [{}], "kwargs": {}})) is None
    assert why_unfit(arrived(headers=None, body={"task": "email.send", "id": "1"})) is None


@pytest.mark.parametrize(
    "message",
    [
        arrived(content_type="application/x-python-serialize"),
        arrived(content_type=None),
        Arrived(TASK, b""),
        Arrived(TASK, b"\xff"),
        Arrived(TASK, b"[" * 100_000),
        arrived(headers=5),
        arrived(headers={"task": "email.send"}),
        arrived(headers={**TASK, "id": {}}),
        arrived(headers={**TASK, "task": ["email.send"]}),
        arrived(headers={**TASK, "task": ""}),
        arrived(body=None),
        arrived(body=[]),
        arrived(body=[{}, {}, {}]),
        arrived(body=[[], [], {}]),
        arrived(body=[[], {}, 5]),
        arrived(body=[[], {}, {}, {}]),
        arrived(headers={}, body={"task": "email.send"}),
        arrived(headers={}, body={"task": "email.send", "id": "1", "args": "x"}),
        arrived(headers={}, body={"task": "email.send", "id": "1", "kwargs": []}),
    ],
    ids=lambda message: f"{message.content_type} {message.headers} {message.body[:60]!r}",
)
def test_anything_else_is_unfit_and_the_reason_is_a_few_words(message: Arrived) -> None:
    assert why_unfit(message)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(headers=JSON, body=JSON, content_type=st.sampled_from(["application/json", "text/plain", None, 5]))
def test_anything_can_be_looked_at(headers: Any, body: Any, content_type: Any) -> None:
    why_unfit(SimpleNamespace(headers=headers, payload=body, content_type=content_type))
