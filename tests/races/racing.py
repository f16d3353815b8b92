"""Races of real processes: how they are started at the same moment, and what all of them need.

Every process has a database connection and a carrier of its own, as workers have. What a process does lives here
rather than in the tests, so that the processes need not import pytest.
"""

import logging
import multiprocessing
import random
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection as Pipe
from multiprocessing.synchronize import Barrier, Event
from typing import Any, ClassVar

import structlog
from sqlalchemy import func, select

from models.database.engine import Database
from models.database.schema import accounts, charges
from models.messages.billing import Credits, Purchase, SaveRole, SaveUser, SetOwner
from models.messages.fields import Kind
from models.messages.sends import SendEmail
from models.reports.audit import Finding
from models.sends.carrier import Handover, OutboundMessage, Outcome, Receipt
from models.sends.charges import Charge
from models.sends.routes import Route
from tasks import billing
from tasks.context import Context
from tasks.engine import DeliveryEngine
from tests.audits import audit_everything
from tests.fakes import send

LONGEST_S = 500
"""A race that takes longer hangs. The longest takes a minute on two free cores, and several on busy ones."""

# Processes forked from a clean server that has imported this module: as good as spawned, without sixteen imports.
# With pytest, because the program that runs the tests is imported as well.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["pytest", __name__])

Start = Callable[[], object]
"""Called in a process, it waits until every other process of the race has called it as often."""


def race(*runs: tuple[Any, ...]) -> list[Any]:
    """Run each (function, *arguments) in a process of its own, and return their results in the same order.

    The first argument of each function is a `Start`. An error in one process fails the race.
    """
    barrier = _processes.Barrier(len(runs))
    started = []
    try:
        for run in runs:
            ours, theirs = _processes.Pipe(duplex=False)
            process = _processes.Process(target=_run, args=(barrier, theirs, *run), daemon=True)
            process.start()
            theirs.close()
            started.append((process, ours))
        until = time.monotonic() + LONGEST_S
        ended = [_end(pipe, until) for _, pipe in started]
    finally:
        for process, pipe in started:
            pipe.close()
            process.kill()
            process.join()
            process.close()
    faults = [fault for _, fault in ended if fault]
    if faults:
        # The error of a process that only waited for another one says nothing of interest.
        raise AssertionError(next((fault for fault in faults if "BrokenBarrierError" not in fault), faults[0]))
    return [result for result, _ in ended]


def _end(pipe: Pipe, until: float) -> tuple[Any, str | None]:
    try:
        return pipe.recv() if pipe.poll(max(0, until - time.monotonic())) else (None, "A process did not end.")
    except EOFError:
        return None, "A process crashed and left no error."


def _run(barrier: Barrier, pipe: Pipe, function: Callable[..., Any], *arguments: Any) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        pipe.send((function(barrier.wait, *arguments), None))
    except BaseException:  # noqa: BLE001  the test shows it, whatever it was
        barrier.abort()
        pipe.send((None, traceback.format_exc()))


def make_signal() -> Event:
    """Make an event by which one process of a race tells others something."""
    return _processes.Event()


@dataclass
class RecordingCarrier:
    """A carrier that accepts everything, and remembers which jobs it got."""

    key_window: ClassVar = timedelta()
    capacity: ClassVar = 100
    job_ids: list[str] = field(default_factory=list)

    async def deliver(self, message: OutboundMessage, handover: Handover) -> Receipt:
        """Accept the message."""
        await handover()
        self.job_ids.append(message.job_id)
        return Receipt(Outcome.ACCEPTED, reference=message.job_id)

    async def find_fault(self) -> str | None:
        """Find nothing."""
        return None

    async def close(self) -> None:
        """Do nothing: there is no connection."""


def utc_now() -> datetime:
    """Give the present time."""
    return datetime.now(UTC)


@contextmanager
def worker(url: str, carrier: RecordingCarrier | None = None) -> Iterator[Context]:
    """Give the context of a worker that has one database connection."""
    carrier = carrier or RecordingCarrier()
    database = Database(url, pool_size=1)
    route = Route(name="recording", carrier=carrier)
    context = Context(
        database=database,
        engine=DeliveryEngine({"email": [route], "sms": [route]}, database),
        enqueue=lambda _task, _given: None,
        enqueue_again=lambda _jobs: None,
    )
    try:
        yield context
    finally:
        context.close()


def save_users(context: Context, *user_ids: str, organization: str = "north") -> None:
    """Make users of one organization, whose role has all rights."""
    rights: list[Any] = ["view_user_list", "edit_user"]
    billing.save_role(context, SaveRole(organization=organization, role="admin", rights=rights))
    for user_id in user_ids:
        billing.save_user(
            context,
            SaveUser(
                user_id=user_id,
                organization=organization,
                name=user_id.title(),
                email=f"{user_id}@example.org",
                role="admin",
                billing={"name": user_id.title()},
            ),
        )


def buy(context: Context, buyer: str, *, email: int, order_id: str | None = None) -> None:
    """Buy email credits."""
    order = Purchase(
        order_id=order_id or f"order-of-{buyer}",
        buyer=buyer,
        credits=Credits(email=email),
        amount=email,
        currency="EUR",
    )
    billing.purchase(context, order)


def share(context: Context, owner: str, *users: str) -> None:
    """Let `users` spend the credits of `owner`."""
    for user in users:
        billing.set_owner(context, SetOwner(change_id=f"{user}-to-{owner}", actor=owner, user=user, owner=owner))


def email_from(job_id: str, sender: str) -> SendEmail:
    """Give an email that costs one credit."""
    return SendEmail(job_id=job_id, sender=sender, to=["reader@example.org"], subject="News", text="There is none.")


@dataclass(frozen=True)
class Sent:
    """What one process has sent: the charge with which each job was answered, and the jobs that its carrier got."""

    charges: list[Charge]
    delivered: list[str]


def send_all(start: Start, url: str, jobs: Sequence[tuple[str, str]]) -> Sent:
    """Send (job id, sender), alone and in batches of all sizes, as a worker does."""
    carrier = RecordingCarrier()
    emails = deque(email_from(*job) for job in jobs)
    charged: list[Charge] = []
    draw = random.Random(jobs[0][0])
    with worker(url, carrier) as context:
        start()
        while emails:
            batch = [emails.popleft() for _ in range(min(draw.choice([1, 1, 2, 5, 20]), len(emails)))]
            charged += send(context, batch)
    return Sent(charged, carrier.job_ids)


def balance(context: Context, owner: str, kind: Kind = "email") -> int:
    """Give what is left in an owner's account."""
    with context.database.snapshot() as connection:
        query = select(accounts.c.available).where(accounts.c.owner_id == owner, accounts.c.kind == kind)
        return int(connection.execute(query).scalar_one())


def states(context: Context) -> dict[tuple[str, str | None], int]:
    """Count the charges of each (state, reason)."""
    with context.database.snapshot() as connection:
        query = select(charges.c.state, charges.c.reason, func.count()).group_by(charges.c.state, charges.c.reason)
        return {(state, reason): count for state, reason, count in connection.execute(query)}


def deadlocks(context: Context) -> int:
    """Count the deadlocks that PostgreSQL has broken. Each was tried again, so that nobody else notices one.

    SQLite, which has one writer at a time, has none.
    """
    if context.database.is_sqlite:
        return 0
    with context.database.snapshot() as connection:
        query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        return int(connection.exec_driver_sql(query).scalar_one())


def findings(context: Context) -> list[Finding]:
    """Give what an audit finds."""
    with context.database.snapshot() as connection:
        return audit_everything(connection, utc_now())


def repeated(job_ids: Sequence[str]) -> list[str]:
    """Give the ids that occur more than once."""
    return [job_id for job_id, count in Counter(job_ids).items() if count > 1]
