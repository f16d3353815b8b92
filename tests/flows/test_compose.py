"""compose.yaml: that it says what is true, and that every command in it starts, works and ends."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kombu.pools
import pytest
import redis
import urllib3
import yaml
from celery import Celery

from models.database.engine import Database
from models.database.migrations import check_migrated
from tasks.queues import Queue
from tests.servers import PostgresServer, ValkeyServer, _free_port
from worker.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
POSTAGE = Path(sys.executable).parent / "postage"
READY_S = 40.0
END_S = 30.0

Service = dict[str, Any]


def read_env(file: Path) -> dict[str, str]:
    lines = (line.strip() for line in file.read_text().splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


EXAMPLE_ENV = read_env(ROOT / ".env.example")
VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+)(?::(?P<kind>[?-])(?P<rest>[^}]*))?\}")


def interpolate(value: Any) -> Any:
    """What Compose makes of a value, given .env.example."""
    if isinstance(value, dict):
        return {name: interpolate(one) for name, one in value.items()}
    if isinstance(value, list):
        return [interpolate(one) for one in value]
    if isinstance(value, str):
        return VARIABLE.sub(lambda match: EXAMPLE_ENV.get(match["name"]) or _default(match), value)
    return value


def _default(match: re.Match[str]) -> str:
    assert match["kind"] == "-", f"{match['name']} is needed, but .env.example lacks it"
    return match["rest"]


TEXT = (ROOT / "compose.yaml").read_text()
RAW = yaml.safe_load(TEXT)
SERVICES: dict[str, Service] = interpolate(RAW["services"])
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "postage"}
WORKERS = {name: service for name, service in OURS.items() if service["command"][0] == "worker"}


def queues_of(service: Service) -> set[str]:
    command = service["command"]
    return set(command[command.index("--queues") + 1].split(","))


# -- what it says -----------------------------------------------------------------------------------------------------


def test_every_queue_has_a_worker() -> None:
    """A queue that nobody consumes would fill up in silence."""
    consumed = [queue for service in WORKERS.values() for queue in queues_of(service)]

    assert sorted(Queue) == sorted(consumed)


def test_there_is_one_beat() -> None:
    """Without beat no retry is ever made."""
    assert [name for name, service in OURS.items() if service["command"][0] == "beat"] == ["beat"]


@pytest.mark.parametrize("name", SERVICES)
def test_what_ends_is_started_again(name: str) -> None:
    """Everything restarts always; the migration only until it has succeeded."""
    assert SERVICES[name]["restart"] == ("on-failure" if name == "migrate" else "always")


@pytest.mark.parametrize("name", OURS)
def test_our_containers_can_change_nothing(name: str) -> None:
    """A program that is tricked finds nothing to write to and no right to use."""
    assert OURS[name]["read_only"] is True
    assert OURS[name]["cap_drop"] == ["ALL"]
    assert OURS[name]["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_to_this_machine_only(name: str) -> None:
    """Flower and the mail catcher show what is private."""
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@pytest.mark.parametrize("name", [name for name in OURS if name != "migrate"])
def test_nothing_starts_before_the_schema_is_there(name: str) -> None:
    """The migration runs first, once."""
    assert OURS[name]["depends_on"] == {
        "migrate": {"condition": "service_completed_successfully"},
        "redis": {"condition": "service_healthy"},
    }
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "migrate"])
def test_everything_that_runs_says_whether_it_is_healthy(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_may_finish_what_it_has_begun(name: str) -> None:
    """The time to end is longer than any attempt may last."""
    assert float(WORKERS[name]["stop_grace_period"].removesuffix("s")) > Settings.model_fields["lease_s"].default


@pytest.mark.parametrize("name", OURS)
def test_settings_are_known_and_fit_together(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every POSTAGE_ variable is a setting, with a value that is accepted."""
    for variable in [variable for variable in os.environ if variable.startswith(PREFIX)]:
        monkeypatch.delenv(variable)
    for variable, value in OURS[name]["environment"].items():
        monkeypatch.setenv(variable, value)

    assert Settings.from_environment().database_url == OURS[name]["environment"]["POSTAGE_DATABASE_URL"]


def test_waiting_jobs_are_kept_on_disk_and_never_evicted() -> None:
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))

    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "everysec"
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--requirepass"] == EXAMPLE_ENV["REDIS_PASSWORD"]


def test_no_password_has_a_default() -> None:
    """What is secret must be chosen, and the sentence says where."""
    found = list(VARIABLE.finditer(TEXT))

    assert {"POSTGRES_PASSWORD", "REDIS_PASSWORD", "POSTAGE_FLOWER_AUTH"} == {
        match["name"] for match in found if match["kind"] == "?"
    }
    assert {"POSTAGE_SMTP_URL", "POSTAGE_SMS_URL", "POSTGRES_SHARED_BUFFERS"} == {
        match["name"] for match in found if match["kind"] == "-"
    }
    assert all(".env.example" in match["rest"] for match in found if match["kind"] == "?")
    assert set(EXAMPLE_ENV) == {match["name"] for match in found if match["kind"] == "?"}


def test_the_image_has_every_room_and_starts_the_command_line() -> None:
    """The Dockerfile copies the packages that pyproject.toml names, and runs what its script table names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1] for line in lines if line.startswith("COPY ") and len(line.split()) == 3]

    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == [
        room for room in copied if not room.startswith("-")
    ]
    assert 'ENTRYPOINT ["postage"]' in lines
    assert "postage" in project["project"]["scripts"]
    assert "USER postage" in lines


def test_the_ignore_file_lets_through_what_the_image_needs() -> None:
    needed = {"pyproject.toml", "uv.lock", "README.md", "worker", "tasks", "models"}

    assert needed == {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}


SERVICE_KEYS = {
    *("build", "cap_drop", "command", "depends_on", "environment", "healthcheck", "image", "init", "logging", "ports"),
    *("read_only", "restart", "security_opt", "shm_size", "stop_grace_period", "tmpfs", "volumes"),
}
"""The part of the Compose specification that is used here: all of it is older than Compose 2."""


def test_only_known_words_are_used() -> None:
    """A misspelled key is refused by Compose, on the machine where it hurts."""
    duration = re.compile(r"(\d+h)?(\d+m)?(\d+s)?")

    assert {"services", "volumes"} == {name for name in RAW if not name.startswith("x-")}
    for service in SERVICES.values():
        assert set(service) <= SERVICE_KEYS
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        assert set(service.get("healthcheck", {})) <= {"test", "interval", "timeout", "retries", "start_period"}
        for name in ("interval", "timeout", "start_period"):
            assert duration.fullmatch(service.get("healthcheck", {}).get(name, "1s"))
        assert all(isinstance(value, str) for value in service.get("environment", {}).values())
        assert {volume.split(":")[0] for volume in service.get("volumes", [])} <= set(RAW["volumes"])


def compose_program() -> list[str] | None:
    """Docker Compose as it is on this machine, if it is."""
    for words in (["docker", "compose"], ["docker-compose"]):
        if (
            shutil.which(words[0])
            and subprocess.run([*words, "version"], capture_output=True, check=False).returncode == 0
        ):
            return words
    return None


@pytest.mark.skipif(
    compose_program() is None, reason="no Docker Compose here; the tests above read the file themselves"
)
class TestWithCompose:
    """The same, as the real program sees it."""

    def config(self, env_file: Path, folder: Path) -> "subprocess.CompletedProcess[str]":
        program = compose_program() or []
        words = [*program, "--env-file", str(env_file), "--file", str(ROOT / "compose.yaml"), "config"]
        env = {name: value for name, value in os.environ.items() if name not in EXAMPLE_ENV}
        return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)

    def test_the_example_is_accepted(self, tmp_path: Path) -> None:
        """With .env.example copied, it is a valid file, and means what it was read to mean here."""
        shown = self.config(ROOT / ".env.example", tmp_path)

        assert shown.returncode == 0, shown.stderr
        services = yaml.safe_load(shown.stdout)["services"]
        assert set(SERVICES) == set(services)
        for name, service in OURS.items():
            assert service["command"] == services[name]["command"]
            assert service["environment"] == services[name]["environment"]

    def test_it_refuses_to_start_without_passwords(self, tmp_path: Path) -> None:
        empty = tmp_path / "empty.env"
        empty.touch()
        shown = self.config(empty, tmp_path)

        assert shown.returncode != 0
        assert "Copy .env.example to .env" in shown.stderr


# -- what it starts ---------------------------------------------------------------------------------------------------


@contextmanager
def running(service: Service, folder: Path, **settings: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a service's command with its environment, but here; afterwards SIGTERM must end it well."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "FLOWER_"))},
        **service["environment"],
        "POSTAGE_VAR": str(folder),
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


def await_that(condition: Callable[[], object], process: "subprocess.Popen[bytes]") -> None:
    """Wait until `condition` holds, as long as the process lives."""
    deadline = time.monotonic() + READY_S
    while not condition():
        assert process.poll() is None, f"it ended with exit code {process.returncode}"
        assert time.monotonic() < deadline, "it did not become ready"
        time.sleep(0.1)


def inspect(broker: str, what: str) -> dict[str, Any]:
    """What the workers say of themselves. No connection of this process is left open."""
    with Celery(broker=broker) as asking:
        told: dict[str, Any] = getattr(asking.control.inspect(timeout=1.0, limit=1), what)() or {}
        here = asking.connection_for_write()
    for pools in (kombu.pools.producers, kombu.pools.connections):  # of this broker alone: other tests have theirs
        pools[here].force_close_all()
        del pools[here]
    return told


def healthy(service: Service, port: int) -> bool:
    """Run the health check as Docker would, with the port of this machine's broker in place of Redis' own."""
    kind, command = service["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    assert ":18EB " in command
    return subprocess.run(["sh", "-c", command.replace(":18EB ", f":{port:04X} ")], check=False).returncode == 0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ValkeyServer]:
    """Give a Valkey to which nothing else is connected."""
    with ValkeyServer(tmp_path / "valkey") as server:
        yield server


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_starts_answers_and_ends(name: str, tmp_path: Path, broker: ValkeyServer, postgres_url: str) -> None:
    """It consumes its own queues and no other; it is healthy while it is connected, and only then."""
    service = WORKERS[name]
    linux = sys.platform == "linux"  # elsewhere there is no /proc; the containers have it

    assert not (linux and healthy(service, broker.port))
    with running(service, tmp_path, POSTAGE_DATABASE_URL=postgres_url, POSTAGE_BROKER_URL=broker.url()) as process:
        await_that(lambda: inspect(broker.url(), "ping"), process)
        [(worker, queues)] = inspect(broker.url(), "active_queues").items()

        assert worker.startswith(f"{service['command'][-1].partition('@')[0]}@")
        assert queues_of(service) == {queue["name"] for queue in queues}
        assert not linux or healthy(service, broker.port)
    assert not (linux and healthy(service, broker.port))


def test_a_worker_does_not_start_on_an_old_schema(
    tmp_path: Path, valkey_url: str, migrated_postgres: PostgresServer
) -> None:
    """It ends with a sentence, and Docker tries again."""
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


def test_beat_starts_asks_and_ends(tmp_path: Path, valkey: ValkeyServer, valkey_url: str, postgres_url: str) -> None:
    """It asks for a sweep, and leaves nothing in its working directory, which cannot be written to in its container."""
    service = OURS["beat"]
    settings = {"POSTAGE_DATABASE_URL": postgres_url, "POSTAGE_BROKER_URL": valkey_url}
    before = sorted(tmp_path.iterdir())
    with (
        redis.Redis.from_url(valkey_url) as client,
        running(service, tmp_path, POSTAGE_SWEEP_S="0.5", **settings) as process,
    ):
        await_that(lambda: client.llen(Queue.UPKEEP), process)
        client.close()

        assert sys.platform != "linux" or healthy(service, valkey.port)
    left = {path.name.partition(".")[0] for path in tmp_path.iterdir()} - {path.name for path in before}

    assert left <= {"log", "beat-schedule"}


def test_flower_starts_asks_for_the_password_and_ends(tmp_path: Path, valkey_url: str, postgres_url: str) -> None:
    """Its pages are shown to those who know it; its health check is open."""
    port = _free_port()
    page = f"http://127.0.0.1:{port}/"
    settings = {"POSTAGE_DATABASE_URL": postgres_url, "POSTAGE_BROKER_URL": valkey_url}
    settings |= {"POSTAGE_FLOWER_ADDRESS": "127.0.0.1", "POSTAGE_FLOWER_PORT": str(port)}
    service = OURS["flower"]
    with running(service, tmp_path, **settings) as process:
        await_that(lambda: answer(page) is not None, process)

        assert answer(page) == 401
        assert answer(page, EXAMPLE_ENV["POSTAGE_FLOWER_AUTH"]) == 200
        assert answer(page, "somebody:else") == 401
        kind, python, *words = service["healthcheck"]["test"]
        assert [kind, python] == ["CMD", "python"]
        assert (
            subprocess.run([sys.executable, *(w.replace(":5555", f":{port}") for w in words)], check=False).returncode
            == 0
        )


def answer(page: str, credentials: str = "") -> int | None:
    """The HTTP status with which a page is answered; None if nobody answers."""
    headers = {"Authorization": f"Basic {b64encode(credentials.encode()).decode()}"} if credentials else {}
    try:
        reply = urllib3.request("GET", page, headers=headers, retries=False, timeout=5.0)
    except urllib3.exceptions.HTTPError:
        return None
    return reply.status


def test_migrate_makes_the_schema_and_ends(tmp_path: Path, postgres: PostgresServer) -> None:
    """On an empty database, and again on its own work."""
    postgres.create_database("compose_migrate")
    url = postgres.url("compose_migrate")
    service = OURS["migrate"]
    environment = {**os.environ, **service["environment"], "POSTAGE_DATABASE_URL": url, "POSTAGE_VAR": str(tmp_path)}
    try:
        for _ in range(2):
            subprocess.run([POSTAGE, *service["command"]], env=environment, cwd=tmp_path, check=True)
        database = Database(url)
        check_migrated(database)
        database.close()
    finally:
        postgres.drop_database("compose_migrate")
