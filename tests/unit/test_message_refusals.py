"""Whatever comes off the wire is read, or refused with a short sentence that repeats no value."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import Reason, Refused
from models.messages.base import TaskMessage
from models.messages.bulk import SendManyEmails, SendManySms
from models.messages.fields import PATTERN_WORDS
from models.messages.sends import SendEmail, SendSms
from models.messages.wire import MESSAGES, parse
from tests.factories import content_of, email_job
from tests.unit.wire import EXAMPLES, TASKS, field_names, is_presentable, refusal

Json = Any

TEXTS = st.text(st.characters())
"""Any text that JSON can carry, lone surrogates too."""
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
FIELDS = sorted({name for message in MESSAGES.values() for name in message.model_fields})
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS | st.sampled_from(FIELDS), inner, max_size=6),
    max_leaves=25,
)


def spoilt_copies(value: Json, secret: str) -> list[Json]:
    """Give copies of an object, each with one text or number in it replaced by a wrong value."""
    if isinstance(value, dict):
        return [{**value, name: bad} for name, part in value.items() for bad in spoilt_copies(part, secret)]
    if isinstance(value, list):
        return [
            [*value[:place], bad, *value[place + 1 :]]
            for place, part in enumerate(value)
            for bad in spoilt_copies(part, secret)
        ]
    return [f"{secret}\x00", {secret: secret}, [secret], -4815162342]


@pytest.mark.parametrize("task", TASKS)
def test_a_refusal_never_repeats_a_value(task: str) -> None:
    for job in spoilt_copies(EXAMPLES[task], "5ecret"):
        sentence = refusal(task, job)

        assert "4815162342" not in sentence
        assert is_presentable(sentence)
        assert "5ecret\x00" not in sentence
        if {"5ecret": "5ecret"} not in _parts(job):
            assert "5ecret" not in sentence


def _parts(value: Json) -> list[Json]:
    """Give a value and all values inside it."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [value, *(part for inner_value in inner for part in _parts(inner_value))]


def test_a_refusal_names_three_faults_and_counts_the_rest() -> None:
    sentence = refusal("email.send", {f"wrong{number}": 1 for number in range(9)})

    assert sentence.endswith("And 9 more.")


@pytest.mark.parametrize(
    "name",
    ["x" * 65, "x" * 10_000, "é" * 100, "a\nb", "\x00", "\ud800", "", "\u202egnp.exe"],
    ids=["too long", "much too long", "accents", "line break", "NUL", "surrogate", "nothing", "backwards"],
)
def test_a_refusal_can_be_printed_whatever_the_fields_are_called(name: str) -> None:
    assert is_presentable(refusal("views.billing", {"viewer": "john", name: 1}))
    assert is_presentable(refusal("users.save", {**EXAMPLES["users.save"], "billing": {name: ""}}))


def test_a_refusal_of_many_long_fields_stays_short() -> None:
    wrong = {f"{number}" + "\U0001f600" * 64: 1 for number in range(9)}

    assert is_presentable(refusal("email.send", email_job(headers=wrong, cc=[""] * 3)))
    assert is_presentable(refusal("email.send_many", {"recipients": [{"to": "a@x.test", "values": wrong}]}))


def message_or_refusal(task: str, job: object) -> TaskMessage | Refused:
    """Give the message, or the refusal; anything else that is raised is a bug."""
    try:
        message = parse(task, job, job_id="task-1")
        if isinstance(message, SendManyEmails | SendManySms):
            list(message.each())
        elif isinstance(message, SendEmail | SendSms):
            content_of(message)
    except Refused as refused:
        return refused
    return message


def assert_read_or_refused(task: str, job: object) -> None:
    read = message_or_refusal(task, job)

    if isinstance(read, Refused):
        assert read.reason is Reason.INVALID_JOB
        assert is_presentable(read.detail)
    else:
        json.dumps(read.model_dump(mode="json"), allow_nan=False).encode()
        if read.key:
            assert read.has_digest(read.digest())
            assert not read.has_digest("0" * 64)


@given(st.sampled_from(TASKS), JSON)
def test_any_value_is_read_or_refused(task: str, job: object) -> None:
    assert_read_or_refused(task, job)


@given(st.data(), st.sampled_from(TASKS))
def test_an_example_with_any_value_in_it_is_read_or_refused(data: st.DataObject, task: str) -> None:
    names = data.draw(st.lists(st.sampled_from(field_names(task)), min_size=1, max_size=2))

    assert_read_or_refused(
        task, {**EXAMPLES[task], **{name: data.draw(JSON | st.lists(TEXTS, min_size=1)) for name in names}}
    )


@given(st.text(st.characters() | st.sampled_from('@.<>"\\[]:;, \u200b'), max_size=60), TEXTS)
def test_any_text_around_an_at_sign_is_read_or_refused(local: str, domain: str) -> None:
    for to in (f"{local}@example.test", f"ada@{domain}", f"ada@{domain}.test", f"{local}@{domain}"):
        assert_read_or_refused("email.send", email_job(to=to))


@given(
    st.lists(st.text(st.characters() | st.sampled_from("{} ")), max_size=4), st.dictionaries(TEXTS, TEXTS, max_size=4)
)
def test_any_template_is_filled_or_refused(parts: list[str], values: dict[str, str]) -> None:
    template = "{{x}}".join(parts)
    recipients = [{"to": "ada@x.test", "values": values}, {"to": "eve@x.test", "values": {**values, "x": "{{x}}"}}]
    email = {"sender": "john", "subject": template, "html": template, "recipients": recipients}

    assert_read_or_refused("email.send_many", email)


def patterns(schema: object) -> Iterator[str]:
    """Every regular expression that pydantic matches, in its own schema of a message."""
    if isinstance(schema, dict):
        if schema.get("type") == "str" and "pattern" in schema:
            yield schema["pattern"]
        for part in schema.values():
            yield from patterns(part)
    elif isinstance(schema, (list, tuple)):
        for part in schema:
            yield from patterns(part)


@pytest.mark.parametrize("task", MESSAGES)
def test_what_does_not_match_a_pattern_is_explained_in_words(task: str) -> None:
    found = set(patterns(MESSAGES[task].__pydantic_core_schema__))

    assert found
    assert found <= set(PATTERN_WORDS)


@pytest.mark.parametrize(
    ("job", "sentence"),
    [
        ({"to": "0171 5678"}, "`to`: must be a number with a plus and its country code, such as +4915112345678."),
        ({"sender": "a b"}, "`sender`: must be 1 to 64 letters, digits, and . _ : -."),
    ],
)
def test_a_refusal_shows_no_regular_expression(job: dict[str, str], sentence: str) -> None:
    with pytest.raises(Refused) as refused:
        parse("sms.send", {"job_id": "one", "sender": "mary", "to": "+4915112345678", "text": "Hello", **job})

    assert refused.value.detail == sentence
