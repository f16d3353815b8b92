# ruff: noqa: INP001  a script stands alone
"""`python clients/node/make_contract.py` writes the wire contract for Node: `lib/contract.js` and its types.

There is one source of truth, and it is the server's: its messages and answers, as JSON schemas. What this writes is
kept in the repository, so that the package needs no build; a test compares it with what this would write now.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from models.messages.answers import ANSWERS, EntryAnswer  # noqa: E402
from models.messages.base import Json  # noqa: E402
from models.messages.fields import ID  # noqa: E402
from models.messages.wire import MESSAGES, SEND_TASKS  # noqa: E402
from tasks.job_ids import ID_FIELDS, USER_FIELDS  # noqa: E402
from tasks.queues import ROUTES  # noqa: E402

MADE = "// Made by clients/node/make_contract.py from the server's own messages: change them, and run it again.\n"
WORDS = {"string": "string", "integer": "number", "boolean": "boolean", "null": "null"}
"""TypeScript's names of JSON's types."""


def type_of(schema: Json) -> str:  # noqa: PLR0911  a table
    """Return the TypeScript type of a JSON schema, as far as our messages use them.

    Limits are not in the type: a worker checks them.

    Raises
    ------
    ValueError
        If the schema has something new.

    """
    match schema:
        case {"$ref": str(reference)}:
            return reference.removeprefix("#/$defs/")
        case {"const": value}:
            return json.dumps(value)
        case {"enum": values}:
            return " | ".join(map(json.dumps, values))
        case {"anyOf": schemas}:
            return " | ".join(dict.fromkeys(map(type_of, schemas)))
        case {"type": "array", "items": items}:
            return f"Array<{type_of(items)}>"
        case {"type": "object", "patternProperties": patterns}:
            [values] = patterns.values()
            return f"Record<string, {type_of(values)}>"
        case {"type": "object", "additionalProperties": dict(values)}:
            return f"Record<string, {type_of(values)}>"
        case {"type": "object", "additionalProperties": True}:
            return "Record<string, unknown>"
        case {"type": str(name)} if name in WORDS:
            return WORDS[name]
    raise ValueError(f"There is no TypeScript for {schema} yet.")


def interface(name: str, schema: Json) -> str:
    """Return the TypeScript interface of an object."""
    needed = schema.get("required", ())
    comment = "\n".join(f" * {line}".rstrip() for line in schema["description"].splitlines())
    fields = [
        f"  {field}{'' if field in needed else '?'}: {type_of(of)};" for field, of in schema["properties"].items()
    ]
    return "\n".join([f"/**\n{comment}\n */", f"export interface {name} {{", *fields, "}\n"])


def interfaces(schemas: list[Json]) -> Mapping[str, str]:
    """Return the interface of each object, by name, and of the objects in them.

    Raises
    ------
    ValueError
        If two objects have the same name.

    """
    found: dict[str, str] = {}
    for schema in schemas:
        for name, each in {**schema.get("$defs", {}), schema["title"]: schema}.items():
            text = interface(name, each)
            if found.setdefault(name, text) != text:
                raise ValueError(f"There are two {name}.")
    return found


def message_schema(task: str) -> Json:
    """Return the schema of a task's message. The client wants the `job_id` of what is sent, as in Python."""
    schema = MESSAGES[task].model_json_schema()
    if task in SEND_TASKS:
        schema["properties"]["job_id"] = {"type": "string"}
        schema["required"] = ["job_id", *schema["required"]]
    return schema


def types() -> str:
    """Return the text of `lib/contract.d.ts`."""
    messages = {task: message_schema(task) for task in MESSAGES}
    answers = {task: answer.model_json_schema() for task, answer in ANSWERS.items()}
    entry = EntryAnswer.model_json_schema()
    answer_names = {task: schema["title"] for task, schema in answers.items()}
    answer_names["views.statement"] += f" | {entry['title']}"
    return "\n".join(
        [
            MADE,
            *interfaces([*messages.values(), *answers.values(), entry]).values(),
            mapping("The message of each task.", "Messages", {task: of["title"] for task, of in messages.items()}),
            mapping("The answer of each task. Later releases may add fields.", "Answers", answer_names),
            "export type Task = keyof Messages;",
            "/** The tasks that send. They keep no result: `views.message` has their answer. */",
            f"export type SendTask = {' | '.join(map(json.dumps, SEND_TASKS))};",
            "export declare const QUEUES: Readonly<Record<Task, string>>;",
            "export declare const NEEDED: Readonly<Record<Task, readonly string[]>>;",
            "export declare const OPTIONAL: Readonly<Record<Task, readonly string[]>>;",
            "export declare const SEND_TASKS: readonly string[];",
            "export declare const ID: RegExp;",
            "export declare const ID_FIELDS: readonly string[];",
            "export declare const USER_FIELDS: readonly string[];",
            "",
        ]
    )


def mapping(comment: str, name: str, entries: Mapping[str, str]) -> str:
    """Return an interface that maps tasks to types."""
    return "\n".join(
        [f"/** {comment} */", f"export interface {name} {{", *(f'  "{k}": {v};' for k, v in entries.items()), "}\n"]
    )


def values() -> str:
    """Return the text of `lib/contract.js`."""
    schemas = {task: message_schema(task) for task in MESSAGES}
    needed = {task: schema["required"] for task, schema in schemas.items()}
    optional = {
        task: [field for field in schema["properties"] if field not in needed[task]] for task, schema in schemas.items()
    }
    tables: list[tuple[str, str, Any]] = [
        ("The queue of each task.", "QUEUES", {task: ROUTES[task] for task in MESSAGES}),
        ("The fields that a task's message must have.", "NEEDED", needed),
        ("The other fields that it may have.", "OPTIONAL", optional),
        ("The tasks that send.", "SEND_TASKS", SEND_TASKS),
        ("Ids of jobs, in the order in which they are looked for.", "ID_FIELDS", ID_FIELDS),
        ("Whose job it is, likewise.", "USER_FIELDS", USER_FIELDS),
    ]
    constants = [
        f"/** {comment} */\nexport const {name} = {json.dumps(value, indent=2)};\n" for comment, name, value in tables
    ]
    return "\n".join([MADE, f"/** What an id is. */\nexport const ID = /^{ID.pattern}$/;\n", *constants])


FILES = {"lib/contract.js": values, "lib/contract.d.ts": types}
"""The files, and what makes each of them."""

if __name__ == "__main__":
    for name, make in FILES.items():
        (HERE / name).write_text(make(), encoding="utf-8")
