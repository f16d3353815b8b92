"""The file compose.yaml, the Dockerfile and .dockerignore: that they are safe, complete and true."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tasks.queues import Queue
from tests.flows.compose_file import (
    ENV,
    EXAMPLE_ENV,
    POSTAGE_SERVICES,
    RAW,
    ROOT,
    SERVICES,
    TEXT,
    VARIABLE,
    WORKERS,
    Service,
    queues_of,
    read_services,
)
from worker.settings import PREFIX, Settings


def test_every_queue_has_a_worker() -> None:
    """A queue without a worker would fill up in silence."""
    consumed = [queue for service in WORKERS.values() for queue in queues_of(service)]

    assert sorted(Queue) == sorted(consumed)


def test_whoever_signs_or_checks_signatures_sees_the_keys() -> None:
    """The override that docs/deploying.md shows names every worker, and beat."""
    shown = re.findall(
        r"^```yaml\n(services:.*?)^```", (ROOT / "docs/deploying.md").read_text(), re.MULTILINE | re.DOTALL
    )
    [override] = [yaml.safe_load(text) for text in shown if "producer-keys" in text]

    assert set(override["services"]) == {*WORKERS, "beat"}
    assert {tuple(service["volumes"]) for service in override["services"].values()} == {("./producer-keys:/keys",)}


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
        "redis": {"condition": "service_healthy", "required": False},
    }
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy", "required": False}}


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

    assert Settings.from_environment().database_url == POSTAGE_SERVICES[name]["environment"].get("POSTAGE_DATABASE_URL")


def test_waiting_jobs_are_kept_on_disk_and_never_evicted() -> None:
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))

    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "everysec"
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--requirepass"] == ENV["REDIS_PASSWORD"]


def test_no_password_has_a_default() -> None:
    """Each must be chosen: the example leaves them empty, which Compose refuses, and its error says where."""
    needed = [match for match in VARIABLE.finditer(TEXT) if match["kind"] == "?"]

    assert {"POSTGRES_PASSWORD", "REDIS_PASSWORD", "POSTAGE_FLOWER_AUTH"} == {match["name"] for match in needed}
    assert all(".env.example" in match["rest"] for match in needed)
    assert {match["name"] for match in needed} == {name for name, value in EXAMPLE_ENV.items() if not value}


def test_every_setting_is_passed_on_and_no_other() -> None:
    """What is set in .env reaches the processes that use it."""
    chosen = {PREFIX + name.upper(): f"chosen-{name}" for name in Settings.model_fields}
    passed = {
        (name, value)
        for service in read_services(ENV | chosen).values()
        for name, value in (service["environment"] | port_of(service)).items()
        if name.startswith(PREFIX)
    }
    fixed = {
        "POSTAGE_VAR": "/tmp",  # noqa: S108  in a container
        "POSTAGE_FLOWER_ADDRESS": "0.0.0.0",  # noqa: S104  in a container
        "POSTAGE_CONSOLE_ADDRESS": "0.0.0.0",  # noqa: S104  in a container
    }

    assert passed == set((chosen | fixed).items())


def port_of(service: Service) -> dict[str, str]:
    """Give the setting that the port of a site is published by: within the container it is always the same."""
    names = {"5555": "POSTAGE_FLOWER_PORT", "5580": "POSTAGE_CONSOLE_PORT"}
    published = [port.split(":")[1:] for port in service.get("ports", [])]
    return {names[inside]: outside for outside, inside in published if inside in names}


def test_processes_share_their_settings() -> None:
    """All of one installation need the same, so that times fit together."""
    chosen = {PREFIX + name.upper(): f"chosen-{name}" for name in Settings.model_fields}
    services = [service for service in read_services(ENV | chosen).values() if service["image"] == "postage"]
    own = {*SECRETS, "POSTAGE_FLOWER_READ_ONLY", "POSTAGE_FLOWER_ADDRESS"}
    own |= {"POSTAGE_CONSOLE_ADDRESS", "POSTAGE_CONSOLE_URL", "POSTAGE_CONSOLE_PROXIES"}
    [shared] = {tuple(sorted(service["environment"].keys() - own)) for service in services}

    assert {*shared, *own, "POSTAGE_FLOWER_PORT", "POSTAGE_CONSOLE_PORT"} == set(chosen)


MONITORING = {"prometheus", "grafana"}
"""What `metrics` in COMPOSE_PROFILES starts."""
SECRETS = {
    "POSTAGE_DATABASE_URL": {"migrate", "beat", "console", *WORKERS},
    "POSTAGE_BROKER_URL": {"beat", "flower", "console", *WORKERS},
    "POSTAGE_SENTINEL_PASSWORD": {"beat", "flower", "console", *WORKERS},
    "POSTAGE_RESULT_URL": {"beat", "console", *WORKERS},
    "POSTAGE_SMTP_URL": set(WORKERS),
    "POSTAGE_SMS_URL": set(WORKERS),
    "POSTAGE_FLOWER_AUTH": {"flower"},
}
"""Which service may know which secret."""


def test_a_secret_is_passed_only_to_what_needs_it() -> None:
    services = read_services(ENV | dict.fromkeys(SECRETS, "chosen"))

    assert {
        secret: {name for name, service in services.items() if secret in service["environment"]} for secret in SECRETS
    } == SECRETS


def test_database_and_broker_may_be_elsewhere() -> None:
    """What is left out of COMPOSE_PROFILES is not run, and nothing that is run needs it."""
    optional = {name for name, service in SERVICES.items() if "profiles" in service}
    elsewhere = {"POSTAGE_DATABASE_URL": "postgresql://u:p@db/postage", "POSTAGE_BROKER_URL": "rediss://:p@broker/0"}
    services = read_services(ENV | elsewhere)

    assert optional == {"postgres", "redis", "mailpit", *MONITORING}
    assert all(SERVICES[name]["profiles"] == ["metrics" if name in MONITORING else name] for name in optional)
    assert set(EXAMPLE_ENV["COMPOSE_PROFILES"].split(",")) == optional - MONITORING
    assert elsewhere.items() <= services["worker-billing"]["environment"].items()
    for name in SERVICES.keys() - optional:
        for needed, how in SERVICES[name]["depends_on"].items():
            assert needed not in optional or how["required"] is False


@pytest.mark.parametrize("name", SERVICES)
def test_memory_and_processes_are_limited(name: str) -> None:
    assert re.fullmatch(r"\d+[mg]", SERVICES[name]["mem_limit"])
    assert 0 < SERVICES[name]["pids_limit"] < 1000


def test_redis_has_memory_beside_its_jobs() -> None:
    """While it rewrites its append-only file, it holds twice what changes meanwhile."""
    command = SERVICES["redis"]["command"]

    assert command[command.index("--maxmemory") + 1] == "1gb"
    assert SERVICES["redis"]["mem_limit"] == "2g"


def test_prometheus_asks_every_worker_on_the_port_of_its_metrics() -> None:
    [asked] = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    [found] = asked["dns_sd_configs"]

    assert set(found["names"]) == set(WORKERS)
    assert {service["environment"]["POSTAGE_METRICS_PORT"] for service in WORKERS.values()} == {str(found["port"])}


def test_grafana_reads_the_prometheus_that_runs_beside_it() -> None:
    [source] = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    [provider] = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/postage.yml").read_text())["providers"]
    grafana = SERVICES["grafana"]

    assert source["url"] == "http://prometheus:9090"
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in grafana["volumes"]
    assert Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]).parent == Path(
        provider["options"]["path"]
    )
    assert grafana["environment"]["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_images_are_named_by_digest() -> None:
    """A tag can be moved. Ours is built here."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    images = [service["image"] for service in SERVICES.values() if service["image"] != "postage"]
    images += [line.split()[1] for line in lines if line.startswith("FROM ")]

    assert all(re.fullmatch(r"[\w/]+:v?\d+\.\d+[\w.-]*@sha256:[0-9a-f]{64}", image) for image in images), images


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


def test_the_file_follows_the_compose_specification() -> None:
    """Compose refuses a misspelled key, but only on the machine where it is to run."""
    result = subprocess.run(
        [Path(sys.executable).parent / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stdout
    for service in SERVICES.values():
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        assert all(isinstance(value, str) for value in service["environment"].values())
        sources = {volume.split(":")[0] for volume in service.get("volumes", [])}
        assert {source for source in sources if not (ROOT / source).is_dir()} <= set(RAW["volumes"])


NEEDED_COMPOSE = (2, 20)
"""The first that knows `required: false`."""


def compose_program() -> list[str] | None:
    """Give the command of Docker Compose, if one that is new enough is on this machine."""
    for words in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(words[0]):
            shown = subprocess.run([*words, "version", "--short"], capture_output=True, text=True, check=False)
            numbers = re.match(r"v?(\d+)\.(\d+)", shown.stdout)
            if numbers and (int(numbers[1]), int(numbers[2])) >= NEEDED_COMPOSE:
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

    def test_the_example_with_passwords_is_accepted(self, tmp_path: Path) -> None:
        """The file is valid, and has the commands and variables that were read here."""
        chosen = tmp_path / "chosen.env"
        chosen.write_text("".join(f"{name}={value}\n" for name, value in ENV.items()))
        shown = self.config(chosen, tmp_path)

        assert shown.returncode == 0, shown.stderr
        services = yaml.safe_load(shown.stdout)["services"]
        assert set(SERVICES) == set(services)
        for name, service in POSTAGE_SERVICES.items():
            assert service["command"] == services[name]["command"]
            assert service["environment"] == {
                name: value for name, value in services[name]["environment"].items() if value is not None
            }

    def test_the_example_without_passwords_is_refused(self, tmp_path: Path) -> None:
        shown = self.config(ROOT / ".env.example", tmp_path)

        assert shown.returncode != 0
        assert "Copy .env.example to .env" in shown.stderr
