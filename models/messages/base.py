"""The base of every task message, its digest, and how a message that is not valid is explained."""

import hashlib
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json

from models.text import sanitize

Json = dict[str, Any]
"""A JSON object."""

FIELD_NAME_MAX = 64
"""Characters of a field's name that are repeated to the producer."""
SENTENCE_MAX = 200
"""Characters of one sentence about a field."""


class TaskMessage(BaseModel):
    """The JSON object that a task takes: frozen, strict about types, closed to unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    key: ClassVar[str | None] = None
    """The field that is the idempotency key."""

    def digest(self, task: str) -> str:
        """Return the SHA-256 (hex) of what the message asks for: the task, and every field given except the key."""
        return digest(task, self.given())

    def given(self) -> Json:
        """Return every field that was given, except the key, as JSON."""
        return self.model_dump(mode="json", exclude_none=True, exclude={self.key} if self.key else None)


def digest(task: str, given: Json) -> str:
    """Return the digest of a message of `task` of which `given` is everything except the key."""
    return hashlib.sha256(to_json([task, _sorted(given)])).hexdigest()


def _sorted(value: Any) -> Any:  # noqa: ANN401  JSON
    """Return the same JSON with the fields of each object in alphabetical order: their order means nothing."""
    if isinstance(value, dict):
        return {name: _sorted(value[name]) for name in sorted(value)}
    return [_sorted(each) for each in value] if isinstance(value, list) else value


def explain(error: ValidationError, most: int = 3) -> str:
    """Return what is wrong with a message, in sentences that name the fields and never repeat their values."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    sentences = []
    for problem in problems[:most]:
        field = ".".join(sanitize(str(part), FIELD_NAME_MAX) for part in problem["loc"])
        what = sanitize(problem["msg"].removeprefix("Value error, "), SENTENCE_MAX)
        sentences.append(f"`{field}`: {what}." if field else f"The message {what}.")
    if len(problems) > most:
        sentences.append(f"And {len(problems) - most} more.")
    return " ".join(sentences)
