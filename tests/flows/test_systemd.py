"""The units under deploy/systemd: that they are valid, hardened, complete, and start what Compose starts."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.queues import Queue
from tests.flows.compose_file import POSTAGE_SERVICES, ROOT, read_env
from worker.settings import PLACEHOLDER, PREFIX, Settings, SettingsError

FOLDER = ROOT / "deploy" / "systemd"
TARGET = "postage.target"
SERVICES = sorted(file.name for file in FOLDER.glob("*.service"))
WORKER = "postage-worker@.service"
PROGRAM = "/opt/postage/bin/postage"
EXPOSURE_MAX = 2.0
"""Of 10, as `systemd-analyze security` counts."""


def lines(unit: str, key: str) -> list[str]:
    """Give every value of a key in a unit."""
    return re.findall(rf"^{key}=(.*)$", (FOLDER / unit).read_text(), re.MULTILINE)


def line(unit: str, key: str) -> str:
    [only] = lines(unit, key)
    return only


def command(unit: str, instance: str = "") -> list[str]:
    """Give the arguments of postage in a unit, as systemd passes them on."""
    program, *arguments = shlex.split(line(unit, "ExecStart").replace("%i", instance).replace("%%", "%"))
    assert program == PROGRAM
    return arguments


def secrets(unit: str) -> dict[str, str]:
    """Give the variables of the files with secrets that a unit reads."""
    files = [Path(path) for path in lines(unit, "EnvironmentFile") if not path.startswith("-")]
    assert all(path.parent == Path("/etc/postage") for path in files)
    return {name: value for path in files for name, value in read_env(FOLDER / "etc" / path.name).items()}


def test_a_worker_for_each_queue_one_beat_and_flower_belong_to_the_target() -> None:
    wanted = " ".join(lines(TARGET, "Wants")).split()

    assert sorted(wanted) == sorted(
        [*(f"postage-worker@{queue}.service" for queue in Queue), "postage-beat.service", "postage-flower.service"]
    )
    assert all(line(unit, "PartOf") == TARGET for unit in SERVICES)


@pytest.mark.parametrize(
    ("unit", "service"),
    [
        (WORKER, "worker-email"),
        ("postage-beat.service", "beat"),
        ("postage-flower.service", "flower"),
        ("postage-migrate.service", "migrate"),
    ],
)
def test_the_same_processes_run_as_with_compose(unit: str, service: str) -> None:
    """Their commands are those that tests run, and each has the same secrets."""
    words = [word for word in POSTAGE_SERVICES[service]["command"] if word]
    kept = {"POSTAGE_DATABASE_URL", "POSTAGE_BROKER_URL", "POSTAGE_SMTP_URL", "POSTAGE_SMS_URL", "POSTAGE_FLOWER_AUTH"}

    assert [word.removesuffix("=") for word in command(unit, "email")] == words
    assert secrets(unit).keys() == POSTAGE_SERVICES[service]["environment"].keys() & kept


@pytest.mark.parametrize("unit", [unit for unit in SERVICES if unit != "postage-migrate.service"])
def test_processes_are_started_after_the_migration_and_again_when_they_end(unit: str) -> None:
    """They check the schema themselves, so a migration that fails at first keeps nobody from starting later."""
    assert "postage-migrate.service" in line(unit, "After").split()
    assert "postage-migrate.service" in line(unit, "Wants").split()
    assert line(unit, "Restart") == "always"
    assert line(unit, "StartLimitIntervalSec") == "0"


def test_a_worker_may_finish_what_it_has_begun() -> None:
    assert int(line(WORKER, "TimeoutStopSec")) > Settings.model_fields["lease_s"].default
    assert line(WORKER, "KillMode") == "mixed"


@pytest.mark.parametrize("unit", SERVICES)
def test_memory_and_processes_are_limited(unit: str) -> None:
    assert line(unit, "MemoryMax")
    assert line(unit, "TasksMax")


@pytest.mark.parametrize("unit", SERVICES)
def test_settings_are_accepted_once_the_passwords_are_replaced(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [variable for variable in os.environ if variable.startswith(PREFIX)]:
        monkeypatch.delenv(variable)
    variables = secrets(unit) | read_env(FOLDER / "etc" / "postage.env")
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match="replace it with one of your own"):
        Settings.from_environment()
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value.replace(PLACEHOLDER, ":chosen-"))

    Settings.from_environment()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here (Debian: systemd)")
class TestWithSystemd:
    """systemd itself reads the units."""

    def test_the_units_are_valid(self, tmp_path: Path) -> None:
        """Here with this environment's program, which systemd looks for."""
        here = str(Path(sys.executable).parent / "postage")
        for unit in (*SERVICES, TARGET):
            (tmp_path / unit).write_text((FOLDER / unit).read_text().replace(PROGRAM, here))
        units = [str(tmp_path / unit.replace("@", "@email")) for unit in (*SERVICES, TARGET)]
        result = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, check=False
        )

        assert (result.returncode, result.stderr) == (0, "")

    @pytest.mark.parametrize("unit", SERVICES)
    def test_the_units_are_hardened(self, unit: str) -> None:
        words = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(FOLDER / unit)]
        shown = subprocess.run(words, capture_output=True, text=True, check=False).stdout
        exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", shown)

        assert exposure, shown
        assert float(exposure[1]) < EXPOSURE_MAX
