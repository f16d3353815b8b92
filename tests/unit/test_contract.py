"""The contract as schemas: kept as it is made, and true of the models, of the examples, and of what Celery writes."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import regress
from celery import Celery
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator, Draft202012Validator, ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend
from pydantic import ValidationError as Invalid

from models.database.engine import Database
from models.messages.answers import forms_of, refusal
from models.messages.schemas import answer_schema, message_schema
from models.messages.wire import MESSAGES, SEND_TASKS
from tasks.contract import asyncapi, keeps_answer
from tasks.queues import ROUTES
from tests.fakes import Clock, answer, make_context
from tests.flows.any_message import VALUES
from tests.unit.contract_story import AT, answers_to_examples
from tests.unit.wire import EXAMPLES, EXAMPLES_FOLDER, field_names
from worker.broker.parts import EMBEDDED, HEADERS
from worker.cli.contract import contract, contract_files

FOLDER = Path(__file__).parents[2] / "docs/contract"
ANSWERS_OF_EXAMPLES = {task: json.loads((EXAMPLES_FOLDER / f"{task}.json").read_text())["answer"] for task in EXAMPLES}
DOCUMENT = asyncapi()
SCHEMAS = DOCUMENT["components"]["schemas"]


def matches(_: Validator, pattern: str, text: Any, __: Any) -> Iterator[ValidationError]:
    """Match a pattern as JavaScript does, as JSON Schema wants it. No model takes a lone surrogate anyhow."""
    if isinstance(text, str):
        paired = text.encode("utf-8", "replace").decode()
        if regress.Regex(pattern, "u").find(paired) is None:
            yield ValidationError("does not match")


Draft2020 = extend(Draft202012Validator, {"pattern": matches})
Draft7 = extend(Draft7Validator, {"pattern": matches})
VALIDATORS = {task: Draft2020(message_schema(task)) for task in MESSAGES}
ANSWER_VALIDATORS = {task: Draft2020(answer_schema(task)) for task in MESSAGES}


def resolved(schema: Any) -> Draft7Validator:
    """Give the validator of a schema in the AsyncAPI document, whose schemas are those of draft 7."""
    return Draft7({**schema, "components": {"schemas": SCHEMAS}})


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_what_is_kept_is_what_the_command_makes() -> None:
    kept = {path.name: path.read_text() for path in FOLDER.iterdir()}
    made = contract_files()

    assert kept.keys() == made.keys(), "run `postage contract --to docs/contract`"
    assert [name for name in made if kept[name] != made[name]] == [], "run `postage contract --to docs/contract`"


def test_the_answers_of_the_examples_are_real(sqlite_url: str) -> None:
    """Except for what differs each time: internal ids, and the hashes over them."""
    answers = answers_to_examples(Database(sqlite_url))

    assert {task: steady(answer) for task, answer in answers.items()} == {
        task: steady(answer) for task, answer in ANSWERS_OF_EXAMPLES.items()
    }, "run `python -m tests.unit.contract_story`"


def test_answers_have_every_field_that_is_in_their_types_and_no_other(sqlite_url: str) -> None:
    """Also those of a view that is asked otherwise than in its example."""
    database = Database(sqlite_url)
    answers_to_examples(database)
    context = make_context(database, clock=Clock(AT))
    asked = [
        ("views.usage", {"viewer": "john"}),
        ("views.statement", {"viewer": "peter", "of": "self"}),
        *(("views.statement", {"viewer": "john", "entry": entry}) for entry in ("email/0", "email/1", "email/2")),
        *(("views.statement", {"viewer": "peter", "of": "self", "entry": f"email/{seq}"}) for seq in (1, 2, 3)),
    ]
    answers = [(task, answer(context, task, given)) for task, given in asked]
    context.close()

    behind = ("order", "reversal", "adjustment", "messages")
    assert {name for _, fields in answers for name in behind if fields.get(name)} == set(behind)
    for task, fields in (*ANSWERS_OF_EXAMPLES.items(), *answers):
        form = forms_of(task)[-1 if "entry" in fields else 0]
        assert form.model_validate(fields).model_dump(exclude_unset=True) == fields
        ANSWER_VALIDATORS[task].validate(fields)


def steady(answer: Any) -> Any:
    return json.loads(re.sub(r'"([0-9a-f]{64}|[0-9a-f]{32})"', '"…"', json.dumps(answer)))


# -- schemas and models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", MESSAGES)
def test_examples_are_valid_by_the_schemas(task: str) -> None:
    VALIDATORS[task].validate(EXAMPLES[task])
    ANSWER_VALIDATORS[task].validate(ANSWERS_OF_EXAMPLES[task])
    ANSWER_VALIDATORS[task].validate(refusal(task, EXAMPLES[task], "not_permitted", "No."))


@pytest.mark.parametrize("task", MESSAGES)
def test_schemas_are_valid_in_both_drafts(task: str) -> None:
    for schema in (message_schema(task), answer_schema(task)):
        Draft202012Validator.check_schema(schema)
        Draft7Validator.check_schema({**schema, "$schema": "http://json-schema.org/draft-07/schema#"})


def test_schemas_have_nothing_that_draft_7_does_not_know() -> None:
    for part in parts(SCHEMAS):
        assert "$ref" not in part or len(part) == 1, "draft 7 ignores what stands beside a reference"
        assert not part.keys() & {"prefixItems", "dependentRequired", "unevaluatedProperties"}


def parts(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
        for part in schema.values():
            yield from parts(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from parts(part)


LONG = "a" * 64
EDGES = (
    *("", "a", LONG, LONG + "a", "a@b.example", "Ann <a@b.example>", '"A, B" <a@b.example>', "a\u0085@b.example"),
    *("a@b\n", "news-7/0", "news-7/1000", "news-7\n", "+31612345678", "+31", "12345", "Acme 24", "ab", " Acme", "é"),
    *("2026-11-23\n", "2026-11-23", "20261123", "2026-W48-1", "2026-11-23 10:00:00.5+01:00", "11/23/2026", "\x85"),
    *("EUR", "eur", "XXX", "owner", "self", "refund", "email:5,sms:5", "email/5", "view_user_list", "\x1b", "{{a}}"),
    *(["a@b.example"], [], ["a@b.example"] * 100, ["a@b.example"] * 101, {"email": 1}, {"sms": 0}, {"email": -1}, {}),
    *({"é": "x"}, {"a b": "x"}, {"a": "\n"}, {"X-A": "b"}, {"List-Id": "x"}, {"name": ""}, {"_.-": "x"}, {"१": "x"}),
    *(0, 1, -1, 1_000, 1_001, 10**9, 10**9 + 1, 10**15 + 1, 2**63 - 1, 2**63, 1.0, True, None),
)
"""Values at, and just beyond, the limits of fields."""


@st.composite
def jobs(draw: st.DrawFn) -> tuple[str, Any]:
    """Give a task, and its example with one or two fields changed, gone or new."""
    task = draw(st.sampled_from(tuple(MESSAGES)))
    job = dict(EXAMPLES[task])
    for name in draw(st.lists(st.sampled_from(field_names(task)), min_size=1, max_size=2)):
        job.pop(name, None)
        if draw(st.integers(0, 4)):
            job[name] = draw(st.sampled_from(EDGES) | st.sampled_from(EDGES) | st.text(max_size=5) | VALUES)
    return task, job


@settings(max_examples=300)
@given(jobs())
def test_what_a_model_takes_is_valid_by_its_schema(of_task: tuple[str, Any]) -> None:
    """So what a schema refuses, a worker refuses."""
    task, job = of_task
    try:
        MESSAGES[task].model_validate(job)
    except (Invalid, RecursionError):
        return
    VALIDATORS[task].validate(job)


@given(st.sampled_from([task for task in MESSAGES if task.startswith("views.")]), st.datetimes(), st.data())
def test_every_time_that_a_view_takes_is_valid_by_its_schema(task: str, at: Any, data: st.DataObject) -> None:
    form = data.draw(
        st.sampled_from(("%Y-%m-%d", "%Y%m%d", "%G-W%V-%u", "%GW%V%u", "%Y-%m-%dT%H:%M", "%Y%m%dT%H%M%S", "%G-W%V", ""))
    )
    job = {"viewer": "mary", "since": at.strftime(form) if form else at.isoformat()}
    try:
        MESSAGES[task].model_validate({**EXAMPLES[task], **job})
    except Invalid:
        return
    VALIDATORS[task].validate({**EXAMPLES[task], **job})


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        ("email.send", {"colour": "red"}),
        ("email.send", {"sender": "a b"}),
        ("email.send", {"sender": "mary\n"}),
        ("email.send", {"to": []}),
        ("email.send", {"to": ["a@b.example"] * 101}),
        ("email.send", {"to": "nobody"}),
        ("email.send", {"reply_to": ["a@b.example"] * 11}),
        ("email.send", {"subject": "a\r\nBcc: b@b.example"}),
        ("email.send", {"subject": "a" * 901}),
        ("email.send", {"text": None, "html": None}),
        ("email.send", {"text": "\x00"}),
        ("email.send", {"headers": {"X A": "b"}}),
        ("email.send", {"headers": {"X-A": "b\nc"}}),
        ("email.send_many", {"recipients": []}),
        ("email.send_many", {"recipients": [{"to": "a@b.example"}] * 501}),
        ("email.send_many", {"recipients": [{"to": "a@b.example", "values": {"a b": "c"}}]}),
        ("email.send_many", {"recipients": [{"to": "a@b.example", "name": "Ann"}]}),
        ("sms.send", {"to": "0171 5678"}),
        ("sms.send", {"from": "ab"}),
        ("sms.send", {"from": "123 456"}),
        ("credits.purchase", {"plan": "small"}),
        ("credits.purchase", {"amount": None}),
        ("credits.purchase", {"amount": 19.99}),
        ("credits.purchase", {"amount": "1999"}),
        ("credits.purchase", {"credits": {"email": 0}}),
        ("credits.purchase", {"credits": {"email": -1}}),
        ("credits.purchase", {"currency": "XXX"}),
        ("credits.purchase", {"credit_to": "peter"}),
        ("credits.purchase", {"billing": {"a b": "c"}}),
        ("credits.adjust", {"credits": {}}),
        ("credits.adjust", {"credits": {"email": 0, "sms": 0}}),
        ("messages.cancel", {"sender": "mary"}),
        ("messages.cancel", {"job_id": None}),
        ("roles.save", {"rights": ["everything"]}),
        ("users.save", {"version": -1}),
        ("views.usage", {"page": 0}),
        ("views.usage", {"since": "yesterday"}),
        ("views.message", {"job_id": "news-7/1000"}),
        ("views.statement", {"next": "57"}),
    ],
)
def test_a_schema_refuses_what_it_can_say(task: str, fields: dict[str, Any]) -> None:
    job = {**EXAMPLES[task], **fields}

    assert not VALIDATORS[task].is_valid(job)
    with pytest.raises(Invalid):
        MESSAGES[task].model_validate(job)


# -- the document -----------------------------------------------------------------------------------------------------


def test_each_task_is_received_from_its_queue_and_answered_if_its_answer_is_kept() -> None:
    assert DOCUMENT["operations"].keys() == MESSAGES.keys()
    for task, operation in DOCUMENT["operations"].items():
        channel = f"#/channels/{ROUTES[task]}"
        assert operation["channel"] == {"$ref": channel}
        assert operation["messages"] == [{"$ref": f"{channel}/messages/{task}"}]
        assert ("reply" in operation) == keeps_answer(task) == (task not in SEND_TASKS)


@pytest.mark.parametrize("name", DOCUMENT["components"]["messages"])
def test_the_examples_in_the_document_are_valid_by_it(name: str) -> None:
    message = DOCUMENT["components"]["messages"][name]
    for example in message.get("examples", ()):
        resolved(message["payload"]).validate(example["payload"])
        resolved(message.get("headers", {})).validate(example.get("headers", {}))


@pytest.mark.parametrize("task", MESSAGES)
def test_what_celery_writes_is_valid_by_the_document(task: str) -> None:
    messages = DOCUMENT["components"]["messages"]

    written = written_by_celery(task)

    resolved({"$ref": "#/components/schemas/RedisMessage"}).validate(written)
    resolved(messages[task]["payload"]).validate(json.loads(base64.b64decode(written["body"])))
    assert [name for name in MESSAGES if resolved(messages[name]["headers"]).is_valid(written["headers"])] == [task]


def written_by_celery(task: str) -> Any:
    """Give the message that Celery makes of an example: kombu's transport in memory keeps it as it is on the wire."""
    queue = str(ROUTES[task])
    with (
        Celery("outside", broker="memory://", set_as_current=False) as app,
        app.connection_for_write() as connection,
    ):
        app.send_task(task, [EXAMPLES[task]], queue=queue, expires=60)
        return connection.default_channel._get(queue)


def test_headers_are_those_that_a_worker_looks_at() -> None:
    assert SCHEMAS["TaskHeaders"]["properties"].keys() - {"task", "id", "lang", "eta", "expires", "postage"} == (
        HEADERS.keys()
    )
    assert SCHEMAS["Afterwards"]["properties"].keys() == EMBEDDED.keys()


@pytest.mark.parametrize("task", MESSAGES)
def test_every_form_of_an_answer_is_in_the_document(task: str) -> None:
    assert {form.__name__ for form in forms_of(task)} <= SCHEMAS.keys()


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_the_document_and_each_schema(tmp_path: Path) -> None:
    def shown(*words: str) -> Any:
        ended = CliRunner().invoke(contract, words)
        assert ended.exit_code == 0, ended.output
        return json.loads(ended.output)

    assert shown() == DOCUMENT
    assert shown("sms.send") == message_schema("sms.send")
    assert shown("views.statement", "--answer") == answer_schema("views.statement")


def test_the_command_writes_every_file(tmp_path: Path) -> None:
    ended = CliRunner().invoke(contract, ["--to", str(tmp_path / "new/folder")])

    assert ended.exit_code == 0, ended.output
    assert {path.name: path.read_text() for path in (tmp_path / "new/folder").iterdir()} == contract_files()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--answer"], "--answer needs the name of a TASK."),
        (["sms.send", "--to", "x"], "--to writes everything: leave out TASK."),
        (["--to", "/dev/null/x"], "The contract cannot be written into /dev/null/x: Not a directory."),
        (["sms.sent"], "'sms.sent' is not one of"),
    ],
)
def test_the_command_says_what_is_wrong(words: list[str], sentence: str) -> None:
    ended = CliRunner().invoke(contract, words)

    assert ended.exit_code != 0
    assert sentence in ended.output
