"""An idle worker sleeps until the broker wakes it, whatever becomes of the connection by which it is told."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.flows.deployment import Deployment, wait_until
from tests.flows.jobs import email_job, new_id
from tests.servers import ValkeyServer

pytestmark = pytest.mark.timeout(180)

WATCHED_S = 2.0
"""How long a worker is watched. One that polls asks a hundred times meanwhile, one that sleeps two or three times."""
ASKED_MAX = 10


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyServer]:
    with ValkeyServer(tmp_path / "valkey") as server:
        yield server


def asked(redis: Redis) -> int:
    """How often workers have asked for messages."""
    stats: Any = redis.info("commandstats")
    return int(stats.get("cmdstat_evalsha", {"calls": 0})["calls"])


def asked_while_idle(deployment: Deployment) -> int:
    deployment.wait_until_idle()
    time.sleep(0.5)  # until the last acknowledgement is written
    before = asked(deployment.redis)
    time.sleep(WATCHED_S)
    return asked(deployment.redis) - before


def send_one(deployment: Deployment, sender: str) -> None:
    job_id = new_id("waking")
    deployment.send("email.send", email_job(job_id, sender))
    deployment.wait_until_final(job_id)


def told(redis: Redis) -> list[Any]:
    """The ids of the connections that are told of changes."""
    clients: list[dict[str, str]] = redis.client_list()  # type: ignore[assignment]
    return [client["redir"] for client in clients if client["redir"] != "-1"]


def test_an_idle_worker_sleeps_until_it_is_woken(tmp_path: Path, postgres_url: str, server: ValkeyServer) -> None:
    with Deployment(tmp_path / "deployment", postgres_url, server.url()) as deployment:
        _, member = deployment.people(email=10)
        assert asked_while_idle(deployment) <= ASKED_MAX
        send_one(deployment, member)

        [redirected] = told(deployment.redis)
        deployment.redis.client_kill_filter(_id=redirected)
        send_one(deployment, member)
        assert asked_while_idle(deployment) <= ASKED_MAX
        wait_until(lambda: told(deployment.redis) not in ([], [redirected]), "another connection is told")
        send_one(deployment, member)

        assert deployment.worker.is_running()
        assert "broker wakes nobody" not in deployment.worker.output


def test_a_broker_that_wakes_nobody_is_asked_again_and_again(
    tmp_path: Path, postgres_url: str, server: ValkeyServer
) -> None:
    with Redis.from_url(server.url()) as admin:
        admin.execute_command("ACL", "SETUSER", "default", "-client|tracking")
        with Deployment(tmp_path / "deployment", postgres_url, server.url()) as deployment:
            _, member = deployment.people(email=10)
            assert asked_while_idle(deployment) > ASKED_MAX
            send_one(deployment, member)

            assert deployment.worker.output.count("broker wakes nobody") == 1
            assert "broker answers with an error" not in deployment.worker.output
