"""All that a task may reach: one object, given by the app."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from models.carriers import Carrier
from models.database import Database
from models.fields import Kind
from models.retrying import Patience

Json = dict[str, Any]


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The database, the carrier of each kind, a way to enqueue a task with its object, patience, and the clock.

    `keep_dead` is how long jobs that were refused or failed are kept for a replay.
    """

    database: Database
    carriers: Mapping[Kind, Carrier]
    enqueue: Callable[[str, Json], None]
    patience: Patience = field(default_factory=Patience)
    keep_dead: timedelta = timedelta(days=7)
    now: Callable[[], datetime] = utc_now

    @property
    def keeps_dead(self) -> bool:
        """Whether jobs that were refused or failed are kept at all."""
        return self.keep_dead > timedelta(0)

    def close(self) -> None:
        """Let go of every connection."""
        for carrier in self.carriers.values():
            carrier.close()
        self.database.close()
