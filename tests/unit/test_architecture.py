"""What import-linter cannot see: it knows other people's packages only as a whole."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for room in ("models", "tasks", "worker") for path in (ROOT / room).rglob("*.py"))
INSIDE = (
    "celery.app.events",
    "celery.concurrency",
    "celery.events",
    "celery.utils",
    "celery.worker",
    "kombu.message",
    "kombu.serialization",
    "kombu.transport",
    "kombu.utils",
)
"""The inside of Celery and kombu."""


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_broker_folder_imports_the_inside_of_celery_and_kombu(path: Path) -> None:
    inside = [name for name in imports(path) if name.startswith(INSIDE)]

    assert path.parent == ROOT / "worker" / "broker" or inside == []


def test_only_the_ledger_writes_accounts_and_entries() -> None:
    writers = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if "versions" not in path.parts and any(table in WRITTEN for table in written_tables(path))
    ]

    assert writers == ["models/money/ledger.py"]


WRITTEN = ("accounts", "entries")
CHANGES = ("insert", "insert_for", "update", "delete")


def written_tables(path: Path) -> Iterator[str]:
    """The tables named in an insert, update or delete of a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CHANGES:
            yield from (argument.id for argument in node.args if isinstance(argument, ast.Name))
