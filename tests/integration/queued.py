"""The broker as tests use it: what is on a queue, and a broker that is not there."""

import base64
import json
import time
from datetime import datetime
from typing import Any, cast

from celery import Celery
from redis import Redis

from tasks.context import Json
from worker.broker.fair_queue import QUARANTINE

NO_BROKER = "redis://127.0.0.1:1/0"
"""The URL of a broker that does not answer."""


def wait_for_no_broker(app: Celery) -> None:
    """Let an app give up at once, and not after seconds, on a broker that does not answer."""
    app.conf.broker_transport_options = {"max_retries": 1, "interval_start": 0}
    app.conf.task_publish_retry = False


def put_in_quarantine(redis: Redis, *items: bytes, at: datetime | None = None) -> None:
    """Put items into the quarantine, one after the other, the last one at this time or now."""
    last_s = time.time() if at is None else at.timestamp()
    for place, item in enumerate(reversed(items)):
        redis.zadd(QUARANTINE, {item: last_s - place * 0.001})


def messages_on(redis: Redis, queue: str) -> list[Json]:
    """Give the messages on a queue as they are on the wire, the oldest first."""
    return [json.loads(item) for item in reversed(cast("list[bytes]", redis.lrange(queue, 0, -1)))]


def body_of(message: Json) -> Any:
    """Give the decoded body of a message."""
    return json.loads(base64.b64decode(message["body"]))


def jobs_on(redis: Redis, queue: str) -> list[Json]:
    """Give the objects of the jobs on a queue, the oldest first."""
    return [body_of(message)[0][0] for message in messages_on(redis, queue)]
