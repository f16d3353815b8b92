"""JSON, decoded and encoded several times as fast as by kombu: a worker decodes two documents for every job.

kombu makes Python's decoder look at every object for types of its own (dates, UUIDs). Jobs on the wire are plain JSON,
so here an object is just an object.
"""

from typing import Any

from kombu.serialization import register
from kombu.utils import json as kombu_json
from pydantic_core import from_json, to_json

JSON = "application/json"
PLAIN_JSON = "plain-json"
"""The serializer for what is known to consist of plain values, such as events."""


def decode(document: bytes | str) -> Any:  # noqa: ANN401  JSON
    """Return the value of a JSON document.

    Raises
    ------
    ValueError
        If it is not JSON, or nested too deeply.

    """
    try:
        return from_json(document)
    except ValueError:  # for example lone surrogates, which the refusal of the job is to name
        return kombu_json.loads(document)


def _encode(value: object) -> str:
    try:
        return to_json(value).decode()
    except ValueError:
        return str(kombu_json.dumps(value))


def register_json() -> None:
    """Register the fast decoder for application/json, and the serializer `plain-json`."""
    register(PLAIN_JSON, _encode, decode, content_type=JSON, content_encoding="utf-8")
