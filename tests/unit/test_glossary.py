"""One word, one meaning: the glossary names what is in the code, and the public classes are in the glossary."""

import ast
import functools
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GLOSSARY = (ROOT / "docs/glossary.md").read_text()
SOURCES = [
    path
    for room in ("models", "tasks", "worker")
    for path in (ROOT / room).rglob("*.py")
    if "versions" not in path.parts
]
TERMS = re.findall(r"^(\*\*.+)$", GLOSSARY, re.MULTILINE)
LEFT_OUT = ("Error", "PostageTask", "InternalTask", "SendTask", "BulkTask", "ViewTask", "UtcDateTime")
"""Errors explain themselves, and the bases of tasks and columns are no words of the field."""
RETIRED = {
    *("behold", "conversation", "death", "door", "hands", "holder", "house", "judge", "judging"),
    *("letterbox", "line", "looking", "outbox", "parcel", "patience", "person", "piece", "showing", "together"),
    *("viewing", "whose"),
}
"""Words that once meant something here. `JobLine` and the like are lines of text."""
ALLOWED = {"JobLine", "StoryLine", "TextLine"}


def public_classes() -> dict[str, list[str]]:
    """Each public class, and the modules that define one of that name."""
    found = defaultdict(list)
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(str(path.relative_to(ROOT)))
    return found


@functools.cache
def public_names() -> set[str]:
    """Classes, functions and constants of all modules, and the modules themselves."""
    names = {path.stem for path in SOURCES}
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.Assign):
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def named(term: str) -> list[str]:
    """The names in code that the headline of a term gives."""
    return re.findall(r"`(\w+)`", term)


@pytest.mark.parametrize("name", [name for term in TERMS for name in named(term)])
def test_a_name_in_the_glossary_is_in_the_code(name: str) -> None:
    assert name in public_names()


def test_every_public_class_of_models_and_tasks_is_in_the_glossary() -> None:
    explained = {name for term in TERMS for name in named(term)}
    documented_for_producers = set(re.findall(r"\w+", (ROOT / "models/messages/__init__.py").read_text()))
    classes = {name for name, paths in public_classes().items() if not paths[0].startswith("worker/")}

    missing = {name for name in classes - explained - documented_for_producers if not name.endswith(LEFT_OUT)}

    assert missing <= {"Send"} | {name for name in classes if name[0].islower()}


def test_no_two_public_classes_have_the_same_name() -> None:
    assert {name: paths for name, paths in public_classes().items() if len(paths) > 1} == {}


def test_terms_are_explained_once() -> None:
    words = [word for term in TERMS for word in re.findall(r"\*\*([^*]+)\*\*", term)]

    assert sorted(words) == sorted(set(words))


def test_retired_words_are_not_used_as_names() -> None:
    words = {name: set(re.findall(r"[A-Z]?[a-z]+", name)) for name in public_names() - ALLOWED}

    assert {name for name, parts in words.items() if {part.lower() for part in parts} & RETIRED} == set()
