"""The base of every task message, and how a message that is not valid is explained."""

import functools
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from models.messages.digests import digest, same_digest
from models.messages.fields import PATTERN_WORDS
from models.text import sanitize

Json = dict[str, Any]
"""A JSON object."""

FIELD_NAME_MAX = 64
"""Characters of a field's name that are repeated to the producer."""
SENTENCE_MAX = 200
"""Characters of one sentence about a field."""


class TaskMessage(BaseModel):
    """The JSON object that a task takes: frozen, strict about types, closed to unknown fields.

    Its fields hold what the producer wrote. What we make of that is no part of a message, so that the digest of a job
    is the same in every release.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    task: ClassVar[str]
    """The task that takes the message, if it has a key."""
    key: ClassVar[str | None] = None
    """The field that is the idempotency key."""

    def digest(self) -> str:
        """Return the digest of what the message asks for: its task, and what was given."""
        return digest(self.task, self.given())

    def has_digest(self, stored: str) -> bool:
        """Whether a stored digest is that of this message: the job under the same key is the same job."""
        return same_digest(stored, self.task, self.given())

    def given(self) -> Json:
        """Return what was given, as canonical JSON: the fields except the key and those that have their default.

        A field with its default and a field left out make the same message, so they are the same here. That goes for
        null too, since it is allowed only where it is the default.
        """
        values = vars(self)
        return {
            name: value if isinstance(value, str) else _canonical(value)
            for name, field, default in _fields(type(self))
            if (value := values[field]) != default
        }


@functools.cache
def _fields(message: type[TaskMessage]) -> list[tuple[str, str, Any]]:
    """Return each field except the key, in alphabetical order: its name on the wire, its name here, its default."""
    fields = [
        (field.alias or name, name, field.get_default(call_default_factory=True))
        for name, field in message.model_fields.items()
        if name != message.key
    ]
    return sorted(fields, key=lambda field: field[0])


def _canonical(value: Any) -> Any:  # noqa: ANN401  a value of a message
    """Return a value as JSON in which the fields of each object are in alphabetical order: their order means nothing.

    A value of another type, such as a time, has no canonical form yet.
    """
    if isinstance(value, dict):
        return {name: value[name] for name in sorted(value)}
    if isinstance(value, list):
        return [each if isinstance(each, str) else _canonical(each) for each in value]
    return value if isinstance(value, int) else value.given()


def is_given(*names: str) -> Json:
    """Return the JSON schema of an object in which these fields are there and not null."""
    return {"required": list(names), "properties": {name: {"not": {"type": "null"}} for name in names}}


def explain(error: ValidationError, most: int = 3) -> str:
    """Return what is wrong with a message, in sentences that name the fields and never repeat their values."""
    problems = error.errors(include_url=False, include_input=False)
    sentences = []
    for problem in problems[:most]:
        field = ".".join(sanitize(str(part), FIELD_NAME_MAX) for part in problem["loc"])
        what = sanitize(_words(problem), SENTENCE_MAX)
        sentences.append(f"`{field}`: {what}." if field else f"The message {what}.")
    if len(problems) > most:
        sentences.append(f"And {len(problems) - most} more.")
    return " ".join(sentences)


def _words(problem: Any) -> str:  # noqa: ANN401  one of the errors of pydantic
    """Return what is wrong with a field, without a regular expression."""
    if problem["type"] == "string_pattern_mismatch":
        return PATTERN_WORDS.get(problem["ctx"]["pattern"], "must have another form")
    return str(problem["msg"]).removeprefix("Value error, ")
