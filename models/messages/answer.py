"""What a task answers: a JSON object that shows nothing private when it is printed."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from models.messages.base import Json

PUBLIC_FIELDS = ("cancel_id", "job_id", "reversal_id", "adjustment_id", "order_id", "change_id", "erasure_id", "status",
                 "reason")  # fmt: skip
"""The fields that logs and events may show."""


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """The answer to one job. `fields` is the JSON object that the caller gets.

    Celery prints results into its events and logs, so `repr` shows ids and outcomes only: no address, number, text or
    billing information. kombu's JSON encoder calls `__json__` for what goes over the wire.
    """

    fields: Json

    def __json__(self) -> Json:
        return self.fields

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401  JSON
        return self.fields[name]

    def __repr__(self) -> str:
        return " ".join(f"{name}={self.fields[name]}" for name in PUBLIC_FIELDS if self.fields.get(name) is not None)


def iso_time(instant: datetime | None) -> str | None:
    """Return a time in ISO 8601 and UTC, or None."""
    return instant.astimezone(UTC).isoformat(timespec="milliseconds") if instant else None


def exact_time(instant: datetime) -> str:
    """Return a time in ISO 8601 and UTC to the microsecond, as the hash of an entry has it."""
    return instant.astimezone(UTC).isoformat(timespec="microseconds")


def refused_answer(reason: str, detail: str) -> Json:
    """Return the fields of every refusal; `answers.refusal` has those of its task too."""
    return {"status": "refused", "reason": reason, "detail": detail, "credits": 0, "paid_by": None}
