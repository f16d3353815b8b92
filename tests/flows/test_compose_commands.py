"""The commands of the services in compose.yaml: that each starts, works and ends, here without containers."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kombu.pools
import pytest
import redis
from celery import Celery

from models.database.engine import Database
from models.database.migrations import check_migrated
from tasks.queues import Queue
from tests.flows.compose_file import ENV, POSTAGE_SERVICES, WORKERS, Service, queues_of
from tests.servers import PostgresServer, ValkeyServer, free_port
from worker.settings import PREFIX

POSTAGE = Path(sys.executable).parent / "postage"
READY_S = 40.0
END_S = 30.0


@contextmanager
def running(service: Service, folder: Path, **settings: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the command of a service here, with its environment. Afterwards SIGTERM must end it with exit code 0."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "FLOWER_"))},
        **service["environment"],
        "POSTAGE_VAR": str(folder),
        "POSTAGE_METRICS_PORT": str(free_port()),  # containers have ports of their own
        **settings,
    }
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen([POSTAGE, *service["command"]], env=environment, cwd=folder, stdout=out, stderr=out)
    try:
        yield process
        process.send_signal(signal.SIGTERM)

        assert process.wait(END_S) == 0, log.read_text()
    except BaseException:
        print(log.read_text())  # noqa: T201  pytest shows it with the failure
        raise
    finally:
        process.kill()
        process.wait()


def wait_until(condition: Callable[[], object], process: "subprocess.Popen[bytes]") -> None:
    """Wait until the condition is true, while the process runs."""
    deadline = time.monotonic() + READY_S
    while not condition():
        assert process.poll() is None, f"it ended with exit code {process.returncode}"
        assert time.monotonic() < deadline, "it did not become ready"
        time.sleep(0.1)


def inspect(broker: str, what: str) -> dict[str, Any]:
    """Ask the workers by remote control. No connection of this process is left open."""
    with Celery(broker=broker) as app:
        replies: dict[str, Any] = getattr(app.control.inspect(timeout=1.0, limit=1), what)() or {}
        connection = app.connection_for_write()
    for pools in (kombu.pools.producers, kombu.pools.connections):  # only of this broker: other tests use others
        pools[connection].force_close_all()
        del pools[connection]
    return replies


def is_healthy(service: Service, broker_url: str) -> bool:
    """Run the health check as Docker does, with this test's broker in place of the usual one."""
    kind, command = service["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    environment = {**os.environ, "POSTAGE_BROKER_URL": broker_url}
    return subprocess.run(["sh", "-c", command], env=environment, check=False).returncode == 0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ValkeyServer]:
    """Give a Valkey to which nothing else is connected."""
    with ValkeyServer(tmp_path / "valkey") as server:
        yield server


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_starts_answers_and_ends(name: str, tmp_path: Path, broker: ValkeyServer, postgres_url: str) -> None:
    """It consumes its own queues and no others, and is healthy only while it is connected."""
    service = WORKERS[name]
    linux = sys.platform == "linux"  # the health check reads /proc, which only Linux has

    assert not (linux and is_healthy(service, broker.url()))
    with running(service, tmp_path, POSTAGE_DATABASE_URL=postgres_url, POSTAGE_BROKER_URL=broker.url()) as process:
        wait_until(lambda: inspect(broker.url(), "ping"), process)
        [(worker, queues)] = inspect(broker.url(), "active_queues").items()

        assert worker.startswith(f"{service['command'][-1].partition('@')[0]}@")
        assert queues_of(service) == {queue["name"] for queue in queues}
        assert not linux or is_healthy(service, broker.url())
    assert not (linux and is_healthy(service, broker.url()))


def test_a_worker_does_not_start_on_an_old_schema(
    tmp_path: Path, valkey_url: str, migrated_postgres: PostgresServer
) -> None:
    """It ends with a sentence, and Docker starts it again."""
    service = WORKERS["worker-billing"]
    environment = {**os.environ, **service["environment"], "POSTAGE_VAR": str(tmp_path)}
    environment |= {"POSTAGE_DATABASE_URL": migrated_postgres.url("postgres"), "POSTAGE_BROKER_URL": valkey_url}
    ended = subprocess.run(
        [POSTAGE, *service["command"]],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=READY_S,
        check=False,
    )

    assert ended.returncode != 0
    assert "postage migrate" in ended.stdout + ended.stderr


def test_beat_starts_enqueues_and_ends(tmp_path: Path, valkey_url: str, postgres_url: str) -> None:
    """It enqueues a sweep, and writes nothing into its working directory, which is read-only in its container."""
    service = POSTAGE_SERVICES["beat"]
    settings = {"POSTAGE_DATABASE_URL": postgres_url, "POSTAGE_BROKER_URL": valkey_url}
    before = sorted(tmp_path.iterdir())
    with (
        redis.Redis.from_url(valkey_url) as client,
        running(service, tmp_path, POSTAGE_SWEEP_S="0.5", **settings) as process,
    ):
        wait_until(lambda: client.llen(Queue.UPKEEP), process)
        client.close()

        assert sys.platform != "linux" or is_healthy(service, valkey_url)
    left = {path.name.partition(".")[0] for path in tmp_path.iterdir()} - {path.name for path in before}

    assert left <= {"log", "beat-schedule"}


def test_flower_starts_asks_for_the_password_and_ends(tmp_path: Path, valkey_url: str, postgres_url: str) -> None:
    """Its pages need the password; its health check does not."""
    port = free_port()
    page = f"http://127.0.0.1:{port}/"
    settings = {"POSTAGE_DATABASE_URL": postgres_url, "POSTAGE_BROKER_URL": valkey_url}
    settings |= {"POSTAGE_FLOWER_ADDRESS": "127.0.0.1", "POSTAGE_FLOWER_PORT": str(port)}
    service = POSTAGE_SERVICES["flower"]
    with running(service, tmp_path, **settings) as process:
        wait_until(lambda: status_of(page) is not None, process)

        assert status_of(page) == 401
        assert status_of(page, ENV["POSTAGE_FLOWER_AUTH"]) == 200
        assert status_of(page, "somebody:else") == 401
        kind, python, *arguments = service["healthcheck"]["test"]
        assert [kind, python] == ["CMD", "python"]
        health_check = [sys.executable, *(argument.replace(":5555", f":{port}") for argument in arguments)]
        assert subprocess.run(health_check, check=False).returncode == 0


def status_of(page: str, credentials: str = "") -> int | None:
    """Give the HTTP status with which a page is answered; None if nobody answers."""
    headers = {"Authorization": f"Basic {b64encode(credentials.encode()).decode()}"} if credentials else {}
    request = urllib.request.Request(page, headers=headers)  # noqa: S310  the page of our own process
    try:
        with urllib.request.urlopen(request, timeout=5.0) as reply:  # noqa: S310
            status: int = reply.status
            return status
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code
    except OSError:
        return None


def test_migrate_makes_the_schema_and_ends(tmp_path: Path, postgres: PostgresServer) -> None:
    """It does so on an empty database, and again on one that is migrated already."""
    postgres.create_database("compose_migrate")
    url = postgres.url("compose_migrate")
    service = POSTAGE_SERVICES["migrate"]
    environment = {**os.environ, **service["environment"], "POSTAGE_DATABASE_URL": url, "POSTAGE_VAR": str(tmp_path)}
    try:
        for _ in range(2):
            subprocess.run([POSTAGE, *service["command"]], env=environment, cwd=tmp_path, check=True)
        database = Database(url)
        check_migrated(database)
        database.close()
    finally:
        postgres.drop_database("compose_migrate")
