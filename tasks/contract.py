"""The wire contract as one AsyncAPI 3 document: what is pushed onto which Redis list, and where an answer is read.

Everything in it is made from the messages, the answers and the routes, so it says what a worker does.
https://www.asyncapi.com/docs/reference/specification/v3.1.0
"""

import json
from importlib.metadata import version
from importlib.resources import files
from typing import Final

from models.messages.answers import forms_of
from models.messages.base import Json
from models.messages.schemas import all_schemas
from models.messages.signatures import HEADER
from models.messages.wire import MESSAGES, SEND_TASKS
from tasks.client import NOTHING_AFTERWARDS
from tasks.job_ids import redacted_args
from tasks.queues import ROUTES

ANSWERS_CHANNEL: Final = "answers"
EXAMPLE_ID: Final = "0b3c6f5e-6f0e-4c39-9d58-1f4c2a7e9b11"
"""The Celery task id in examples."""

TEXT_OR_NULL: Final[Json] = {"type": ["string", "null"]}
COUNT_OR_NULL: Final[Json] = {"type": ["integer", "null"], "minimum": 0, "maximum": 1_000}
SIGNATURES_OR_NULL: Final[Json] = {"type": ["array", "null"], "items": {"type": "object"}}

PROTOCOL: Final[dict[str, Json]] = {
    "TaskHeaders": {
        "description": "Celery's headers of a task message, protocol 2 "
        "(https://docs.celeryq.dev/en/stable/internals/protocol.html). Others are ignored.",
        "type": "object",
        "required": ["task", "id"],
        "properties": {
            "task": {"type": "string", "description": "The task."},
            "id": {"type": "string", "description": "The Celery task id: a UUID, new for each message."},
            "root_id": TEXT_OR_NULL,
            "parent_id": TEXT_OR_NULL,
            "group": TEXT_OR_NULL,
            "group_index": COUNT_OR_NULL,
            "lang": TEXT_OR_NULL,
            "origin": TEXT_OR_NULL,
            "shadow": TEXT_OR_NULL,
            "argsrepr": {
                **TEXT_OR_NULL,
                "description": "What events may show of the arguments: the ids of job and sender, and nothing else.",
            },
            "kwargsrepr": TEXT_OR_NULL,
            "retries": COUNT_OR_NULL,
            "timelimit": {
                "type": ["array", "null"],
                "items": {"type": ["number", "null"]},
                "minItems": 2,
                "maxItems": 2,
            },
            "eta": {
                **TEXT_OR_NULL,
                "description": "The job is not done before this ISO 8601 time, at most 366 days ahead.",
            },
            "expires": {
                **TEXT_OR_NULL,
                "description": "A job that no worker has begun by this ISO 8601 time is `refused` as `expired`.",
            },
            "ignore_result": {
                "type": ["boolean", "null"],
                "description": "Not looked at: the task decides whether its answer is kept.",
            },
            "replaced_task_nesting": COUNT_OR_NULL,
            "stamped_headers": {"type": ["array", "null"], "items": {"type": "string"}},
            "stamps": {"type": ["object", "null"]},
            HEADER: {
                "description": "The producer's signature, where the queue asks for one: HMAC-SHA-256, in hexadecimal, "
                "of `postage-1`, key, task, id, `at` and the body, each on a line.",
                "type": ["object", "null"],
                "required": ["key", "at", "mac"],
                "properties": {
                    "key": {"type": "string", "description": "The name of the producer's key."},
                    "at": {"type": "integer", "description": "The time, in seconds since 1970."},
                    "mac": {"type": "string"},
                },
            },
        },
    },
    "Afterwards": {
        "description": "What Celery is to send after the job, as signatures of tasks.",
        "type": "object",
        "properties": {
            "callbacks": SIGNATURES_OR_NULL,
            "errbacks": SIGNATURES_OR_NULL,
            "chain": SIGNATURES_OR_NULL,
            "chord": {"type": ["object", "null"]},
        },
    },
    "RedisMessage": {
        "description": "The JSON text that is pushed onto a list: kombu's form of a message with headers and payload.",
        "type": "object",
        "required": ["body", "headers", "properties", "content-type", "content-encoding"],
        "properties": {
            "body": {"type": "string", "description": "The payload as JSON in UTF-8, and that in base64."},
            "headers": {"$ref": "#/components/schemas/TaskHeaders"},
            "content-type": {"const": "application/json"},
            "content-encoding": {"const": "utf-8"},
            "properties": {
                "type": "object",
                "required": ["body_encoding", "delivery_tag", "delivery_info"],
                "properties": {
                    "body_encoding": {"const": "base64"},
                    "delivery_tag": {"type": "string", "description": "A UUID, new for each message."},
                    "delivery_info": {
                        "type": "object",
                        "required": ["exchange", "routing_key"],
                        "properties": {
                            "exchange": {"type": "string"},
                            "routing_key": {"type": "string", "description": "The queue."},
                        },
                    },
                    "correlation_id": {"type": "string", "description": "The Celery task id again."},
                    "reply_to": {"type": "string"},
                    "delivery_mode": {"type": "integer"},
                    "priority": {"type": "integer", "minimum": 0, "maximum": 9},
                },
            },
        },
    },
}
"""What Celery and kombu put around the object of a task."""

DESCRIPTION: Final = """\
Postage sends email and SMS, and charges each message to prepaid credits that users can share.

A producer pushes (`LPUSH`) one JSON text, a `RedisMessage`, onto the Redis list that has the queue's name.
Its `headers` are those of the message here. Its `body` is the message's payload, in base64: a list of the positional
arguments, which are one object, the keyword arguments, which are none, and what is to be done afterwards.
A `priority` of 3, 6 or 9 is a list of its own, named by the queue, the characters U+0006 and U+0016, and the number.

Schemas are JSON Schema as draft 7 and 2020-12 have it in common. What they accept may still be refused, for what their
descriptions say in words, and a whole number must be written without a fraction: `5`, not `5.0`.
Null is the same as a field that is left out. Fields may be added to answers: ignore those that you do not know.
"""


def asyncapi() -> Json:
    """Return the AsyncAPI document: channels are queues, operations are tasks."""
    return {
        "asyncapi": "3.1.0",
        "info": {
            "title": "Postage",
            "version": version("postage"),
            "description": DESCRIPTION,
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "broker": {
                "host": "{address}",
                "protocol": "redis",
                "description": "Redis or Valkey.",
                "variables": {"address": {"default": "127.0.0.1:6379", "description": "Host and port."}},
            }
        },
        "channels": {**{queue: _queue(queue) for queue in _queues()}, ANSWERS_CHANNEL: _answers()},
        "operations": {task: _operation(task) for task in MESSAGES},
        "components": {
            "schemas": all_schemas("#/components/schemas/{model}") | PROTOCOL,
            "messages": {
                **{task: _message(task) for task in MESSAGES},
                **{_answer_name(task): _answer(task) for task in MESSAGES if keeps_answer(task)},
                "failure": _FAILURE,
            },
            "correlationIds": {
                "task": {"location": "$message.header#/id", "description": "The Celery task id."},
                "answered": {"location": "$message.payload#/task_id", "description": "The Celery task id."},
            },
        },
    }


def keeps_answer(task: str) -> bool:
    """Whether the answer of a task can be read from the broker for a while. `views.message` has those of the others."""
    return task not in SEND_TASKS


def example(task: str) -> Json:
    """Return the example of a task: its `job`, and an `answer` to it."""
    text = files("models.messages").joinpath("examples", f"{task}.json").read_text(encoding="utf-8")
    read: Json = json.loads(text)
    return read


def _queues() -> list[str]:
    return list(dict.fromkeys(str(ROUTES[task]) for task in MESSAGES))


def _queue(queue: str) -> Json:
    tasks = [task for task in MESSAGES if ROUTES[task] == queue]
    return {
        "address": queue,
        "description": "A Redis list of `RedisMessage`s. If the installation has a prefix of keys, it comes first.",
        "messages": {task: _reference("messages", task) for task in tasks},
    }


def _answers() -> Json:
    names = [*(_answer_name(task) for task in MESSAGES if keeps_answer(task)), "failure"]
    return {
        "address": "celery-task-meta-{task_id}",
        "description": "A Redis key, which holds the answer for a while; a channel of its name publishes it.",
        "parameters": {"task_id": {"description": "The Celery task id.", "location": "$message.header#/id"}},
        "messages": {name: _reference("messages", name) for name in names},
    }


def _operation(task: str) -> Json:
    channel = f"#/channels/{ROUTES[task]}"
    operation = {
        "action": "receive",
        "title": task,
        "summary": summary(task),
        "channel": {"$ref": channel},
        "messages": [{"$ref": f"{channel}/messages/{task}"}],
    }
    if not keeps_answer(task):
        return operation
    answers = f"#/channels/{ANSWERS_CHANNEL}"
    replies = [{"$ref": f"{answers}/messages/{name}"} for name in (_answer_name(task), "failure")]
    return operation | {"reply": {"channel": {"$ref": answers}, "messages": replies}}


def summary(task: str) -> str:
    """Return what a task is about, in a sentence or two."""
    return " ".join((MESSAGES[task].__doc__ or "").partition("\n\n")[0].split())


def _message(task: str) -> Json:
    message = MESSAGES[task]
    job = example(task)["job"]
    headers = {"task": task, "id": EXAMPLE_ID, "argsrepr": redacted_args([job])}
    return {
        "name": task,
        "title": message.__name__,
        "summary": summary(task),
        "correlationId": _reference("correlationIds", "task"),
        "headers": {
            "type": "object",
            "properties": {"task": {"const": task}},
            "allOf": [_reference("schemas", "TaskHeaders")],
        },
        "payload": {
            "type": "array",
            "items": [
                {"type": "array", "items": _reference("schemas", message.__name__), "minItems": 1, "maxItems": 1},
                {"type": "object", "maxProperties": 0},
                _reference("schemas", "Afterwards"),
            ],
            "minItems": 3,
            "maxItems": 3,
        },
        "examples": [{"name": task, "headers": headers, "payload": [[job], {}, NOTHING_AFTERWARDS]}],
        **({} if message.key is None else {"x-idempotency-key": message.key}),
    }


def _answer_name(task: str) -> str:
    return f"{task}.answer"


def _answer(task: str) -> Json:
    forms = [_reference("schemas", form.__name__) for form in forms_of(task)]
    return {
        "name": _answer_name(task),
        "title": f"The answer of {task}",
        "correlationId": _reference("correlationIds", "answered"),
        "payload": _result("SUCCESS", forms[0] if len(forms) == 1 else {"anyOf": forms}),
        "examples": [
            {
                "name": _answer_name(task),
                "payload": {"task_id": EXAMPLE_ID, "status": "SUCCESS", "result": example(task)["answer"]},
            }
        ],
    }


def _result(status: str, result: Json) -> Json:
    return {
        "type": "object",
        "required": ["task_id", "status", "result"],
        "properties": {"task_id": {"type": "string"}, "status": {"const": status}, "result": result},
    }


_FAILURE: Final[Json] = {
    "name": "failure",
    "title": "A fault",
    "summary": "A fault outlasted all retries, so nobody knows whether the job was done: send it again as it is.",
    "correlationId": {"$ref": "#/components/correlationIds/answered"},
    "payload": _result("FAILURE", {"type": "object"}),
}


def _reference(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}
