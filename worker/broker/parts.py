"""The parts of a task message that Celery relies on without looking at them, and what each of them may be.

A header of another type makes Celery fail after the job was done, and then the message is neither acknowledged nor
given back. The types are those that celery 5.6 writes (celery/app/amqp.py, `as_task_v2`), or leaves out.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any

from celery.canvas import Signature
from kombu.compression import get_encoder
from kombu.serialization import registry  # type: ignore[attr-defined]  # untyped

RETRIES_MAX = 1_000
"""How often Celery may have retried a job, at most; Postage gives up after twenty."""
Check = Callable[[Any], bool]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= RETRIES_MAX


def _is_time_limit(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2  # noqa: PLR2004  hard and soft, in seconds
        and all(limit is None or (isinstance(limit, (int, float)) and 0 <= limit <= 10**9) for limit in value)
    )


def _is_signature(value: object) -> bool:
    """Whether a value is a task to be sent afterwards, as Celery writes one: so is every task in it."""
    return _has_task_parts(value) and all(map(_has_task_parts, _tasks_in(value))) and _can_be_made(value)


def _has_task_parts(value: object) -> bool:
    return (
        isinstance(value, dict)
        and _is_text(value.get("task"))
        and isinstance(value.get("args", []), list)
        and all(isinstance(value.get(part, {}), dict) for part in ("kwargs", "options"))
        and not malformed_parts(value.get("options", {}), OPTIONS)
    )


def _tasks_in(value: Any) -> Iterator[Any]:  # noqa: ANN401  JSON
    """Yield what Celery takes for tasks in a value: those of a chain, a group or a chord, and what follows them."""
    inner: Iterable[Any] = ()
    if isinstance(value, dict):
        inner = value.values()
        if "task" in value and "options" in value:
            yield value
    elif isinstance(value, list):
        inner = value
    for each in inner:
        yield from _tasks_in(each)


def _can_be_made(signature: Any) -> bool:  # noqa: ANN401  JSON
    """Whether Celery can make a task of a signature, which for a chain, a group or a chord needs the right parts."""
    try:
        Signature.from_dict(deepcopy(signature))
    except Exception:  # noqa: BLE001  whatever Celery makes of it
        return False
    return True


def _is_serializer(value: object) -> bool:
    return isinstance(value, str) and value in registry.name_to_type


def _is_compression(value: object) -> bool:
    try:
        return isinstance(value, str) and get_encoder(value) is not None
    except KeyError:
        return False


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_text_or_number(value: object) -> bool:
    return _is_text(value) or _is_number(value)


def _are_signatures(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_signature, value))


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


OPTIONS: Mapping[str, Check] = {
    **dict.fromkeys(("queue", "exchange", "routing_key"), _is_text),
    "serializer": _is_serializer,
    "compression": _is_compression,
    "countdown": _is_number,
    "priority": _is_number,
    "eta": _is_text,
    "expires": _is_text_or_number,
    "headers": _is_object,
}
"""With what a task is to be sent afterwards. With others Celery fails once the job is done, and repeats them."""
HEADERS: Mapping[str, Check] = {
    **dict.fromkeys(("root_id", "parent_id", "group", "shadow", "origin", "argsrepr", "kwargsrepr"), _is_text),
    **dict.fromkeys(("retries", "group_index", "replaced_task_nesting"), _is_count),
    "timelimit": _is_time_limit,
    "ignore_result": lambda value: isinstance(value, bool),
    "stamped_headers": _are_texts,
    "stamps": _is_object,
}
EMBEDDED: Mapping[str, Check] = {
    "callbacks": _are_signatures,
    "errbacks": _are_signatures,
    "chain": _are_signatures,
    "chord": _is_signature,
}
"""What is to be done after the job: the third part of the body."""


def malformed_parts(given: Mapping[str, Any], checks: Mapping[str, Check]) -> list[str]:
    """Return the names of parts that are there and are not what they may be."""
    return [name for name, is_right in checks.items() if given.get(name) is not None and not is_right(given[name])]
