"""What a worker puts on queues itself: all in one round trip, and on a connection that broke none is lost."""

import base64
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from redis import Redis

from worker.app import PostageApp, create_app, enqueue
from worker.settings import Settings

MESSAGES = [{"org_id": 1, "attempts": {f"job-{number}": 0}} for number in range(5)]


@pytest.fixture
def app(valkey_url: str) -> Iterator[PostageApp]:
    """Give the app of a worker."""
    with closing(create_app(Settings(broker_url=valkey_url))) as app:
        yield app


def waiting(redis: Redis) -> list[Any]:
    """Give the objects that wait, the first one first."""
    items = [json.loads(item) for item in reversed(redis.lrange("email", 0, -1))]
    return [json.loads(base64.b64decode(item["body"]))[0][0] for item in items]


def test_all_objects_are_put_on_the_queue_in_order(app: PostageApp, redis: Redis) -> None:
    enqueue(app, "email.resume", MESSAGES)

    assert waiting(redis) == MESSAGES


def test_all_objects_are_on_the_queue_after_the_broker_has_ended_a_connection(app: PostageApp, redis: Redis) -> None:
    enqueue(app, "email.resume", MESSAGES[:1])
    redis.delete("email")
    redis.client_kill_filter(_type="normal", skipme=True)

    enqueue(app, "email.resume", MESSAGES)

    assert [message for message in MESSAGES if message not in waiting(redis)] == []
