"""Messages of every kind that somebody may put on a queue: good jobs, with anything in them changed, and garbage.

Each carries a mark, so that what became of it can be found.
"""

import base64
import bz2
import json
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from hypothesis import strategies as st

from tests.flows.bad_jobs import BEYOND_64_BITS, SURROGATE, nested
from tests.flows.outside import Json
from tests.unit.wire import EXAMPLES

QUEUES: Final = ("email", "sms", "bulk", "billing", "views", "upkeep")
OURS: Final = ("email.resume", "sms.resume", "upkeep.sweep", "upkeep.roll_up", "upkeep.audit")
"""Tasks that no producer sends."""
PEOPLE: Final = ("fuzz-owner", "fuzz-member")
PERSON_FIELDS: Final = ("sender", "buyer", "actor", "viewer", "user", "owner", "user_id")
PRIORITIES: Final = ("", "\x06\x163", "\x06\x166", "\x06\x169")
"""What kombu adds to the name of a queue's list for each priority."""


@dataclass(frozen=True)
class AnyMessage:
    """An item to be put on a list of Redis. `mark` is in it, also where nothing else of it can be read."""

    mark: str
    list: str
    item: bytes


TEXTS: Final = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ("", "\x00", "a\r\nX-Injected: yes", "{{name}}", "+4915112345678", "you@example.org", "x" * 5_000,
         "2020-01-01T00:00:00Z", "2999-01-01", "email", "mary", "-1", "null", SURROGATE)
    ),
)  # fmt: skip
SCALARS: Final = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from((0, -1, 10**6, BEYOND_64_BITS, -BEYOND_64_BITS, 1e308, float("inf"), float("nan"))),
    st.floats(),
    TEXTS,
)
VALUES: Final = st.one_of(
    SCALARS,
    st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3)),
    st.builds(nested, st.just(60)),
)

HEADER_NAMES: Final = (
    *("lang", "task", "id", "shadow", "eta", "expires", "group", "group_index", "retries", "timelimit", "root_id"),
    *("parent_id", "argsrepr", "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "stamped_headers"),
    *("stamps", "compression", "postage", "postage_refused", "postage_postponed", "postage_organization", "headers"),
    *("delivery_info", "reply_to", "correlation_id", "properties", "args", "kwargs", "redelivered", "method"),
)
PROPERTY_NAMES: Final = (
    *("correlation_id", "reply_to", "delivery_mode", "delivery_info", "priority", "body_encoding", "delivery_tag"),
    *("returns", "expiration", "headers", "message_id"),
)
EMBEDDED_NAMES: Final = ("callbacks", "errbacks", "chain", "chord", "signature")


def changed(draw: st.DrawFn, given: Any, names: tuple[str, ...], most: int) -> Any:
    """Give a copy of an object in which up to `most` fields, at any depth, are others, gone, or new."""
    copy = json.loads(json.dumps(given))
    for _ in range(draw(st.integers(0, most))):
        inner = copy
        while inner and isinstance(inner, (dict, list)):
            at: Any = draw(st.sampled_from(list(inner) if isinstance(inner, dict) else range(len(inner))))
            if isinstance(inner[at], (dict, list)) and inner[at] and draw(st.booleans()):
                inner = inner[at]
                continue
            match draw(st.sampled_from(("set", "remove", "add"))):
                case "set":
                    inner[at] = draw(VALUES)
                case "remove":
                    del inner[at]
                case "add" if isinstance(inner, dict):
                    inner[draw(st.sampled_from(names) | TEXTS)] = draw(VALUES)
                case _:
                    inner.append(draw(VALUES))  # type: ignore[union-attr]
            break
    return copy


def cut(draw: st.DrawFn, text: bytes) -> bytes:
    """Give the beginning of some bytes. How many there are may depend on the mark, which hypothesis does not draw."""
    return text[: len(text) * draw(st.integers(0, 1000)) // 1000]


@st.composite
def jobs(draw: st.DrawFn, task: str, mark: str) -> Any:
    """Give the object of a task: its example, under an id of its own and in the name of our people, changed."""
    job: Json = dict(EXAMPLES.get(task, {"org_id": 1, "attempts": {"x": 0}}))
    for field in PERSON_FIELDS:
        if field in job:
            job[field] = draw(st.sampled_from(PEOPLE))
    if task == "users.erase":
        job["user"] = "fuzz-stranger"  # else what is on record of other messages would be erased, as it must
    for field in job:
        if field.endswith("_id") and field not in PERSON_FIELDS:
            job[field] = mark
    return changed(draw, job, tuple(job), 3)


@st.composite
def signatures(draw: st.DrawFn) -> Any:
    """Give a task to be done after another, as Celery writes it, changed."""
    signature: Json = {
        "task": draw(st.sampled_from((*EXAMPLES, "shop.paid"))),
        "args": [],
        "kwargs": {},
        "options": {"queue": draw(st.sampled_from((*QUEUES, "shop")))},
        "subtask_type": None,
        "immutable": True,
    }
    return changed(draw, signature, ("chord_size", "options"), 2)


@st.composite
def bodies(draw: st.DrawFn, task: str, mark: str) -> bytes:
    """Give the body of a task message, before it is compressed."""
    embedded = dict.fromkeys(EMBEDDED_NAMES[:4])
    if draw(st.integers(0, 3)) == 0:
        embedded[draw(st.sampled_from(EMBEDDED_NAMES))] = draw(st.lists(signatures(), max_size=2) | VALUES)
    job = draw(jobs(task, mark))
    body: Any = draw(
        st.sampled_from(
            ([[job], {}, embedded],) * 12
            + ([[], job, embedded], [[job, job], {}, embedded], [[job], {"colour": "red"}, {}], [job], job, [[job], {}])
        )
    )
    if draw(st.integers(0, 9)) == 0:
        body = draw(VALUES)
    text = json.dumps(body, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    return cut(draw, text) if draw(st.integers(0, 19)) == 0 else text


COMPRESSIONS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "application/x-gzip": zlib.compress,
    "application/x-bz2": bz2.compress,
    "application/x-lzma": lzma.compress,
    "zstd": bytes,
    "gzip": lambda body: zlib.compress(body)[:-3],
}


@st.composite
def task_messages(draw: st.DrawFn, mark: str) -> bytes:
    """Give a message as Celery writes it, with anything in it changed."""
    task = draw(st.sampled_from((*EXAMPLES, *OURS, "email.send", "sms.send")))
    body = draw(bodies(task, mark))
    headers: Json = {"lang": "py", "task": task, "id": mark, "retries": 0, "argsrepr": "(…)", "kwargsrepr": "{}"}
    if draw(st.integers(0, 9)) == 0:
        headers["compression"] = draw(st.sampled_from(list(COMPRESSIONS)))
        body = COMPRESSIONS[headers["compression"]](body)
    if draw(st.booleans()):
        headers = changed(draw, headers, HEADER_NAMES, 3)
    message: Json = {
        "body": base64.b64encode(body).decode(),
        "content-type": draw(st.sampled_from(("application/json",) * 15 + ("application/x-python-serialize", ""))),
        "content-encoding": draw(st.sampled_from(("utf-8",) * 9 + ("binary", "utf-16", "latin-1", "nothing"))),
        "headers": headers,
        "properties": {
            "correlation_id": mark,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "email"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": mark,
        },
    }
    if draw(st.integers(0, 2)) == 0:
        message["properties"] = changed(draw, message["properties"], PROPERTY_NAMES, 2)
    if draw(st.integers(0, 9)) == 0:
        message = changed(draw, message, ("body", "headers", "properties", "content-type"), 2)
    if isinstance(message.get("headers"), dict):
        message["headers"]["mark"] = mark
    return json.dumps({**message, "mark": mark}, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


@st.composite
def garbage(draw: st.DrawFn, mark: str) -> bytes:
    """Give an item that is no message at all, or one that was cut or has bytes changed."""
    plain = draw(task_messages(mark))
    match draw(st.sampled_from(("bytes", "value", "cut", "flipped", "first protocol"))):
        case "bytes":
            return draw(st.binary(max_size=200)) + mark.encode()
        case "value":
            return json.dumps([mark, draw(VALUES)]).encode("utf-8", "surrogatepass")
        case "cut":
            return cut(draw, plain) + mark.encode()
        case "first protocol":
            task = draw(st.sampled_from(list(EXAMPLES)))
            body = changed(draw, {"task": task, "id": mark, "args": [draw(jobs(task, mark))], "kwargs": {},
                                  "retries": 0, "eta": None, "expires": None}, HEADER_NAMES, 3)  # fmt: skip
            message = {
                "body": base64.b64encode(json.dumps(body).encode()).decode(),
                "content-type": "application/json",
                "content-encoding": "utf-8",
                "headers": {},
                "properties": {"delivery_tag": mark, "delivery_info": {}, "body_encoding": "base64"},
                "mark": mark,
            }
            return json.dumps(message).encode()
        case _:
            before = cut(draw, plain)
            return before + bytes([draw(st.integers(0, 255))]) + plain[len(before) + 1 :] + mark.encode()


@st.composite
def any_messages(draw: st.DrawFn, mark: str) -> AnyMessage:
    """Give a message, and the list of a queue on which it is put."""
    item = draw(st.one_of(*[task_messages(mark)] * 9, garbage(mark)))
    queue = draw(st.sampled_from(QUEUES))
    return AnyMessage(mark, queue + draw(st.sampled_from(("",) * 9 + PRIORITIES)), item)
