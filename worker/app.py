"""The Celery app: all wiring on one page."""

import gc
import threading
from datetime import timedelta
from typing import Any

from celery import Celery, signals
from kombu import Exchange
from kombu import Queue as KombuQueue

from models.database import Database
from models.messages import SEND_ONE_TASKS
from models.retrying import Patience
from tasks import billing, bulk, sending, upkeep, viewing
from tasks.context import Context, Json
from tasks.queues import ROUTES, Queue
from tasks.together import Hands
from worker.carriers import open_email, open_sms
from worker.codec import PLAIN, use_codec
from worker.logs import set_up_logging
from worker.schedule import schedule
from worker.settings import Settings
from worker.transport import use_transport

TASK_MODULES = (billing, bulk, sending, upkeep, viewing)
"""Imported for real, so that the tasks exist; Celery's autodiscovery would look for other names."""

COLLECT_AFTER = 5_000
"""Objects that may be made before the garbage collector looks at them: about those of a batch."""


class PostageApp(Celery):
    """Celery with the settings it was made from and the context its tasks are given."""

    events_cls = "worker.events:OrderlyEvents"

    def __init__(self, settings: Settings, **options: Any) -> None:  # noqa: ANN401  Celery's
        super().__init__("postage", set_as_current=True, **options)
        self.settings = settings
        self._context: Context | None = None
        self._context_lock = threading.Lock()

    @property
    def context(self) -> Context:
        """What tasks may reach in this process: made when first asked for, so after any fork."""
        with self._context_lock:
            if self._context is None:
                self._context = make_context(self)
            return self._context

    def close_context(self) -> None:
        """Let go of every connection of this process."""
        with self._context_lock:
            if self._context is not None:
                self._context.close()
                self._context = None


def create_app(settings: Settings) -> PostageApp:
    """The app for these settings."""
    use_transport()
    use_codec()
    app = PostageApp(settings)
    app.conf.update(configuration(settings))
    return app


def make_context(app: PostageApp) -> Context:
    """Open the database and the carriers."""
    settings = app.settings
    return Context(
        database=Database(settings.database, settings.database_pool, settings.database_wait_s),
        carriers={
            "email": open_email(settings.smtp_url, settings.smtp_timeout_s, settings.connections),
            "sms": open_sms(settings.sms_url, settings.sms_timeout_s, settings.connections),
        },
        enqueue=lambda task, given: enqueue(app, task, given),
        patience=Patience(
            attempts_max=settings.attempts_max,
            base_s=settings.retry_base_s,
            longest_s=settings.retry_max_s,
            lease_s=settings.lease_s,
        ),
        keep_dead=timedelta(seconds=settings.keep_dead_s),
        hands=Hands(2 * settings.connections),
    )


def enqueue(app: Celery, task: str, given: Json) -> None:
    """Put a task on its queue. Nobody here waits for its answer, and the result store is not even connected to."""
    app.send_task(task, args=[given], argsrepr="(…)", ignore_result=True)


def configuration(settings: Settings) -> dict[str, Any]:
    """Celery's configuration, for money: nothing is acknowledged before it is done, and nothing is pickled."""
    transport = {
        "visibility_timeout": settings.visibility_timeout_s,
        # Look for the jobs of dead workers often, not every 100 s, and put all of them back, not 10 at a time (kombu's
        # defaults).
        "unacked_restore_interval": min(10, settings.visibility_timeout_s / 4),
        "unacked_restore_throttle": 1,
        "unacked_restore_limit": None,
        "unacked_mutex_expire": 30,
        # Campaigns share these with everybody else.
        "shared_queues": [Queue.EMAIL, Queue.SMS],
        "batch": settings.batch,
        "heavy_max": settings.concurrency,
        # Every thread may be acknowledging, while the consumer takes and the heart beats.
        "max_connections": settings.concurrency + 10,
        # Without these a call to a frozen broker waits for ever.
        "socket_timeout": 30,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 30,
    }
    return {
        "broker_url": settings.broker,
        "broker_transport_options": transport,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "result_backend": settings.results,
        "result_backend_transport_options": {"visibility_timeout": settings.visibility_timeout_s},
        "result_expires": settings.result_expires_s,
        # JSON alone, both ways: pickle would let whoever writes to the broker run code here.
        "task_serializer": "json",
        "result_serializer": "json",
        "event_serializer": PLAIN,
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        # Each with an exchange and a key of its own name, as producers that only know the name declare it.
        "task_queues": [KombuQueue(queue, Exchange(queue), routing_key=queue) for queue in Queue],
        "task_default_queue": Queue.UPKEEP,
        "task_create_missing_queues": False,
        "task_routes": {task: {"queue": queue} for task, queue in ROUTES.items()},
        # A job is acknowledged when it is answered: a worker that dies leaves it to the next.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        # One batch in work, one that comes next.
        "worker_prefetch_multiplier": -(-2 * settings.batch // settings.concurrency),
        # Jobs in hand when Redis blinks come again, and are known then; taking fewer for that would end batches.
        "worker_enable_prefetch_count_reduction": False,
        "task_annotations": {task: {"Strategy": "worker.batching:strategy"} for task in SEND_ONE_TASKS},
        "worker_consumer": "worker.consumer:CarefulConsumer",
        "worker_pool": "threads",
        "worker_concurrency": settings.concurrency,
        # A message half handed over must not be cut off because Redis blinked.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        # For Flower. What events show of a job is its id and its sender (tasks/door.py).
        "worker_send_task_events": settings.task_events,
        "task_send_sent_event": False,
        "beat_schedule": schedule(sweep_s=settings.sweep_s, roll_up_s=settings.roll_up_s, audit_s=settings.audit_s),
        "beat_schedule_filename": str(settings.var / "beat-schedule"),
        "timezone": "UTC",
        "enable_utc": True,
    }


@signals.setup_logging.connect
def _use_our_logging(**_kwargs: object) -> None:
    """Keep Celery from setting up its own: ours is set up before it starts (worker/cli.py)."""


@signals.worker_process_init.connect
def _set_up_child(**_kwargs: object) -> None:
    """A forked pool child needs its own logging, and makes its own context when first asked."""
    from celery import current_app  # noqa: PLC0415  the app of this process

    set_up_logging(current_app.settings)  # type: ignore[attr-defined]
    _keep_what_is_loaded()


@signals.worker_ready.connect
def _keep_what_is_loaded(**_kwargs: object) -> None:
    """Spare the garbage collector what stays as long as the process: that took it a fifth of a worker's time.

    A batch makes some thousand objects, of which none is left. Python's own threshold of 700 would have it looked for
    garbage many times, while all of it is still in use.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


@signals.worker_shutting_down.connect
def _stop_waiting(**_kwargs: object) -> None:
    """A worker that is told to end does not wait for a database that is gone: its jobs go back to the queue."""
    from celery import current_app  # noqa: PLC0415  the app of this process

    app: PostageApp = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001
    app.context.database.closing.set()


@signals.worker_shutdown.connect
def _say_goodbye(sender: Any = None, **_kwargs: object) -> None:  # noqa: ANN401
    """Close connections in order."""
    sender.app.close_context()
