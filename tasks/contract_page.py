"""The wire contract as a page for people: each task with its fields, types, limits, an example and its answer."""

import json
from collections.abc import Iterator

from models.messages.base import Json
from models.messages.schemas import answer_schema, message_schema
from models.messages.wire import MESSAGES
from tasks.contract import example, keeps_answer
from tasks.queues import ROUTES

INTRODUCTION = """\
# The wire contract

`postage contract --to docs/contract` makes this page and the files beside it from the code that workers run.

- [asyncapi.json](asyncapi.json): the whole contract as AsyncAPI 3, with the headers and the envelope of messages.
- A JSON Schema (2020-12) of each task's object, and of its answer: see below.

[Producers](../producers.md) says what fields and answers mean, and how to enqueue from any language.
Here is what a field may be.

Null is the same as a field that is left out.
A whole number is written without a fraction: `5`, not `5.0`.
Unknown fields are refused.
Fields may be added to answers: ignore those that you do not know.
"""
ANSWER_KEPT = (
    "The answer is kept for a while, in the field `result` of the JSON text in the key `celery-task-meta-<task id>`."
)
ANSWER_ELSEWHERE = "No Celery result is kept: [`views.message`](#viewsmessage) has the answer."
VALUES_SHOWN = 12
"""Allowed values that a table lists; of more, the schema has the list."""


def contract_page() -> str:
    """Return the page, in Markdown."""
    contents = "".join(f"- [`{task}`](#{_anchor(task)}): queue `{ROUTES[task]}`\n" for task in MESSAGES)
    return "\n".join([INTRODUCTION, contents, *map(_section, MESSAGES)])


def _section(task: str) -> str:
    message, answer = message_schema(task), answer_schema(task)
    key = MESSAGES[task].key
    schemas = f"[Schema]({task}.json), [schema of the answer]({task}.answer.json)"
    where = [
        f"Queue `{ROUTES[task]}`.",
        f"Key: `{key}`." if key else "It has no key.",
        f"{schemas}, and [what it means](../producers.md#{_anchor(task)}).",
    ]
    shown = example(task)
    return "\n".join(
        [
            f"## `{task}`\n",
            _sentences(message["description"]) + "\n",
            "\n".join(where) + "\n",
            *_tables(message),
            _json(shown["job"]),
            f"{ANSWER_KEPT if keeps_answer(task) else ANSWER_ELSEWHERE}\n",
            *_answer_tables(answer),
            _json(shown["answer"]),
        ]
    )


def _sentences(description: str) -> str:
    """Return what is said of a message, without the name of its task."""
    said = description.partition(": ")[2]
    return said[0].upper() + said[1:]


def _anchor(heading: str) -> str:
    return heading.replace(".", "")


def _json(value: Json) -> str:
    return f"```json\n{json.dumps(value, indent=2, ensure_ascii=False)}\n```\n"


def _tables(schema: Json) -> Iterator[str]:
    """Yield a table of the fields of a message, and one for each object in it."""
    yield _table(schema)
    for name, inner in schema.get("$defs", {}).items():
        yield f"`{name}`: {inner['description']}\n"
        yield _table(inner)


def _table(schema: Json) -> str:
    needed = schema.get("required", ())
    rows = [
        f"| `{name}` | {'yes' if name in needed else 'no'} | {_type(field)} | {_limits(field)} |"
        for name, field in schema["properties"].items()
    ]
    return "\n".join(["| field | needed | type | limits |", "|---|---|---|---|", *rows]) + "\n"


def _answer_tables(schema: Json) -> Iterator[str]:
    """Yield a table of the fields of each form of an answer, and one for each object in it."""
    definitions = dict(schema.get("$defs", {}))
    forms = [definitions.pop(_name(form)) for form in schema["anyOf"]] if "anyOf" in schema else [schema]
    for form in forms:
        yield _answer_table("answer", form)
    for name, inner in definitions.items():
        yield f"`{name}`: {inner['description']}\n"
        yield _answer_table("field", inner)


def _answer_table(heading: str, schema: Json) -> str:
    rows = [f"| `{name}` | {_type(field, null=True)} |" for name, field in schema["properties"].items()]
    return "\n".join([f"| {heading} | type |", "|---|---|", *rows]) + "\n"


def _name(reference: Json) -> str:
    return str(reference["$ref"]).removeprefix("#/$defs/")


def _type(schema: Json, *, null: bool = False) -> str:  # noqa: PLR0911  a table
    """Return the type of a schema in words; that it may be null too only if `null`."""
    match schema:
        case {"$ref": _}:
            return f"`{_name(schema)}`"
        case {"const": value}:
            return f"`{json.dumps(value)}`"
        case {"enum": values, "type": _} if len(values) <= VALUES_SHOWN:
            return ", ".join(f"`{value}`" for value in values)
        case {"enum": _, "anyOf": _}:
            return "[reason](../producers.md#reasons) or null"
        case {"type": "string", "format": form}:
            return {"date-time": "time", "date": "day"}[form]
        case {"anyOf": schemas} if "type" not in schema:
            return " or ".join(_type(each, null=null) for each in schemas if null or each != {"type": "null"})
        case {"type": "array", "items": items}:
            return f"list of {_type(items)}"
        case {"type": "object", "additionalProperties": dict(values)}:
            return f"object of {_type(values)}"
        case {"type": str(name)}:
            return {"string": "text", "integer": "whole number"}.get(name, name)
    raise ValueError(f"There are no words for {schema} yet.")


def _limits(schema: Json) -> str:
    """Return what a value must be besides its type."""
    parts = []
    inner = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    if "type" not in schema and inner:
        parts.append(_limits(inner[-1]))
    parts.append(schema.get("description", ""))
    parts += [
        _between(schema, low, high, unit)
        for low, high, unit in (
            ("minimum", "maximum", ""),
            ("minLength", "maxLength", " characters"),
            ("minItems", "maxItems", " items"),
            ("minProperties", "maxProperties", " names"),
        )
        if high in schema
    ]
    if "exclusiveMaximum" in schema:
        parts.append(f"Below {schema['exclusiveMaximum']:,}.")
    each = schema.get("items") or schema.get("additionalProperties")
    if isinstance(each, dict) and _limits(each):
        parts.append(f"Each: {_limits(each)}")
    if schema.get("default") is not None:
        parts.append(f"Default: `{json.dumps(schema['default'])}`.")
    return " ".join(filter(None, parts))


def _between(schema: Json, low: str, high: str, unit: str) -> str:
    if low in schema:
        return f"{schema[low]:,} to {schema[high]:,}{unit}."
    return f"At most {schema[high]:,}{unit}."
