"""The instructions of the Dockerfile, and a build of its first stage by its own steps, without a container."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name, and what follows it on one line."""

    name: str
    rest: str


def instructions(text: str) -> Iterator[Instruction]:
    """Yield the instructions of a Dockerfile, without comments."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, rest = line.partition(" ")
        yield Instruction(name, rest)


def stages(text: str) -> list[list[Instruction]]:
    """Give the instructions of each stage."""
    found: list[list[Instruction]] = []
    for instruction in instructions(text):
        if instruction.name == "FROM":
            found.append([])
        found[-1].append(instruction)
    return found


def is_sent_to_builder(name: str) -> bool:
    """Whether .dockerignore, which leaves out everything and then names what is sent, names a file or folder."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    return patterns[0] == "*" and f"!{name}" in patterns


class Builder:
    """Runs the instructions of a stage, with every absolute path of the image below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cwd = folder
        # pip and uv are those of this environment, where the Dockerfile's `pip install` finds uv already installed.
        self._environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def inside(self, path: str) -> Path:
        """Give where a path of the image is here."""
        return self._folder / path.lstrip("/") if path.startswith("/") else self._cwd / path

    def run(self, stage: list[Instruction]) -> None:
        """Run the instructions of a stage, in order."""
        for instruction in stage:
            getattr(self, f"_{instruction.name.lower()}")(instruction.rest)

    def _from(self, image: str) -> None:
        assert re.fullmatch(r"python:3\.11\S* AS build", image), image

    def _env(self, rest: str) -> None:
        for pair in rest.split():
            name, _, value = pair.partition("=")
            self._environment[name] = str(self.inside(value)) if value.startswith("/") else value

    def _workdir(self, path: str) -> None:
        self._cwd = self.inside(path)
        self._cwd.mkdir(parents=True, exist_ok=True)

    def _copy(self, rest: str) -> None:
        *sources, to = rest.split()
        for source in sources:
            self._copy_one(source, self.inside(to))

    def _copy_one(self, source: str, to: Path) -> None:
        assert is_sent_to_builder(source), f".dockerignore keeps {source} from the builder"
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, to, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            shutil.copy(ROOT / source, to)

    def _run(self, command: str) -> None:
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self._cwd,
            env=self._environment,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
