"""The folder of everything embedded is private, whatever the umask is and an earlier release has left."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from worker.local.folder import make_private


def open_to_others(folder: Path) -> list[str]:
    """The names under a folder, and its own, on which others have any right."""
    return [
        path.name for path in (folder, *folder.rglob("*")) if path.lstat().st_mode & 0o077 and not path.is_symlink()
    ]


def migrate(folder: Path) -> None:
    """Run the smallest command that writes, as where `postage up` has run, with a umask that forbids nothing."""
    (folder / "var").mkdir()
    (folder / "var" / "up.lock").touch()
    words = [sys.executable, "-P", "-m", "worker", "migrate"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POSTAGE_")}
    subprocess.run(words, cwd=folder, env=environment, umask=0, check=True, stdout=subprocess.DEVNULL)


def test_what_a_command_writes_is_private_whatever_the_umask(tmp_path: Path) -> None:
    migrate(tmp_path)

    assert "postage.db" in {path.name for path in (tmp_path / "var").iterdir()}
    assert open_to_others(tmp_path / "var") == []


@pytest.fixture
def var(tmp_path: Path) -> Path:
    """A folder as an earlier release has left it."""
    var = tmp_path / "var"
    (var / "outbox" / "mail").mkdir(parents=True)
    (var / "valkey" / "appendonlydir").mkdir(parents=True)
    for name in ("postage.db", "postage.db-wal", "up.lock", "beat-schedule.dat", "outbox/mail/one.eml"):
        (var / name).write_text("private")
    for path in (var, *var.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    return var


def test_what_an_earlier_release_has_left_is_made_private(var: Path) -> None:
    make_private(var)

    assert open_to_others(var) == []
    assert stat.S_IMODE((var / "outbox" / "mail" / "one.eml").stat().st_mode) == 0o600
    assert stat.S_IMODE((var / "outbox" / "mail").stat().st_mode) == 0o700


def test_what_is_not_of_postage_is_left_alone(var: Path) -> None:
    """Such as a whole project, if somebody sets POSTAGE_VAR to its folder."""
    (var / "run.sh").write_text("")
    (var / "run.sh").chmod(0o755)

    with capture_logs() as logged:
        make_private(var)

    assert open_to_others(var) == ["var", "run.sh"]
    assert [line["mode"] for line in logged] == ["777"]


def test_links_are_not_followed(var: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("")
    for path in (elsewhere, elsewhere / "file"):
        path.chmod(0o755)
    (var / "logs").symlink_to(elsewhere)
    (var / "outbox" / "mail" / "link.eml").symlink_to(elsewhere / "file")

    make_private(var)

    assert open_to_others(elsewhere) == ["elsewhere", "file"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_keeps_its_rights(var: Path) -> None:
    """As a volume of a container does, which belongs to root and is open to a group."""
    os.chown(var, 65534, 65534)

    make_private(var)

    assert open_to_others(var) == ["var"]
