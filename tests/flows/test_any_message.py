"""Whatever is put on a queue: no process ends, every message has an end that can be found, and memory is bounded.

The generator (any_message.py) changes anything in the jobs of every task, and makes garbage. `make fuzz` does the same
with 20,000 messages.
"""

import base64
import json
import os
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import Table, select

from models.database.schema import charges, dead_letters, postponed_jobs, refusals
from models.text import sanitize
from tests.conftest import TEMPLATE
from tests.flows.any_message import OURS, PEOPLE, QUEUES, AnyMessage, any_messages
from tests.flows.deployment import Deployment, wait_until
from tests.flows.jobs import email_job, new_id
from tests.servers import PostgresServer, ValkeyServer
from worker.broker import fair_queue

pytestmark = [pytest.mark.timeout(3600), pytest.mark.xdist_group("any_message")]

TOGETHER = 20
"""Messages that are put on the queues at the same time."""
MESSAGES = int(os.environ.get("FUZZ", "500"))
MEMORY_MAX = 300_000_000
KEYS: tuple[tuple[Table, str], ...] = (
    (charges, "job_id"),
    (charges, "task_id"),
    (refusals, "task_id"),
    (refusals, "key"),
    (dead_letters, "task_id"),
    (postponed_jobs, "task_id"),
)


class Target:
    """A worker that is given anything, and what it leaves on record."""

    def __init__(self, deployment: Deployment, sender: str) -> None:
        self.deployment = deployment
        self.sender = sender
        self.messages = 0
        self.peak = 0

    def put(self, messages: list[AnyMessage]) -> None:
        """Put messages on their lists, and wait until the worker has acknowledged all of them, and a good job."""
        deployment = self.deployment
        deployment.restart_worker(by_force=bool(deployment.redis.hlen("unacked")))
        pid = deployment.worker.pid
        for message in messages:
            deployment.redis.lpush(message.list, message.item)
        good = new_id("good")
        deployment.send("email.send", email_job(good, self.sender))
        deployment.wait_until_final(good)
        wait_until(self._is_idle, lambda: f"all is acknowledged: {deployment.redis.hvals('unacked')}")
        assert deployment.worker.is_running()
        assert deployment.worker.pid == pid
        self.messages += len(messages)

    def _is_idle(self) -> bool:
        deployment = self.deployment
        deployment.worker.check()
        self.peak = max(self.peak, psutil.Process(deployment.worker.pid).memory_info().rss)
        waiting = any(fair_queue.waiting_count(deployment.redis, queue) for queue in QUEUES)
        other = [key for key in deployment.redis.scan_iter() if b"\x06\x16" in key and not key.startswith(b"_kombu")]
        return not waiting and not other and not deployment.redis.hlen("unacked")

    def recorded(self) -> set[str]:
        """Every id in the database under which something ended, and the whole of what is in the quarantine."""
        with self.deployment.database.snapshot() as connection:
            ids = {
                row[0]
                for table, column in KEYS
                if column in table.c
                for row in connection.execute(select(table.c[column]))
            }
        results = (key.decode("utf-8", "replace") for key in self.deployment.redis.scan_iter("celery-task-meta-*"))
        return ids | {key.removeprefix("celery-task-meta-") for key in results}

    def quarantined(self) -> bytes:
        """All that is in the quarantine."""
        items: Any = self.deployment.redis.zrange(fair_queue.QUARANTINE, 0, -1)
        return b"\n".join(items)


@pytest.fixture(scope="module")
def target(migrated_postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("any-message")
    with (
        migrated_postgres.copy_of(TEMPLATE) as url,
        ValkeyServer(folder / "valkey") as broker,
        Deployment(folder, url, broker.url(), log_level="INFO") as deployment,
    ):
        sender, _ = deployment.people(email=100_000)
        do = deployment.producer.do
        do("roles.save", {"organization": "fuzz", "role": "all", "rights": ["view_user_list", "edit_user"]})
        for person in PEOPLE:
            do("users.save", {"user_id": person, "organization": "fuzz", "name": "F", "email": "f@example.org",
                              "role": "all", "billing": {"name": "F"}})  # fmt: skip
        credit = {"credits": {"email": 10_000, "sms": 10_000}, "amount": 1, "currency": "EUR"}
        do("credits.purchase", {"order_id": "fuzz-order", "buyer": PEOPLE[0], **credit})
        yield Target(deployment, sender)


@settings(
    max_examples=max(1, MESSAGES // TOGETHER),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to reduce what fails would take a minute for each step
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(data=st.data())
def test_no_message_ends_a_worker_or_is_left_without_an_end(target: Target, data: st.DataObject) -> None:
    marks = [f"fuzz-{number:08}" for number in range(target.messages, target.messages + TOGETHER)]
    messages = [data.draw(any_messages(mark)) for mark in marks]
    target.deployment.redis.delete(fair_queue.QUARANTINE)

    target.put(messages)

    recorded, quarantined = target.recorded(), target.quarantined()
    without_end = [message for message in messages if not has_ended(message, recorded, quarantined)]
    assert not without_end, "\n".join(f"on {message.list!r}: {message.item!r}" for message in without_end)
    lines = target.deployment.worker.output.splitlines()
    assert [line for line in lines if "Traceback" in line or '"event": "fault"' in line] == []


def test_all_of_it_took_little_memory_and_left_the_money_right(target: Target) -> None:
    print(f"{target.messages} messages, peak {target.peak / 1e6:.0f} MB")  # noqa: T201  a figure for docs/reliability.md
    assert target.peak < MEMORY_MAX
    assert target.deployment.findings() == []


def has_ended(message: AnyMessage, recorded: set[str], quarantined: bytes) -> bool:
    """Whether what became of a message is on record, under its mark or an id that it names; nobody asks for our own."""
    if message.mark.encode() in quarantined or message.mark in recorded:
        return True
    try:
        parts = json.loads(message.item)
        task, task_id = (parts["headers"][name] for name in ("task", "id"))
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    ids = {str(each) for each in (task_id, *job_ids(parts))}
    return task in OURS or not recorded.isdisjoint(ids | {sanitize(each, 255) for each in ids})


def job_ids(parts: Any) -> list[Any]:
    """Every id of the job in a message, if that can be read."""
    try:
        [[job, *_], *_] = json.loads(base64.b64decode(parts["body"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    return [value for field, value in job.items() if field.endswith("_id")] if isinstance(job, dict) else []
