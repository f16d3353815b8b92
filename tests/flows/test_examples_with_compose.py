"""README's snippet and the examples for producers, against the broker that compose.yaml runs."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.compose_file import ENV, ROOT, SERVICES
from tests.flows.deployment import BILLING, Deployment
from tests.servers import ValkeyServer

pytestmark = pytest.mark.timeout(240)

README = (ROOT / "README.md").read_text()
DEPLOYING = (ROOT / "docs/deploying.md").read_text()
EXAMPLES = ROOT / "examples/producers"


@pytest.fixture
def compose(tmp_path: Path, postgres_url: str) -> Iterator[Deployment]:
    """Give a worker on a broker with the options of compose.yaml, and Mary, who has credits."""
    _, *words = SERVICES["redis"]["command"]
    options = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    with (
        ValkeyServer(tmp_path / "valkey", **options) as broker,
        Deployment(tmp_path / "deployment", postgres_url, told_url(broker.port)) as deployment,
    ):
        do = deployment.producer.do
        do("roles.save", {"organization": "acme", "role": "member", "rights": []})
        mary = {"user_id": "mary", "organization": "acme", "name": "Mary", "email": "mary@acme.example"}
        do("users.save", {**mary, "role": "member", "billing": BILLING})
        credit = {"credits": {"email": 10}, "amount": 1, "currency": "EUR"}
        do("credits.purchase", {"order_id": "order-1", "buyer": "mary", **credit})
        yield deployment


def told_url(port: int) -> str:
    """Give the URL that docs/deploying.md tells producers, with this test's port."""
    [told] = re.findall(r"`export BROKER_URL=(\S+)`", DEPLOYING)
    return told.replace("PASSWORD", ENV["REDIS_PASSWORD"]).replace(":6379/", f":{port}/")


def run(deployment: Deployment, *command: str | Path, cwd: Path) -> str:
    environment = {**os.environ, "BROKER_URL": str(deployment.settings["broker_url"])}
    ended = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, encoding="utf-8", check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_snippet_and_the_example_for_python_work(compose: Deployment, tmp_path: Path) -> None:
    enqueue = README.partition("## Enqueue from your program")[2].partition("\n## ")[0]
    [snippet] = re.findall(r"^```python\n(.*?)^```", enqueue, re.MULTILINE | re.DOTALL)
    url = str(compose.settings["broker_url"])

    run(compose, sys.executable, "-c", snippet, cwd=tmp_path)
    told = run(compose, sys.executable, EXAMPLES / "python/enqueue.py", url, "mary", "you@example.org", cwd=tmp_path)

    assert compose.wait_until_final("invoice-4711")["invoice-4711"].state == "sent"
    assert "status   sent" in told


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node")
def test_the_example_for_node_works(compose: Deployment, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "node", tmp_path / "node", ignore=shutil.ignore_patterns("node_modules"))
    installed = subprocess.run(["npm", "install", "--silent"], cwd=tmp_path / "node", check=False)
    if installed.returncode:
        pytest.skip("npm finds no registry here")

    url = str(compose.settings["broker_url"])
    assert "status   sent" in run(compose, "node", "enqueue.mjs", url, "mary", "you@example.org", cwd=tmp_path / "node")
