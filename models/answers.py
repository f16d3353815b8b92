"""What a task answers: a JSON object that shows nothing private when it is printed."""

from dataclasses import dataclass
from typing import Any

SHOWN = ("job_id", "order_id", "change_id", "status", "reason")


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """One answer. `fields` is the JSON object that the caller gets.

    Celery prints results into its events and logs, so `repr` shows ids and outcomes only: no address, number, text
    or billing information. kombu's JSON encoder asks `__json__` for what goes over the wire.
    """

    fields: dict[str, Any]

    def __json__(self) -> dict[str, Any]:
        return self.fields

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401  JSON
        return self.fields[name]

    def __repr__(self) -> str:
        return " ".join(f"{name}={self.fields[name]}" for name in SHOWN if self.fields.get(name) is not None)
