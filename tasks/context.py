"""Everything that a task may reach: one object, given by the app."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import Connection

from models.database.engine import Database, transaction_time
from models.messages.base import Json
from models.messages.fields import Kind
from models.sends.carrier import Carrier
from models.sends.charges import Charge, JobKey
from models.sends.retry_policy import RetryPolicy
from tasks.concurrency import DeliveryPool, GroupCommit

DELIVERY_THREADS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The database, the carrier of each kind, the broker, and the clocks.

    `enqueue` puts a task on its queue once for each of some objects.
    `now` is the time of a transaction, by the clock of the database, which all workers share. `monotonic` is a clock of
    this machine, in seconds: how long something takes. `keep_dead` is how long jobs that were refused or failed are
    kept for a replay. `audit_again` is how much of what was checked before an audit checks again, and `unknown_alarm`
    how long a message may be unknown. `delivery_pool` has the threads that call carriers. `handovers` notes in one
    transaction all messages that are being handed over at the same moment.
    """

    database: Database
    carriers: Mapping[Kind, Carrier]
    enqueue: Callable[[str, Sequence[Json]], None]
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
    keep_dead: timedelta = timedelta(days=7)
    audit_again: int = 10_000
    unknown_alarm: timedelta = timedelta(days=1)
    now: Callable[[Connection], datetime] = transaction_time
    monotonic: Callable[[], float] = time.monotonic
    delivery_pool: DeliveryPool = field(default_factory=lambda: DeliveryPool(DELIVERY_THREADS))
    handovers: GroupCommit[Charge, set[JobKey]] = field(default_factory=GroupCommit)

    @property
    def keeps_dead(self) -> bool:
        """Whether jobs that were refused or failed are kept at all."""
        return self.keep_dead > timedelta(0)

    def close(self) -> None:
        """Close every connection."""
        self.delivery_pool.close()
        for carrier in self.carriers.values():
            carrier.close()
        self.database.close()
