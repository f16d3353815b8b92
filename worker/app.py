"""The Celery app: all wiring on one page."""

import gc
import sys
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from celery import Celery, signals
from kombu import Producer
from kombu.exceptions import BatchPublishError  # type: ignore[attr-defined]  # new in kombu 5.7

from models.database.engine import Database
from models.messages.base import Json
from models.sends.postponed import PostponedJob
from models.sends.retry_policy import RetryPolicy
from tasks import billing, bulk, cancelling, erasing, sending, upkeep, views
from tasks.context import Context
from tasks.engine import DeliveryEngine
from tasks.job_ids import redacted_args
from tasks.metrics import Metrics
from tasks.rates import Limits
from worker.broker.json_codec import register_json
from worker.broker.organizations import RedisOrganizations
from worker.broker.quarantine import RedisQuarantine
from worker.broker.rates import RedisRates
from worker.broker.signatures import SignaturePolicy
from worker.broker.signing import BY_US, as_signed_before
from worker.broker.transport import register_transport
from worker.broker.waiting import RedisQueues
from worker.carriers.routes import open_routes
from worker.celery_config import celery_config
from worker.logs import set_up_logging, write_log_now
from worker.producer_keys import keys_at
from worker.settings import Settings

TASK_MODULES = (billing, bulk, cancelling, erasing, sending, upkeep, views)
"""Really imported, so that the tasks exist. Celery's autodiscovery would look for other names."""

COLLECT_AFTER = 5_000
"""Objects that may be made before the garbage collector runs: about as many as a batch makes."""


class PostageApp(Celery):
    """Celery with the settings that it was made from, and the context that its tasks are given."""

    events_cls = "worker.broker.events:ThreadSafeEvents"

    def __init__(self, settings: Settings, **options: Any) -> None:  # noqa: ANN401  Celery's
        super().__init__("postage", set_as_current=True, **options)
        self.settings = settings
        self.signature_policy = SignaturePolicy(
            keys_at(settings.producer_keys_file), settings.must_be_signed, settings.signature_age_s
        )
        self.metrics = Metrics()
        self._context: Context | None = None
        self._context_lock = threading.Lock()

    @property
    def context(self) -> Context:
        """What tasks may reach in this process. Made on first use, so after any fork."""
        with self._context_lock:
            if self._context is None:
                self._context = _make_context(self)
            return self._context

    @property
    def opened_context(self) -> Context | None:
        """The same, or None if nothing has needed it yet."""
        return self._context

    def close_context(self) -> None:
        """Close every connection of this process."""
        with self._context_lock:
            if self._context is not None:
                self._context.close()
                self._context = None


def create_app(settings: Settings) -> PostageApp:
    """Return the app for these settings."""
    register_transport()
    register_json()
    app = PostageApp(settings)
    app.conf.update(celery_config(settings))
    app.steps["worker"].add("worker.broker.lane:LaneStep")
    app.steps["worker"].add("worker.broker.send_pool:SendPoolStep")
    app.steps["consumer"].add("worker.broker.events:FlushStep")
    app.steps["consumer"].add("worker.broker.stats:StatsStep")
    return app


def _make_context(app: PostageApp) -> Context:
    settings = app.settings
    database = Database(settings.database, settings.database_pool, settings.database_wait_s)
    return Context(
        database=database,
        engine=DeliveryEngine(
            open_routes(settings),
            database,
            limits=Limits(RedisRates(app), settings.organization_rate, settings.sender_rate),
        ),
        enqueue=lambda task, given: enqueue(app, task, given),
        enqueue_again=lambda jobs: enqueue_again(app, jobs),
        retry_policy=RetryPolicy(
            attempts_max=settings.attempts_max,
            base_s=settings.retry_base_s,
            max_s=settings.retry_max_s,
            lease_s=settings.lease_s,
            wait_max=timedelta(seconds=settings.wait_max_s),
        ),
        keep_dead=timedelta(seconds=settings.keep_dead_s),
        keep_personal=timedelta(seconds=settings.keep_personal_s),
        quarantine=RedisQuarantine(app),
        organizations=RedisOrganizations(app),
        queues=RedisQueues(app),
        email_headers=settings.allowed_email_headers,
        audit_again=settings.audit_again,
        unknown_alarm=timedelta(seconds=settings.unknown_alarm_s),
        metrics=app.metrics,
    )


def enqueue(app: Celery, task: str, given: Sequence[Json]) -> None:
    """Put a task on its queue for each of some objects, in one round trip.

    Nobody waits for an answer, so no connection to the result store is made.
    """
    _send_together(app, [(task, {"args": [one], "argsrepr": "(…)", "ignore_result": True, "headers": BY_US})
                         for one in given])  # fmt: skip


def enqueue_again(app: Celery, jobs: Sequence[PostponedJob]) -> None:
    """Put jobs that were postponed on their queues as they were there before, in one round trip."""
    _send_together(app, [(job.task, {"args": [job.job], "argsrepr": redacted_args([job.job]), "kwargsrepr": "{}",
                                     "task_id": job.task_id, **job.options,
                                     "headers": as_signed_before(job.options)}) for job in jobs])  # fmt: skip


def _send_together(app: Celery, messages: Sequence[tuple[str, Json]]) -> None:
    """Send tasks, each with its options, in one round trip.

    If that fails, they are sent one by one, each as often as Celery tries it. Some may then be there twice, which is
    harmless.
    """
    with app.producer_or_acquire() as producer:
        try:
            with producer.batch():
                _send_each(app, producer, messages)
        except BatchPublishError:  # for example because the broker has ended the connection that was kept
            _send_each(app, producer, messages)


def _send_each(app: Celery, producer: Producer, messages: Sequence[tuple[str, Json]]) -> None:
    for task, options in messages:
        app.send_task(task, producer=producer, **options)


@signals.setup_logging.connect
def _keep_our_logging(**_kwargs: object) -> None:
    """Prevent Celery from setting up its own logging: ours is set up before it starts (worker/cli/session.py)."""


@signals.worker_process_init.connect
def _set_up_child(**_kwargs: object) -> None:
    """Set up the logging of a forked pool child. It makes its own context on first use."""
    from celery import current_app  # noqa: PLC0415  the app of this process

    set_up_logging(current_app.settings)  # type: ignore[attr-defined]
    _spare_loaded_objects()


@signals.worker_ready.connect
def _spare_loaded_objects(**_kwargs: object) -> None:
    """Exempt from garbage collection what stays as long as the process. Collecting took a fifth of a worker's time.

    A batch makes some thousand objects and leaves none of them. Python's default threshold of 700 would run the
    collector many times while all of them are still in use.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


@signals.worker_ready.connect
def _send_to_any_queue(sender: Any = None, **_kwargs: object) -> None:  # noqa: ANN401
    """Let this worker send what producers want to be sent after their jobs to any queue, and consume none of these.

    Without a queue it goes to Celery's own default, as if the producer had sent it.
    """
    app = sender.app
    app.amqp.queues.select(list(app.amqp.queues.consume_from))  # also when the connection is made anew
    app.amqp.queues.create_missing = app.amqp.router.create_missing = True
    app.conf.task_default_queue = "celery"


@signals.worker_shutting_down.connect
def _stop_waiting(how: str = "", **_kwargs: object) -> None:
    """End every wait for the database: the jobs of a worker that shuts down go back to their queues."""
    if sys.__stdout__ is None:  # where Celery says so, but not as JSON (worker/cli/session.py)
        write_log_now(f"worker: {how} shutdown (MainProcess)")
    from celery import current_app  # noqa: PLC0415  the app of this process

    app: PostageApp = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001
    app.context.database.closing.set()


@signals.worker_shutdown.connect
def _close_context(sender: Any = None, **_kwargs: object) -> None:  # noqa: ANN401
    sender.app.close_context()
