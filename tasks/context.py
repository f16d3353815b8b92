"""Everything that a task may reach: one object, given by the app."""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

from sqlalchemy import Connection

from models.database.engine import Database, transaction_time
from models.messages.base import Json
from models.sends.charges import Charge
from models.sends.postponed import PostponedJob
from models.sends.retry_policy import RetryPolicy
from tasks.batch import EndedGroup
from tasks.concurrency import GroupCommit
from tasks.engine import DeliveryEngine
from tasks.metrics import Metrics
from tasks.queues import Queue


class Quarantine(Protocol):
    """What the broker keeps that can never be a job, as those see it who erase."""

    def erase_before(self, before: datetime, limit: int) -> int:
        """Erase items that came before then, at most `limit`. Returns how many."""

    def erase_of(self, user: str) -> int:
        """Erase the items about jobs of a user. Returns how many."""


class QueuedJob(NamedTuple):
    """A job on a queue: its task, its Celery task id, and the object that it was given, which may be anything."""

    task: str
    task_id: str
    given: object


class Queues(Protocol):
    """The queues of the broker, as those see them who look for jobs."""

    def read(self, queue: Queue) -> Iterator[list[QueuedJob]]:
        """Yield the jobs of a queue that no worker has answered, in groups, without taking them."""


class NoQueues:
    """The queues of a broker that cannot be searched."""

    def read(self, queue: Queue) -> Iterator[list[QueuedJob]]:  # noqa: ARG002
        """Yield nothing."""
        return iter(())


class NoQuarantine:
    """The quarantine of a broker that has none."""

    def erase_before(self, before: datetime, limit: int) -> int:  # noqa: ARG002
        """Erase nothing."""
        return 0

    def erase_of(self, user: str) -> int:  # noqa: ARG002
        """Erase nothing."""
        return 0


class Organizations(Protocol):
    """What the broker knows of the organizations of people, so that these take turns."""

    def note(self, org_ids: Mapping[str, int]) -> None:
        """Note the organization of each of these people."""

    def forget(self, person: str) -> None:
        """Remove a person who was erased."""


class NoOrganizations:
    """The organizations of a broker on which nobody takes turns."""

    def note(self, org_ids: Mapping[str, int]) -> None:
        """Note nothing."""

    def forget(self, person: str) -> None:
        """Remove nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The database, the carriers, the broker, and the clocks.

    `enqueue` puts a task on its queue once for each of some objects, `enqueue_again` jobs that were postponed.
    `now` is the time of a transaction, by the clock of the database, which all workers share. `monotonic` is a clock of
    this machine, in seconds: how long something takes. `keep_dead` is how long jobs that were refused or failed are
    kept for a replay, `keep_personal` how long anything is kept that names people beside the money, such jobs included.
    `email_headers` are the headers, in small letters, that emails may have beside the usual ones.
    `audit_again` is how much of what was checked before an audit checks again, and `unknown_alarm` how long a message
    may be unknown. `large_bulk` is held while a large bulk job is made ready. `engine` makes attempts at the carriers,
    and `settling` writes in one transaction how those ended which end at the same moment.
    `metrics` counts what is done.
    """

    database: Database
    engine: DeliveryEngine
    enqueue: Callable[[str, Sequence[Json]], None]
    enqueue_again: Callable[[Sequence[PostponedJob]], None]
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
    keep_dead: timedelta = timedelta(days=7)
    keep_personal: timedelta = timedelta(days=90)
    quarantine: Quarantine = field(default_factory=NoQuarantine)
    organizations: Organizations = field(default_factory=NoOrganizations)
    queues: Queues = field(default_factory=NoQueues)
    email_headers: Collection[str] = ()
    audit_again: int = 10_000
    unknown_alarm: timedelta = timedelta(days=1)
    now: Callable[[Connection], datetime] = transaction_time
    monotonic: Callable[[], float] = time.monotonic
    large_bulk: threading.Lock = field(default_factory=threading.Lock)
    settling: GroupCommit[EndedGroup, list[Charge]] = field(default_factory=GroupCommit)
    metrics: Metrics = field(default_factory=Metrics)

    @property
    def keep_letters(self) -> timedelta:
        """How long jobs that were refused or failed are kept: they name people, too."""
        return min(self.keep_dead, self.keep_personal)

    @property
    def keeps_dead(self) -> bool:
        """Whether jobs that were refused or failed are kept at all."""
        return self.keep_letters > timedelta(0)

    def close(self) -> None:
        """Close every connection."""
        self.engine.close()
        self.database.close()
