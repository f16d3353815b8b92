"""docs/first-hour.md: its commands do what it says, in its order, beside a running `postage up`.

Commands of ours are run one after the other in one process, because starting each would take longer than all they do.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.flows.deployment import environment

ROOT: Final = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/first-hour.md"
REFUSED = "# refused"
DRIVER = """
import json, sys
from click.testing import CliRunner
from worker.cli.main import postage
for line in sys.stdin:
    done = CliRunner().invoke(postage, json.loads(line))
    print(json.dumps([done.exit_code, done.output]), file=sys.__stdout__, flush=True)
"""


def lines() -> list[str]:
    """Give the lines of every block of commands after the first, which is `make run`."""
    _, *blocks = re.findall(r"^```\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if not line.startswith("export ")]


def words_of(line: str, folder: Path) -> list[str]:
    """Give the arguments of a command as the shell passes them."""
    script = f"postage() {{ printf '%s\\0' \"$@\"; }}\n{line}"
    shell = subprocess.run(["/bin/sh", "-euc", script], cwd=folder, capture_output=True, text=True, check=True)
    return shell.stdout.split("\0")[:-1]


def follow(folder: Path) -> list[str]:
    """Do everything that the document says, in a folder where `postage up` runs. Returns the names of its commands."""
    told = {
        **environment({}),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "BROKER_URL": (folder / "var/broker-url").read_text().strip(),
        "PYTHONPATH": str(ROOT),
    }
    done = []
    pipe = subprocess.PIPE
    driving = [sys.executable, "-c", DRIVER]
    with subprocess.Popen(driving, cwd=folder, env=told, stdin=pipe, stdout=pipe, text=True) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None
        for line in lines():
            if line.startswith("postage "):
                print(json.dumps(words_of(line, folder)), file=driver.stdin, flush=True)
                code, output = json.loads(driver.stdout.readline())
                assert code == (1 if line.endswith(REFUSED) else 0), f"{line}\n{output}"
                done.append(line.split()[1])
            else:
                subprocess.run(["/bin/sh", "-euc", line], cwd=folder, env=told, check=True)
        driver.stdin.close()
    return done
