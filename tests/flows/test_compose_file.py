"""The file compose.yaml, the Dockerfile and .dockerignore: that they are safe, complete and true."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from tasks.queues import Queue
from tests.flows.compose_file import (
    EXAMPLE_ENV,
    POSTAGE_SERVICES,
    RAW,
    ROOT,
    SERVICES,
    TEXT,
    VARIABLE,
    WORKERS,
    queues_of,
)
from worker.settings import PREFIX, Settings


def test_every_queue_has_a_worker() -> None:
    """A queue without a worker would fill up in silence."""
    consumed = [queue for service in WORKERS.values() for queue in queues_of(service)]

    assert sorted(Queue) == sorted(consumed)


def test_there_is_one_beat() -> None:
    """Without beat no job is ever retried."""
    assert [name for name, service in POSTAGE_SERVICES.items() if service["command"][0] == "beat"] == ["beat"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_that_ends_is_started_again(name: str) -> None:
    """The migration is started again only until it has succeeded, everything else always."""
    assert SERVICES[name]["restart"] == ("on-failure" if name == "migrate" else "always")


@pytest.mark.parametrize("name", POSTAGE_SERVICES)
def test_containers_of_postage_are_read_only_and_unprivileged(name: str) -> None:
    """An intruder finds no file to write to and no privilege to use."""
    assert POSTAGE_SERVICES[name]["read_only"] is True
    assert POSTAGE_SERVICES[name]["cap_drop"] == ["ALL"]
    assert POSTAGE_SERVICES[name]["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_only_to_this_machine(name: str) -> None:
    """Flower and the mail catcher show what is private."""
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@pytest.mark.parametrize("name", [name for name in POSTAGE_SERVICES if name != "migrate"])
def test_nothing_starts_before_the_migration_has_succeeded(name: str) -> None:
    """The migration runs first, once."""
    assert POSTAGE_SERVICES[name]["depends_on"] == {
        "migrate": {"condition": "service_completed_successfully"},
        "redis": {"condition": "service_healthy"},
    }
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "migrate"])
def test_every_running_service_has_a_health_check(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_may_finish_what_it_has_begun(name: str) -> None:
    """Compose gives it longer to end than any attempt may take."""
    assert float(WORKERS[name]["stop_grace_period"].removesuffix("s")) > Settings.model_fields["lease_s"].default


@pytest.mark.parametrize("name", POSTAGE_SERVICES)
def test_settings_are_known_and_fit_together(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variable that begins with POSTAGE_ is a setting, and its value is accepted."""
    for variable in [variable for variable in os.environ if variable.startswith(PREFIX)]:
        monkeypatch.delenv(variable)
    for variable, value in POSTAGE_SERVICES[name]["environment"].items():
        monkeypatch.setenv(variable, value)

    assert Settings.from_environment().database_url == POSTAGE_SERVICES[name]["environment"]["POSTAGE_DATABASE_URL"]


def test_waiting_jobs_are_kept_on_disk_and_never_evicted() -> None:
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))

    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "everysec"
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--requirepass"] == EXAMPLE_ENV["REDIS_PASSWORD"]


def test_no_password_has_a_default() -> None:
    """Each must be chosen, and the error of Compose says where."""
    found = list(VARIABLE.finditer(TEXT))

    assert {"POSTGRES_PASSWORD", "REDIS_PASSWORD", "POSTAGE_FLOWER_AUTH"} == {
        match["name"] for match in found if match["kind"] == "?"
    }
    assert {"POSTAGE_SMTP_URL", "POSTAGE_SMS_URL", "POSTGRES_SHARED_BUFFERS"} == {
        match["name"] for match in found if match["kind"] == "-"
    }
    assert all(".env.example" in match["rest"] for match in found if match["kind"] == "?")
    assert set(EXAMPLE_ENV) == {match["name"] for match in found if match["kind"] == "?"}


def test_the_image_has_every_package_and_starts_postage() -> None:
    """The Dockerfile copies the packages that pyproject.toml names, and runs the script that it names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1] for line in lines if line.startswith("COPY ") and len(line.split()) == 3]

    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == [
        package for package in copied if not package.startswith("-")
    ]
    assert 'ENTRYPOINT ["postage"]' in lines
    assert "postage" in project["project"]["scripts"]
    assert "USER postage" in lines


def test_the_ignore_file_lets_through_what_the_image_needs() -> None:
    needed = {"pyproject.toml", "uv.lock", "README.md", "LICENSE", "worker", "tasks", "models"}

    assert needed == {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}


SERVICE_KEYS = {
    *("build", "cap_drop", "command", "depends_on", "environment", "healthcheck", "image", "init", "logging", "ports"),
    *("read_only", "restart", "security_opt", "shm_size", "stop_grace_period", "tmpfs", "volumes"),
}
"""The keys of the Compose specification that are used here. All of them are older than Compose 2."""


def test_only_known_keys_are_used() -> None:
    """Compose refuses a misspelled key, but only on the machine where it is to run."""
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
    """Give the command of Docker Compose, if it is on this machine."""
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
    """Docker Compose itself reads the file in the same way."""

    def config(self, env_file: Path, folder: Path) -> "subprocess.CompletedProcess[str]":
        program = compose_program() or []
        words = [*program, "--env-file", str(env_file), "--file", str(ROOT / "compose.yaml"), "config"]
        env = {name: value for name, value in os.environ.items() if name not in EXAMPLE_ENV}
        return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)

    def test_the_example_is_accepted(self, tmp_path: Path) -> None:
        """With .env.example as .env the file is valid, and has the commands and variables that were read here."""
        shown = self.config(ROOT / ".env.example", tmp_path)

        assert shown.returncode == 0, shown.stderr
        services = yaml.safe_load(shown.stdout)["services"]
        assert set(SERVICES) == set(services)
        for name, service in POSTAGE_SERVICES.items():
            assert service["command"] == services[name]["command"]
            assert service["environment"] == services[name]["environment"]

    def test_a_file_without_passwords_is_refused(self, tmp_path: Path) -> None:
        empty = tmp_path / "empty.env"
        empty.touch()
        shown = self.config(empty, tmp_path)

        assert shown.returncode != 0
        assert "Copy .env.example to .env" in shown.stderr
