"""An event of a story: what happened to a send job, or how it stands now, in a sentence and in fields."""

from dataclasses import dataclass
from datetime import UTC, datetime

from models.messages.answer import iso_time
from models.messages.base import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class StoryEvent:
    """What happened at a time; without one, how things stand now. `fields` is what the sentence was made from."""

    kind: str
    at: datetime | None
    text: str
    fields: Json

    def as_json(self) -> Json:
        """Return the event as it is shown."""
        return {"at": iso_time(self.at), "kind": self.kind, "text": self.text, **self.fields}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoryScope:
    """What is shown beside what happened to the job itself.

    `sees_pool`: what the entries moved in all, and the balances that they left. `is_operator`: the number of its dead
    letter.
    """

    sees_pool: bool
    is_operator: bool


def counted(count: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def said_time(at: datetime) -> str:
    """Return a time as sentences have it: in UTC, to the second."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
