"""All that a task may reach: one object, given by the app."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from models.carriers import Carrier
from models.charges import Charge
from models.database import Database
from models.fields import Kind
from models.retrying import Patience
from tasks.together import Hands, Together

Json = dict[str, Any]
HANDS = 16
"""Threads of a process that call carriers for jobs that came together."""


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The database, the carrier of each kind, a way to enqueue a task with its object, patience, and the clock.

    `keep_dead` is how long jobs that were refused or failed are kept for a replay. `hands` call carriers, several at a
    time, and `handing` notes together what is being handed over at the same moment.
    """

    database: Database
    carriers: Mapping[Kind, Carrier]
    enqueue: Callable[[str, Json], None]
    patience: Patience = field(default_factory=Patience)
    keep_dead: timedelta = timedelta(days=7)
    now: Callable[[], datetime] = utc_now
    hands: Hands = field(default_factory=lambda: Hands(HANDS))
    handing: Together[Charge, set[str]] = field(default_factory=Together)

    @property
    def keeps_dead(self) -> bool:
        """Whether jobs that were refused or failed are kept at all."""
        return self.keep_dead > timedelta(0)

    def close(self) -> None:
        """Let go of every connection."""
        self.hands.close()
        for carrier in self.carriers.values():
            carrier.close()
        self.database.close()
