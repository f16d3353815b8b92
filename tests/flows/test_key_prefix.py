"""A prefix of keys: an installation whose Redis user may touch no other key or channel does everything."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import ConnectionPool, Redis

from tasks.client import JobLike, enqueue, producer_app
from tests.flows.deployment import PATIENT, Deployment, run, wait_until
from tests.flows.jobs import email_job, new_id
from tests.flows.outside import Producer
from tests.servers import ValkeyServer
from worker.broker import fair_queue
from worker.broker.prefixed import PrefixedRedis
from worker.broker.quarantine import count_items

OPERATING = Path(__file__).parents[2] / "docs/operating.md"
PREFIX = "shop-1:"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Redis]:
    """Give a server with the user of docs/operating.md, who is held to the prefix, and with somebody else's job."""
    with ValkeyServer(tmp_path / "valkey") as server, Redis.from_url(server.url()) as admin:
        [user] = re.findall(r"^ACL SETUSER shop-1 .*", OPERATING.read_text(), re.MULTILINE)
        admin.execute_command(*user.split())
        admin.lpush("email", "a job of somebody else")
        yield admin


def ask_as_the_client_does(url: str, job: JobLike) -> dict[str, Any]:
    with producer_app(url, url, key_prefix=PREFIX) as app:
        [task_id] = enqueue(app, [job])
        result = app.AsyncResult(task_id)
        answer: dict[str, Any] = result.get(timeout=60)
        result.backend.remove_pending_result(result)
        result.backend.result_consumer.stop()
        result.backend = None  # else it would use the broker when its memory is freed, which may have ended by then
    return answer


def test_an_installation_keeps_to_its_prefix(tmp_path: Path, postgres_url: str, server: Redis) -> None:
    url = f"redis://shop-1:password@127.0.0.1:{server.get_connection_kwargs()['port']}/0"
    outside = {
        "redis": PrefixedRedis(connection_pool=ConnectionPool.from_url(url), global_keyprefix=PREFIX),
        "producer": Producer(url, global_keyprefix=PREFIX),
    }
    settings = {"key_prefix": PREFIX, "batch": 20, **PATIENT}
    with Deployment(tmp_path, postgres_url, url, beat=True, **settings, **outside) as deployment:
        owner, member = deployment.people(email=300)
        jobs = [new_id("mail") for _ in range(300)]
        overview = ask_as_the_client_does(url, ("views.overview", {"viewer": member}))
        assert overview["remaining"] == {"email": 300, "sms": 0}
        deployment.mail_server.hold()
        with deployment.worker.paused():  # so that more jobs wait than it can take
            for number, job in enumerate(jobs):
                deployment.send("email.send", email_job(job, (owner, member)[number % 2]))
            deployment.redis.lpush("email", b"garbage")
        wait_until(lambda: deployment.redis.exists("postage.turns:email"), "people take turns")
        assert fair_queue.waiting_count(deployment.redis, "email") > 20
        assert len(fair_queue.other_lists(deployment.redis, "email")) >= 3  # of two people, and of resumes
        deployment.mail_server.release()
        deployment.wait_until_final(*jobs)
        wait_until(lambda: count_items(deployment.redis) == 1, "garbage is quarantined")
        deployment.wait_until_idle()

        status = run("status", cwd=tmp_path, **deployment.settings)
        assert (status.code, "celery@" in status.out) == (0, True), status.err
        dead = run("dead", "list", "--json", cwd=tmp_path, **deployment.settings)
        assert (dead.code, "quarantined" in dead.out) == (0, True), dead.err
        erasure = {"erasure_id": new_id("erasure"), "actor": owner, "user": member}
        assert deployment.ask("users.erase", erasure)["status"] in ("done", "refused")
        assert deployment.redis.hkeys("postage.organizations")
        answer = deployment.message(owner, jobs[0])
        assert answer["status"] == "sent", answer

        assert [name for name in server.scan_iter() if not name.startswith(PREFIX.encode())] == [b"email"]
        assert server.lrange("email", 0, -1) == [b"a job of somebody else"]
        assert "broker answers with an error" not in deployment.worker.output
        assert "NOPERM" not in deployment.worker.output
