"""What the Dockerfile builds: Postage without the packages of developers starts, and plays the story."""

import os
import re
import subprocess
import sys
import tomllib
from functools import partial
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.flows.deployment import CommandResult, environment
from tests.flows.dockerfile import ROOT, Builder, stages

pytestmark = [pytest.mark.xdist_group("story"), pytest.mark.timeout(300)]

DOCKERFILE = (ROOT / "Dockerfile").read_text()
STORY = ROOT / "examples" / "john-peter-mary.jsonl"
BUILD, RUN = stages(DOCKERFILE)

IMPORT_ALL = """
import importlib, pkgutil, sys
for package in ("worker", "tasks", "models"):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        if not module.name.startswith(("worker.__main__", "models.database.migrations.env")):
            importlib.import_module(module.name)
            print(module.name)
"""
"""Alembic runs its env.py itself, and `__main__` runs the command line."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of programs that the Dockerfile's steps have installed."""
    builder = Builder(tmp_path_factory.mktemp("image"))
    builder.run(BUILD)
    return builder.inside("/opt/postage") / "bin"


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> partial[CommandResult]:
    """Give a function that runs a program of the image in an empty folder."""
    return partial(run_program, installed, tmp_path)


def run_program(programs: Path, folder: Path, *command: str) -> CommandResult:
    """Run a program of the image to its end, with nothing of this environment or checkout to import."""
    clean = {name: value for name, value in environment({}).items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    ended = subprocess.run(
        [programs / command[0], *command[1:]],
        cwd=folder,
        env={**clean, "PATH": f"{programs}:{os.defpath}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    return CommandResult(ended.returncode, ended.stdout, ended.stderr)


def test_the_story_is_played_by_what_the_image_has(run: partial[CommandResult]) -> None:
    played = run("postage", "up", str(STORY), "--exit")

    assert played.code == 0, played.err
    assert "Ended cleanly." in played.out


def test_every_module_of_the_image_can_be_imported(run: partial[CommandResult]) -> None:
    imported = run("python", "-c", IMPORT_ALL)

    assert imported.code == 0, imported.err
    assert len(imported.out.split()) > 100


def test_the_image_has_nothing_of_the_developers(installed: Path) -> None:
    developers = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["dev"]
    names = {re.match(r"[\w-]+", requirement)[0].replace("-", "_") for requirement in developers}  # type: ignore[index]
    packages = {
        path.name.partition("-")[0].lower() for path in installed.parent.glob("lib/*/site-packages/*.dist-info")
    }

    assert packages > {"celery", "kombu", "postage"}
    assert packages & names == set()


def test_the_image_has_every_file_of_the_packages_that_is_no_module(installed: Path) -> None:
    [site] = installed.parent.glob("lib/*/site-packages")
    files = [
        file.relative_to(ROOT)
        for package in ("worker", "tasks", "models")
        for file in (ROOT / package).rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc")
    ]

    assert len(files) > 5
    assert [file for file in files if not (site / file).is_file()] == []


def test_the_image_runs_postage_from_an_empty_folder_as_a_user_without_rights() -> None:
    rest = {instruction.name: instruction.rest for instruction in RUN}

    assert rest["ENTRYPOINT"] == '["postage"]'
    assert rest["USER"] == "postage"
    assert rest["WORKDIR"] == "/var/lib/postage"
    assert rest["COPY"] == "--from=build /opt/postage /opt/postage"
    assert "/opt/postage/bin:$PATH" in rest["ENV"]


def test_every_package_that_is_imported_is_a_dependency() -> None:
    """A package that only another one brings can go with that one's next release."""
    declared = {
        re.match(r"[\w-]+", requirement)[0].replace("_", "-").lower()  # type: ignore[index]
        for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    }
    ours = {"worker", "tasks", "models"}
    source = "\n".join(file.read_text() for package in ours for file in (ROOT / package).rglob("*.py"))
    imported = set(re.findall(r"^\s*(?:from|import) ([a-zA-Z_]\w*)", source, re.MULTILINE))
    installed_by = {
        name: {distribution.replace("_", "-").lower() for distribution in distributions}
        for name, distributions in packages_distributions().items()
    }

    foreign = (imported & installed_by.keys()) - ours - sys.stdlib_module_names
    missing = {name for name in foreign if not declared & installed_by[name]}

    assert foreign > {"celery", "kombu", "pydantic", "sqlalchemy"}
    assert missing == set()
