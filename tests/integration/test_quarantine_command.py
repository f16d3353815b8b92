"""The command `postage dead` for quarantined items: list, show, and put back on their queues."""

import base64
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import cast

import pytest
from celery import Celery
from redis import Redis

from tasks.context import Json
from tests.factories import email_job
from tests.integration.commands import Run, open_app, printed, runner_of
from tests.integration.queued import put_in_quarantine
from worker.broker.fair_queue import QUARANTINE
from worker.broker.quarantine import QuarantinedItem
from worker.cli.dead import PRIVATE, dead


@pytest.fixture
def run(sqlite_url: str, valkey_url: str) -> Iterator[Run]:
    """Give `postage dead` with a real broker."""
    with open_app(sqlite_url, valkey_url) as app:
        yield runner_of(dead, app)


@pytest.fixture
def quarantine(redis: Redis, valkey_url: str) -> Callable[..., bytes]:
    """Give a function that quarantines a message of a task that no worker knows, and gives its bytes."""

    def quarantine(queue: str = "email", key: str | None = None) -> bytes:
        with Celery("producer", broker=valkey_url, set_as_current=False) as producer:
            producer.conf.task_create_missing_queues = True
            producer.send_task("email.fly", args=[email_job(text="secret words")], queue=queue)
        item = cast("bytes", redis.rpop(queue))
        if key is not None:
            message = json.loads(item)
            message["properties"]["delivery_info"]["routing_key"] = key
            item = json.dumps(message).encode()
        put_in_quarantine(redis, item)
        return item

    return quarantine


def list_items(run: Run) -> list[Json]:
    """Give what is in the quarantine as it is listed."""
    rows: list[Json] = printed(run("list", "--kind", "quarantined", "--json"))["rows"]
    return rows


def test_items_are_listed_without_their_contents(run: Run, redis: Redis, quarantine: Callable[..., bytes]) -> None:
    item = quarantine()
    put_in_quarantine(redis, b"\xff\x00 no message of ada@example.test")

    listed, shown = run("list", "--json"), run("list")

    garbage, message = sorted(printed(listed)["rows"], key=lambda row: row["bytes"])
    assert (message["task"], message["queue"], message["bytes"]) == ("email.fly", "email", len(item))
    assert (garbage["task"], garbage["queue"]) == (None, None)
    assert "cannot be read" in garbage["detail"]
    assert message["id"] in shown.stdout
    for private in ("ada@example.test", "secret", base64.b64encode(b"secret")[:6].decode()):
        assert private not in listed.stdout + shown.stdout


def test_an_item_is_shown_without_control_characters(run: Run, redis: Redis) -> None:
    put_in_quarantine(redis, b"\xff \x1b[31m red \xd8")
    [row] = list_items(run)

    shown = run("show", row["id"])

    assert shown.exit_code == 0
    assert PRIVATE in shown.stderr
    assert "\\xff \\x1b[31m red \\xd8" in shown.stdout


def test_an_item_goes_back_unchanged_to_its_queue(run: Run, redis: Redis, quarantine: Callable[..., bytes]) -> None:
    other, item = quarantine(queue="sms"), quarantine()
    [row] = [row for row in list_items(run) if row["queue"] == "email"]

    replayed, again = run("replay", row["id"]), run("replay", row["id"])

    assert (replayed.exit_code, again.exit_code) == (0, 1)
    assert "as email." in replayed.stdout
    assert "There is no item" in again.stdout
    assert redis.lrange("email", 0, -1) == [item]
    assert redis.zrange(QUARANTINE, 0, -1) == [other]


@pytest.mark.parametrize("raw", [b"garbage", b"[]", b'{"properties": 7}', b"[" * 100_000])
def test_an_item_that_names_no_queue_stays(run: Run, redis: Redis, raw: bytes) -> None:
    put_in_quarantine(redis, raw)
    [row] = list_items(run)

    replayed = run("replay", row["id"])

    assert replayed.exit_code == 1
    assert "does not say for which of our queues" in replayed.stdout
    assert redis.zrange(QUARANTINE, 0, -1) == [raw]


@pytest.mark.parametrize("key", ["unacked", "nonsense", QUARANTINE, "celery"])
def test_an_item_for_a_queue_that_does_not_exist_stays(
    run: Run, redis: Redis, quarantine: Callable[..., bytes], key: str
) -> None:
    quarantine(key=key)
    [row] = list_items(run)

    assert run("replay", row["id"]).exit_code == 1
    assert redis.zcard(QUARANTINE) == 1


def test_all_items_go_back_except_those_that_cannot(run: Run, redis: Redis, quarantine: Callable[..., bytes]) -> None:
    for queue in ("email", "sms", "billing"):
        quarantine(queue=queue)
    put_in_quarantine(redis, b"garbage")

    replayed = run("replay", "--all", "--json")

    assert replayed.exit_code == 1
    assert [row["replayed_as"] for row in printed(replayed)["rows"]] == [None, "billing", "sms", "email"]
    assert redis.zrange(QUARANTINE, 0, -1) == [b"garbage"]
    assert [redis.llen(queue) for queue in ("email", "sms", "billing")] == [1, 1, 1]


def id_of(raw: bytes) -> str:
    """Give the id of an item, which is made from its bytes alone."""
    return QuarantinedItem(raw, datetime.now(UTC)).id


def raw_of(run: Run, item_id: str) -> str:
    """Give the bytes of an item, as it is shown."""
    return str(printed(run("show", item_id, "--json"))["raw"])


def test_a_long_quarantine_has_pages_that_neither_skip_nor_repeat(run: Run, redis: Redis) -> None:
    """All items of the first page go, and another one comes, before the second."""
    items = [f"item {number}".encode() for number in range(150)]
    put_in_quarantine(redis, *items)

    first = printed(run("list", "--kind", "quarantined", "--json"))
    for row in first["rows"]:
        redis.zrem(QUARANTINE, raw_of(run, row["id"]))
    put_in_quarantine(redis, b"another")
    second = printed(run("list", "--kind", "quarantined", "--next", first["next"], "--json"))

    assert (len(first["rows"]), first["more"]) == (100, True)
    assert second["more"] is False
    shown = [row["id"] for page in (first, second) for row in page["rows"]]
    assert len(shown) == len(set(shown))
    assert set(shown) - {id_of(b"another")} == {id_of(item) for item in items}
    assert run("show", second["rows"][-1]["id"]).exit_code == 0
