"""Messages that would fill the memory of a worker: each ends on the record or in the quarantine."""

import base64
import bz2
import json
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from models.errors import Reason
from models.sends.charges import State
from tests.flows.deployment import Deploy, Deployment, wait_until
from tests.flows.jobs import email_job, new_id

pytestmark = [pytest.mark.timeout(240), pytest.mark.xdist_group("sizes")]

MEMORY_MAX = 300_000_000
EACH = int(os.environ.get("TEST_EACH", "2"))
"""How many messages of each kind wait at the same time."""


def push(deployment: Deployment, job_id: str, body: bytes, compression: str | None = None) -> None:
    """Put a message on the queue, as kombu does, with a body that is compressed already."""
    headers = {"task": "email.send", "id": job_id, **({"compression": compression} if compression else {})}
    message = {
        "body": base64.b64encode(body).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": headers,
        "properties": {
            "delivery_tag": job_id,
            "delivery_info": {"exchange": "", "routing_key": "email"},
            "body_encoding": "base64",
        },
    }
    deployment.redis.lpush("email", json.dumps(message))


def as_body(job: Any) -> bytes:
    return json.dumps([[job], {}, {}]).encode()


TOO_LARGE: dict[str, tuple[Callable[[Any], bytes], str | None]] = {
    "inflates to 40 MB": (lambda job: zlib.compress(as_body(job)[:-9] + b" " * 40_000_000), "application/x-gzip"),
    "inflates to 40 MB by bzip2": (
        lambda job: bz2.compress(as_body(job)[:-9] + b" " * 40_000_000),
        "application/x-bz2",
    ),
    "is long": (lambda job: as_body({**job, "html": "x" * 8_000_000}), None),
    "holds many objects": (lambda job: as_body({**job, "x": [{}] * 1_400_000}), None),
    "holds many values": (lambda job: as_body({**job, "x": [1] * 1_900_000}), None),
    "is nested": (lambda job: as_body(job)[:-9] + b', "x": ' + b"[" * 3_000_000, None),
}
LARGE: dict[str, Callable[[Any], Any]] = {
    "a large text": lambda job: {**job, "html": "é" * 900_000},
    "much that is unknown": lambda job: {**job, "x": [{"a": "b"}] * 14_000, "y": ["ab"] * 350_000},
}


def test_no_message_fills_the_memory_of_a_worker(deploy: Deploy) -> None:
    with deploy(log_level="INFO", concurrency=8) as deployment:
        _, member = deployment.people(email=1_000)
        memory = psutil.Process(deployment.worker.pid)
        refused, sent = [], []
        for make, compression in TOO_LARGE.values():
            body = make(email_job("x", member))
            refused += list(_push_several(deployment, lambda _, body=body: body, compression))
        for change in LARGE.values():
            sent += list(
                _push_several(deployment, lambda job_id, change=change: as_body(change(email_job(job_id, member))))
            )
        huge = new_id("huge")
        push(deployment, huge, b"x" * 20_000_000)

        peak = 0

        def is_idle() -> bool:
            nonlocal peak
            peak = max(peak, memory.memory_info().rss)
            deployment.worker.check()
            return not deployment.redis.llen("email") and not deployment.redis.hlen("unacked") and deployment.is_idle()

        wait_until(is_idle, "all is acknowledged")
        print(f"peak {peak / 1e6:.0f} MB")  # noqa: T201  a figure for docs/reliability.md

        rows = {row.task_id: row.reason for row in deployment.refusals(refused)}
        assert rows == dict.fromkeys(refused, Reason.TOO_LARGE)
        assert deployment.redis.zcard("postage.quarantined") == 1
        ended = deployment.charges(sent)
        assert all(charge.state is State.SENT for charge in ended.values())
        assert len(ended) == EACH  # the others name a field that is unknown
        assert peak < MEMORY_MAX
        assert deployment.findings() == []


def test_bulk_jobs_of_the_largest_size_share_the_memory_of_a_worker(deploy: Deploy) -> None:
    with deploy(log_level="INFO") as deployment:
        _, member = deployment.people(email=500 * EACH)
        memory = psutil.Process(deployment.worker.pid)
        recipients = [{"to": f"reader{number}@customer.example"} for number in range(500)]
        content = {"sender": member, "subject": "Hello", "text": "x" * 24_000, "html": "y" * 24_500}
        jobs = [new_id("largest") for _ in range(EACH)]
        for job_id in jobs:
            deployment.send("email.send_many", {"job_id": job_id, "recipients": recipients, **content})
        peak = 0

        def all_are_sent() -> bool:
            nonlocal peak
            peak = max(peak, memory.memory_info().rss)
            deployment.worker.check()
            return len(deployment.mail_server.mails) == 500 * EACH

        wait_until(all_are_sent, "all messages are sent")
        deployment.wait_until_final(*jobs)
        print(f"peak of bulk jobs {peak / 1e6:.0f} MB")  # noqa: T201  a figure for docs/reliability.md

        assert peak < MEMORY_MAX
        assert deployment.findings() == []


def _push_several(
    deployment: Deployment, make: Callable[[str], bytes], compression: str | None = None
) -> Iterator[str]:
    for _ in range(EACH):
        job_id = new_id("large")
        push(deployment, job_id, make(job_id), compression)
        yield job_id


def test_a_job_that_is_too_large_is_found_under_its_id(deploy: Deploy) -> None:
    with deploy(message_bytes_max=20_000) as deployment:
        _, member = deployment.people(email=1)
        job = email_job("letter-1", member, html="x" * 30_000)
        deployment.send("email.send", job)
        wait_until(lambda: deployment.message(member, "letter-1")["status"] == "refused", "it is refused")

        answer = deployment.message(member, "letter-1")
        assert answer["reason"] == Reason.TOO_LARGE
        assert "20,000 bytes" in answer["detail"]
        deployment.send("email.send", email_job("letter-1", member))
        assert deployment.wait_until_final("letter-1")["letter-1"].state is State.SENT
