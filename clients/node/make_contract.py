# ruff: noqa: INP001  a script stands alone
"""`python clients/node/make_contract.py` writes the wire contract for Node: `lib/contract.js` and its types.

There is one source of truth, and it is the server's: its messages and answers, as the JSON schemas that
`postage contract` shows. What this writes is kept in the repository, so that the package needs no build; a test
compares it with what this would write now.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from models.errors import Reason  # noqa: E402
from models.messages.answers import forms_of  # noqa: E402
from models.messages.base import Json  # noqa: E402
from models.messages.fields import ID  # noqa: E402
from models.messages.schemas import all_schemas  # noqa: E402
from models.messages.wire import MESSAGES, SEND_TASKS  # noqa: E402
from tasks.job_ids import ID_FIELDS, USER_FIELDS  # noqa: E402
from tasks.queues import ROUTES  # noqa: E402

MADE = "// Made by clients/node/make_contract.py from the server's own messages: change them, and run it again.\n"
REASONS = list(map(str, Reason))
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
        case {"enum": values} if values == [*REASONS, None]:
            return "Reason | null"
        case {"enum": values}:
            return " | ".join(map(json.dumps, values))
        case {"type": str(name)} if name in WORDS:
            return WORDS[name]
        case {"anyOf": schemas}:
            return " | ".join(dict.fromkeys(map(type_of, schemas)))
        case {"type": "array", "items": items}:
            return f"Array<{type_of(items)}>"
        case {"type": "object", "additionalProperties": dict(values)}:
            return f"Record<string, {type_of(values)}>"
        case {"type": "object", "additionalProperties": True}:
            return "Record<string, unknown>"
    raise ValueError(f"There is no TypeScript for {schema} yet.")


def interface(name: str, schema: Json) -> str:
    """Return the TypeScript interface of an object."""
    needed = schema.get("required", ())
    comment = "\n".join(f" * {line}".rstrip() for line in schema["description"].splitlines())
    fields = [
        f"  {field}{'' if field in needed else '?'}: {type_of(of)};" for field, of in schema["properties"].items()
    ]
    if schema.get("additionalProperties") is True:
        fields.append("  [other: string]: unknown;")
    return "\n".join([f"/**\n{comment}\n */", f"export interface {name} {{", *fields, "}\n"])


def schemas() -> dict[str, Json]:
    """Return the schema of each object, by name. The client wants the `job_id` of what is sent, as in Python."""
    found = all_schemas("#/$defs/{model}")
    for name in {MESSAGES[task].__name__ for task in SEND_TASKS}:
        found[name]["properties"]["job_id"] = {"type": "string"}
        found[name]["required"] = ["job_id", *found[name]["required"]]
    return found


def types() -> str:
    """Return the text of `lib/contract.d.ts`."""
    messages = {task: message.__name__ for task, message in MESSAGES.items()}
    answers = {task: " | ".join(form.__name__ for form in forms_of(task)) for task in MESSAGES}
    return "\n".join(
        [
            MADE,
            *(interface(name, schema) for name, schema in schemas().items()),
            mapping("The message of each task.", "Messages", messages),
            mapping("The answer of each task. Later releases may add fields.", "Answers", answers),
            "/** Why a job was refused, or failed. */",
            f"export type Reason = {' | '.join(map(json.dumps, REASONS))};",
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
    by_name = schemas()
    messages = {task: by_name[message.__name__] for task, message in MESSAGES.items()}
    needed = {task: schema["required"] for task, schema in messages.items()}
    optional = {
        task: [name for name in schema["properties"] if name not in needed[task]] for task, schema in messages.items()
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
