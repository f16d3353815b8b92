"""A real Prometheus for tests, and its promtool: of TEST_PROMETHEUS_BIN, of this machine, or Debian's package.

No package index has them, so the package is downloaded and unpacked into `.venv`, and not installed. Where there is no
apt-get, the tests that need them are skipped.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from tests.servers import ServerError, _Server
from worker.local.valkey import dying_with_parent

PACKAGE: Final = "prometheus"
KEPT: Final = Path(sys.prefix) / "prometheus"
DOWNLOAD_S: Final = 240


@functools.cache
def program(name: str) -> Path:
    """Return the path of `prometheus` or `promtool`. Skips the test where there is no way to them.

    Raises
    ------
    ServerError
        If the package cannot be downloaded.

    """
    if chosen := os.environ.get("TEST_PROMETHEUS_BIN"):
        return Path(chosen) / name
    if here := shutil.which(name):
        return Path(here)
    unpacked = KEPT / "usr/bin" / name
    if not unpacked.exists():
        if shutil.which("apt-get") is None:
            pytest.skip("There is no Prometheus here, and no apt-get: TEST_PROMETHEUS_BIN names the folder of one.")
        _unpack()
    return unpacked


def _unpack() -> None:
    """Download Debian's package and unpack it. Whoever is second, of several processes, throws theirs away."""
    with tempfile.TemporaryDirectory(dir=sys.prefix, prefix="prometheus-") as name:
        folder = Path(name)
        if _apt(folder, "download", PACKAGE).returncode != 0:  # this machine has no list of packages, or an old one
            lists = _own_lists(folder)
            _apt(folder, *lists, "update")
            failed = _apt(folder, *lists, "download", PACKAGE)
            if failed.returncode != 0:
                msg = f"apt-get cannot download {PACKAGE}; TEST_PROMETHEUS_BIN can name one. It says:\n{failed.stderr}"
                raise ServerError(msg)
        [package] = folder.glob("*.deb")
        subprocess.run(["dpkg", "-x", package, folder / "root"], check=True)
        if not KEPT.exists():
            (folder / "root").rename(KEPT)


def _own_lists(folder: Path) -> list[str]:
    """Return the options by which apt-get keeps its lists in a folder, so that anybody may update them."""
    for part in ("state/lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True)
    return ["-o", f"Dir::State={folder / 'state'}", "-o", f"Dir::Cache={folder / 'cache'}"]


def _apt(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=DOWNLOAD_S, check=False)


def promtool(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run promtool to its end."""
    return subprocess.run([program("promtool"), *words], capture_output=True, text=True, timeout=60, check=False)


class PrometheusServer(_Server):
    """A Prometheus with a configuration, which is JSON, and so YAML."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        super().__init__(folder)
        self.program = program("prometheus")
        (folder / "prometheus.yml").write_text(json.dumps(config))

    def ask(self, path: str, **parameters: str | float) -> Any:
        """Return the data of an answer of its HTTP API.

        Raises
        ------
        urllib.error.HTTPError
            If it refuses the question, such as an expression that it cannot read.

        """
        with urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}?{urlencode(parameters)}", timeout=30) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[Any]:
        """Return the series that an expression gives now."""
        found: list[Any] = self.ask("query", query=expression)["result"]
        return found

    def _spawn(self) -> "subprocess.Popen[bytes]":
        options = {
            "config.file": self.folder / "prometheus.yml",
            "storage.tsdb.path": self.folder / "data",
            "web.listen-address": f"127.0.0.1:{self.port}",
        }
        command = [str(self.program), *(f"--{name}={value}" for name, value in options.items())]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                dying_with_parent(command, self.end_with), env={**os.environ, "GOMAXPROCS": "1"}, stdout=log, stderr=log
            )

    def _answers(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False
