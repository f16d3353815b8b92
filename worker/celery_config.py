"""Every setting of Celery's, with its reason, and the tasks that beat sends."""

from typing import Any

from kombu import Exchange
from kombu import Queue as KombuQueue

from models.messages.base import Json
from models.messages.fields import KINDS
from models.messages.wire import SAVE_TASKS, SEND_ONE_TASKS
from tasks.broker_urls import without_repeated_passwords
from tasks.queues import ROUTES, Queue
from worker.broker.json_codec import PLAIN_JSON
from worker.broker.signing import BY_US
from worker.settings import Settings

TURNS = {
    Queue.EMAIL: "sender",
    Queue.SMS: "sender",
    Queue.BULK: "sender",
    Queue.BILLING: "buyer",
    Queue.VIEWS: "viewer",
}
"""The queues on which people take turns, so that a campaign holds up nobody else, and the field that names the person.
Of what is on `billing`, only purchases name a buyer. Saves and changes share one line, so they stay in order (0021).
"""


AT_WORK_MAX = 8_000_000
"""Bytes of the messages that one worker process has at work: decoded they take some times as much."""


def celery_config(settings: Settings) -> Json:
    """Return Celery's configuration: nothing is acknowledged before it is done, and nothing is pickled."""
    return {
        "broker_url": settings.broker,
        "broker_transport_options": _transport_options(settings),
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "result_backend": without_repeated_passwords(settings.results),
        "result_backend_transport_options": {
            "visibility_timeout": settings.visibility_timeout_s,
            **settings.broker_options,
        },
        "result_expires": settings.result_expires_s,
        # Only JSON, in both directions: with pickle, whoever writes to the broker could run code here.
        "task_serializer": "json",
        "result_serializer": "json",
        "event_serializer": PLAIN_JSON,
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        # Each queue has an exchange and a key of its own name, as a producer that only knows the name declares it.
        "task_queues": [KombuQueue(queue, Exchange(queue), routing_key=queue) for queue in Queue],
        "task_default_queue": Queue.UPKEEP,
        "task_create_missing_queues": False,
        "task_routes": {task: {"queue": queue} for task, queue in ROUTES.items()},
        # A job is acknowledged when it is answered, so a worker that crashes leaves it to another one.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        # What each kind may have at work, and one batch of everything else, and one that comes next.
        "worker_prefetch_multiplier": -(
            -(2 * settings.batch + sum(_at_work(settings).values())) // settings.concurrency
        ),
        # After a blink of Redis the jobs at work are delivered again, and are known then. To take fewer for that
        # reason, as Celery would, would mean small batches.
        "worker_enable_prefetch_count_reduction": False,
        "task_annotations": {
            "*": {"Request": "worker.broker.request:RedactedRequest"},
            **{task: {"Strategy": "worker.broker.batching:strategy"} for task in SEND_ONE_TASKS},
            **{f"{kind}.resume": {"Strategy": "worker.broker.send_pool:strategy"} for kind in KINDS},
            **{task: {"Strategy": "worker.broker.lane:strategy"} for task in SAVE_TASKS},
        },
        "worker_consumer": "worker.broker.consumer:QuarantiningConsumer",
        "worker_pool": "worker.broker.pool:TaskPool",
        "worker_concurrency": settings.concurrency,
        # A message that is half handed over must not be cut off because Redis blinked.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        # For Flower. Events show the id of a job and its sender only (worker/broker/request.py).
        "worker_send_task_events": settings.task_events,
        "task_send_sent_event": False,
        "worker_enable_remote_control": settings.remote_control,
        "beat_schedule": _beat_schedule(settings),
        "beat_scheduler": "worker.broker.beat:Scheduler",
        "beat_schedule_filename": str(settings.var / "beat-schedule"),
        "timezone": "UTC",
        "enable_utc": True,
    }


def _transport_options(settings: Settings) -> dict[str, Any]:
    return {
        **settings.broker_options,
        "visibility_timeout": settings.visibility_timeout_s,
        # By default kombu looks for the jobs of crashed workers every 100 s.
        "unacked_restore_interval": min(10, settings.visibility_timeout_s / 4),
        "unacked_mutex_expire": 30,
        "shared_queues": {str(queue): field for queue, field in TURNS.items()},
        "batched_queues": [Queue.EMAIL, Queue.SMS],
        "batch": settings.batch,
        "at_work_of": _at_work(settings),
        # A job that is longer is refused. One that is more than twice as long, in base64, is not even read.
        "body_max": settings.message_bytes_max,
        "bytes_max": 3 * settings.message_bytes_max,
        "at_work_max": AT_WORK_MAX,
        "bulk_max": settings.concurrency,
        "producer_keys": str(settings.producer_keys_file),
        # Every thread may acknowledge, while the consumer takes messages and the heart beats.
        "max_connections": settings.concurrency + 10,
        # Without timeouts, a call to a broker that stands still would wait for ever.
        "socket_timeout": 30,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 30,
    }


def _at_work(settings: Settings) -> dict[str, int]:
    """Return how many messages of each kind a worker has at work, about.

    One batch and one that comes next; and as many as its carriers can have in conversation, with the next ones.
    """
    return {kind: 2 * settings.batch + settings.conversations(kind) for kind in KINDS}  # whose queues are called so


def _beat_schedule(settings: Settings) -> dict[str, Json]:
    """Return beat's table. A round that no worker has begun two rounds later expires, so they never pile up."""
    every_s = {"sweep": settings.sweep_s, "roll_up": settings.roll_up_s, "audit": settings.audit_s}
    return {
        name: {
            "task": f"upkeep.{name}",
            "schedule": seconds,
            "args": [{}],
            "options": {"expires": 2 * seconds, "headers": BY_US},
        }
        for name, seconds in every_s.items()
    }
