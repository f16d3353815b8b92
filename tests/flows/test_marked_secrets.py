"""A secret in every place where a producer can put text is nowhere in what an installation shows of itself."""

import base64
import json
import re
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from models.database.engine import utc_now
from models.sends.carrier import Outcome
from tasks.metrics import MESSAGES, SECONDS
from tasks.queues import ROUTES, Queue
from tests.flows import marked_jobs
from tests.flows.deployment import Deploy, Deployment, Program, wait_until
from tests.flows.jobs import email_job
from tests.flows.outside import collected_events
from tests.servers import free_port
from worker.broker import fair_queue

pytestmark = pytest.mark.timeout(240)

INSPECTED = ("active", "reserved", "scheduled", "revoked", "stats", "conf", "registered", "report", "active_queues")
SCHEDULED = "in-a-minute"
"""The id of a task that is not due during the test."""
DETAIL_MAX = 1_000
"""Characters that no sentence about a wrong job has."""
FLOWER_AUTH = "operator:password"
PAGES = ("/api/tasks?limit=100000", "/api/workers?refresh=1", "/tasks", "/workers", "/broker", "/metrics")


def showing(parts: Iterable[object]) -> list[str]:
    """Give the parts that hold a secret, with what stands around it."""
    found = []
    for part in parts:
        text = part if isinstance(part, str) else json.dumps(part, default=repr)
        lowered = text.lower()
        places = [lowered.find(mark) for mark in marked_jobs.MARKS if mark in lowered]
        found += [text[max(0, place - 300) : place + 200] for place in places[:1]]
    return found


def inspect(deployment: Deployment, task_ids: list[str]) -> list[Any]:
    """Give everything that remote control tells of a worker and of these tasks."""
    replies = [deployment.producer.control(command) for command in INSPECTED]
    return [*replies, deployment.producer.control("query_task", ids=task_ids)]


def fetched(url: str) -> str:
    """Give a page."""
    request = Request(url, headers={"Authorization": f"Basic {base64.b64encode(FLOWER_AUTH.encode()).decode()}"})  # noqa: S310
    with urlopen(request, timeout=30) as page:  # noqa: S310  a server of this test
        return str(page.read().decode())


def is_answered(deployment: Deployment, but: str) -> bool:
    """Whether the worker has answered every message except one."""
    deployment.worker.check()
    unacknowledged: Any = deployment.redis.hvals("unacked")
    waits = any(fair_queue.waiting_count(deployment.redis, queue) for queue in Queue if queue != Queue.UPKEEP)
    return not waits and all(b"upkeep." in each or but.encode() in each for each in unacknowledged)


def results_of(deployment: Deployment) -> list[bytes]:
    """Give the results that the broker keeps."""
    keys: Any = deployment.redis.keys("celery-task-meta-*")
    values: Any = deployment.redis.mget(keys)
    return list(values)


def without_names_of_fields(result: str) -> object:
    """Give a result as the producer gets it, less the names that it repeats to say what is wrong."""
    meta = json.loads(result)
    detail = meta["result"].get("detail") or ""
    assert len(detail) < DETAIL_MAX
    return {**meta, "result": {**meta["result"], "detail": re.sub(r"`[^`]*`", "``", detail)}}


def check_labels(page: str) -> None:
    """Check that every label of Postage's metrics comes from a closed list."""
    closed = {
        "task": set(ROUTES),
        "status": {"sent", "refused", "failed", "unknown", "done", "sending", "retrying", "None"},
        "queue": set(map(str, Queue)),
        "kind": {"email", "sms"},
        "carrier": {"127.0.0.1"},
        "outcome": set(map(str, Outcome)),
        "le": {*map(str, map(float, (*SECONDS, *MESSAGES))), "+Inf"},
    }
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    ours = [sample for sample in samples if sample.name.startswith("postage_")]
    assert ours
    for sample in ours:
        for label, value in sample.labels.items():
            assert value in closed[label], sample


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_marked_secret_is_nowhere_but_in_its_message(deploy: Deploy, tmp_path: Path, form: str) -> None:
    metrics_port, flower_port = free_port(), free_port()
    with deploy(
        beat=True, log_level="DEBUG", log_format=form, concurrency=2, metrics_port=metrics_port, email_headers="X-Shop"
    ) as deployment:
        owner, member = deployment.people(email=2_000, sms=2_000)
        server = deployment.mail_server
        server.will_answer_recipient(f"refused-{marked_jobs.ADDRESS}", f"550 5.1.1 <{marked_jobs.ADDRESS}> is unknown")
        server.will_answer("later", f"451 4.3.0 not now, {marked_jobs.TEXT}")
        server.will_answer("never", f"550 5.7.1 {marked_jobs.TEXT} is spam")
        flower = Program(
            tmp_path,
            "flower",
            ["flower"],
            {**deployment.settings, "flower_port": flower_port, "flower_auth": FLOWER_AUTH},
        )
        with collected_events(deployment.producer.app) as events:
            try:
                wait_until(lambda: _answers(flower, flower_port), "Flower answers")
                replies, ids = held_and_inspected(deployment, member)
                messages = marked_jobs.marked_messages(owner, member)
                for each in messages:
                    deployment.redis.lpush(each.queue, each.item())
                for item in marked_jobs.RAW_ITEMS:
                    deployment.redis.lpush("email", item)
                wait_until(
                    lambda: is_answered(deployment, but=SCHEDULED),
                    lambda: f"every message is answered; left are {deployment.redis.hvals('unacked')}",
                    within_s=30,
                )
                last = deployment.send("email.send", email_job("last", member))
                deployment.wait_until_final("last", "later", "never", "partly")
                wait_until(
                    lambda: {"task-received", "task-succeeded"} <= {e["type"] for e in events if e.get("uuid") == last},
                    "the last events have arrived",
                )
                ids += [each.task_id for each in messages if "id" in each.headers]
                replies += inspect(deployment, ids[:200])
                pages = [fetched(f"http://127.0.0.1:{flower_port}{page}") for page in PAGES]
                pages += [_page_of_task(flower_port, task_id) for task_id in (*ids[:3], last)]
                metrics = fetched(f"http://127.0.0.1:{metrics_port}/metrics")
            finally:
                flower.end()
        results = results_of(deployment)
        deployment.worker.end()

        assert showing(events) == []
        assert showing(replies) == []
        assert showing(deployment.worker.output.splitlines()) == []
        assert showing((deployment.folder / "beat.log").read_text().splitlines()) == []
        assert showing(flower.output.splitlines()) == []
        assert showing(page for text in pages for page in text.splitlines()) == []
        assert showing([metrics]) == []
        check_labels(metrics)
        assert last in pages[0]
        assert len(results) > 100
        assert showing(map(without_names_of_fields, results)) == []


def held_and_inspected(deployment: Deployment, member: str) -> tuple[list[Any], list[str]]:
    """Have a worker show jobs that are held at the mail server, wait, or are scheduled. Gives that, and their ids."""
    told, server = marked_jobs.job_told_wrongly, deployment.mail_server
    held = [told(member, job_id) for job_id in ("held", "waits")]
    server.hold()
    for each in held:
        deployment.redis.lpush(each.queue, each.item())
        wait_until(lambda job_id=each.job_id: server.offers[job_id], "it is held")
    soon = (utc_now() + timedelta(seconds=50)).isoformat()
    partly = told(member, "partly")
    partly.job["cc"] = [f"refused-{marked_jobs.ADDRESS}"]
    waiting = [told(member, "later"), told(member, "never"), partly, told(member, "soon", eta=soon, id=SCHEDULED)]
    for each in waiting:
        deployment.redis.lpush(each.queue, each.item())
    ids = [each.task_id for each in (*held, *waiting)]
    replies = wait_until(lambda: _with_jobs(inspect(deployment, ids)), "remote control shows jobs of each kind")
    server.release()
    return replies, ids


def _with_jobs(replies: list[Any]) -> list[Any] | None:
    """Give replies in which jobs are active, reserved and scheduled."""
    return replies if all(replies[:3]) else None


def _answers(flower: Program, port: int) -> bool:
    flower.check()
    try:
        return bool(fetched(f"http://127.0.0.1:{port}/healthcheck"))
    except OSError:
        return False


def _page_of_task(port: int, task_id: str) -> str:
    try:
        return fetched(f"http://127.0.0.1:{port}/task/{task_id}")
    except HTTPError as error:
        return str(error)
