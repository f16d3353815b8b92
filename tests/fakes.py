"""Stand-ins for what is outside: a carrier that records messages, a clock that is set, a broker that only remembers."""

import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

from celery import Celery
from sqlalchemy import Connection

from models.database.engine import Database
from models.messages.fields import Kind
from models.messages.sends import SendOne
from models.sends.carrier import Handover, OutboundMessage, Outcome, Receipt
from models.sends.charges import Charge
from models.sends.postponed import PostponedJob
from models.sends.retry_policy import RetryPolicy
from models.sends.routes import Route
from tasks import billing, bulk, cancelling, erasing, sending, upkeep, views
from tasks.base import Arrival
from tasks.context import Context, Json
from tasks.engine import DeliveryEngine, Routes
from tasks.event_loop import EventLoop
from worker.app import PostageApp
from worker.cli.session import Need, Session

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
TASK_MODULES = (billing, bulk, cancelling, erasing, sending, upkeep, views)
"""Imported, so that the tasks exist."""

ACCEPTED = Receipt(Outcome.ACCEPTED, reference="ref-1")
NEVER = Receipt(Outcome.NEVER, "The carrier will not take it.")
NOBODY = Receipt(Outcome.NEVER, "The carrier knows none of them.", recipients_refused=True)
NOT_NOW = Receipt(Outcome.NOT_NOW, "The carrier is busy.")
UNSURE = Receipt(Outcome.UNSURE, "The line went dead.")


class SharedLoop(EventLoop):
    """A loop that outlives the contexts that it serves."""

    def close(self, *closing: Coroutine[Any, Any, None]) -> None:
        """Run these coroutines, and nothing more."""
        for each in closing:
            self.run(each).result(10)


LOOP = SharedLoop()
"""The loop of all contexts of a test process: to begin a thread for each takes longer than most tests."""
_of_this_thread = threading.local()

Scripted = Receipt | Exception | Callable[[OutboundMessage], Receipt]


class Clock:
    """A clock that stands still until it is set. It tells the time of every transaction, and how long things take."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self, _: Connection | None = None) -> datetime:
        return self.now

    def monotonic(self) -> float:
        """Give the time in seconds."""
        return self.now.timestamp()

    def forward(self, by: timedelta) -> None:
        """Let time pass."""
        self.now += by


class FakeCarrier:
    """A carrier that keeps what it is given and says what it was told to say, then accepts everything.

    A scripted exception is raised, before anything is handed over; a scripted function is called with the message, and
    says what the carrier says.
    """

    def __init__(self, *script: Scripted, is_idempotent: bool = False, key_window: timedelta | None = None) -> None:
        self.script = list(script)
        self.key_window = key_window or (timedelta(days=1000) if is_idempotent else timedelta())
        self.capacity = 1000
        self.messages: list[OutboundMessage] = []
        self.closed = False

    async def deliver(self, message: OutboundMessage, handover: Handover) -> Receipt:
        """Keep the message, and follow the script."""
        self.messages.append(message)
        said = self.script.pop(0) if self.script else ACCEPTED
        if isinstance(said, BaseException):
            raise said
        if not self.key_window:
            await handover()
        return said if isinstance(said, Receipt) else said(message)

    async def find_fault(self) -> str | None:
        """Find nothing."""
        return None

    async def close(self) -> None:
        """Remember that somebody said goodbye."""
        self.closed = True

    @property
    def job_ids(self) -> list[str]:
        """The jobs of all messages, in order."""
        return [message.job_id for message in self.messages]


class FakeBroker:
    """Remembers what was enqueued as (task, object), and delivers nothing by itself."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Json]] = []
        self.postponed: list[PostponedJob] = []

    def __call__(self, task: str, given: Sequence[Json]) -> None:
        self.sent += [(task, one) for one in given]

    def again(self, jobs: Sequence[PostponedJob]) -> None:
        """Remember jobs that were postponed."""
        self.sent += [(job.task, job.job) for job in jobs]
        self.postponed += jobs

    def take(self) -> list[tuple[str, Json]]:
        """All that was enqueued since the last time."""
        sent, self.sent = self.sent, []
        return sent


def make_context(
    database: Database,
    email: FakeCarrier | None = None,
    sms: FakeCarrier | None = None,
    clock: Clock | None = None,
    policy: RetryPolicy | None = None,
) -> Context:
    """Give a context whose `enqueue` is a FakeBroker and whose clocks are a Clock."""
    clock, broker = clock or Clock(), FakeBroker()
    routes: Routes = {
        "email": [Route(name="mail", carrier=email or FakeCarrier())],
        "sms": [Route(name="texts", carrier=sms or FakeCarrier())],
    }
    return Context(
        database=database,
        engine=DeliveryEngine(routes, database, now=clock, monotonic=clock.monotonic, loop=LOOP),
        enqueue=broker,
        enqueue_again=broker.again,
        retry_policy=policy or RetryPolicy(),
        now=clock,
        monotonic=clock.monotonic,
    )


def carrier_of(context: Context, kind: Kind) -> FakeCarrier:
    """Give the only carrier of a kind."""
    [route] = context.engine.routes[kind]
    assert isinstance(route.carrier, FakeCarrier)
    return route.carrier


def send(context: Context, messages: Sequence[SendOne]) -> list[Charge]:
    """Charge and deliver messages as a worker would that took them together; their charges in the same order."""
    jobs = [sending.as_send_job(message) for message in messages]
    stand = dict(chain.from_iterable(sending.send(context, jobs)))
    return [stand[place] for place in range(len(jobs))]


def answer(context: Context, task: str, given: object, task_id: str = "task-1") -> Json:
    """Answer one job as a worker would, by calling the task, but without a broker."""
    app = _app_of_this_thread()
    app.context = context
    its_task = app.tasks[task]
    its_task.push_request(id=task_id, retries=0)
    try:
        answered: Any = its_task(given)
    finally:
        its_task.pop_request()
    fields: Json = answered.fields
    return fields


def answer_together(context: Context, task: str, jobs: Sequence[object]) -> list[Json]:
    """Answer jobs as a worker would that took them together; the answers in their order."""
    app = _app_of_this_thread()
    app.context = context
    arrivals = [Arrival(job, f"task-{place}") for place, job in enumerate(jobs)]
    answers = dict(chain.from_iterable(app.tasks[task].answer(arrivals)))
    return [answers[place].fields for place in range(len(jobs))]


def _app_of_this_thread() -> Any:
    """Give an app with every task. It is made once, which takes longer than most answers."""
    if not hasattr(_of_this_thread, "app"):
        _of_this_thread.app = Celery("fake", set_as_current=False)
        _of_this_thread.app.finalize()
    return _of_this_thread.app


def later(context: Context, by: timedelta = timedelta(hours=1)) -> list[Json]:
    """Let time pass, sweep, and let free workers do what was enqueued; returns the answers."""
    clock: Any = context.now
    clock.forward(by)
    upkeep.sweep(context)
    return run_enqueued(context)


def run_enqueued(context: Context) -> list[Json]:
    """Answer all that was enqueued, as free workers would; returns the answers."""
    broker: Any = context.enqueue
    return [answer(context, task, given) for task, given in broker.take()]


class OpenSession(Session):
    """A session of the command line with an app that exists already: its commands need no preparation."""

    def __init__(self, app: PostageApp) -> None:
        super().__init__()
        self.configured = self.settings = app.settings
        self.app = app

    @contextmanager
    def prepared(self, need: Need) -> Iterator[None]:
        """Prepare nothing, and close nothing."""
        yield
