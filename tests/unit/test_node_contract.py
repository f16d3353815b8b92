"""The package for Node: its contract and types are those of the server. Needs no Node."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from models.messages.answers import ANSWERS
from models.messages.wire import MESSAGES

PACKAGE = Path(__file__).parents[2] / "clients/node"
TYPES = (PACKAGE / "index.d.ts").read_text()


def make_contract() -> ModuleType:
    """Give the script that writes the contract, as a module."""
    spec = importlib.util.spec_from_file_location("make_contract", PACKAGE / "make_contract.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CONTRACT = make_contract()


@pytest.mark.parametrize("name", CONTRACT.FILES)
def test_what_is_kept_is_what_the_script_makes(name: str) -> None:
    assert (PACKAGE / name).read_text() == CONTRACT.FILES[name](), "run `python clients/node/make_contract.py`"


def test_every_task_has_the_types_of_its_message_and_answer() -> None:
    types = CONTRACT.types()
    for name, models in (("Messages", MESSAGES), ("Answers", ANSWERS)):
        [mapping] = re.findall(rf"^export interface {name} {{\n(.*?)^}}", types, re.MULTILINE | re.DOTALL)
        named = dict(re.findall(r'"([\w.]+)": (\w+)', mapping))
        assert named == {task: model.__name__ for task, model in models.items()}
        for model in named.values():
            assert f"export interface {model} {{" in types


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$ref": "#/$defs/Credits"}, "Credits"),
        ({"const": 1, "type": "integer"}, "1"),
        ({"enum": ["a", "b"], "type": "string"}, '"a" | "b"'),
        ({"anyOf": [{"type": "string", "maxLength": 3}, {"type": "string"}, {"type": "null"}]}, "string | null"),
        ({"type": "array", "items": {"enum": ["a", "b"]}}, 'Array<"a" | "b">'),
        ({"type": "object", "additionalProperties": {"type": "boolean"}}, "Record<string, boolean>"),
        ({"type": "object", "additionalProperties": True}, "Record<string, unknown>"),
    ],
)
def test_a_schema_has_its_type(schema: dict[str, object], words: str) -> None:
    assert CONTRACT.type_of(schema) == words


@pytest.mark.parametrize("schema", [{"allOf": []}, {"type": "number"}, {"type": "object"}, {}])
def test_a_schema_of_a_new_form_is_refused(schema: dict[str, object]) -> None:
    """Nothing becomes `any` in silence."""
    with pytest.raises(ValueError, match="There is no TypeScript"):
        CONTRACT.type_of(schema)


def test_the_types_declare_what_the_package_exports() -> None:
    exported = re.findall(r"\w+", " ".join(re.findall(r"export {(.*?)}", (PACKAGE / "index.js").read_text())))

    assert sorted(re.findall(r"^export declare class (\w+)", TYPES, re.MULTILINE)) == sorted(exported)


def test_the_types_declare_every_method_and_option() -> None:
    client = (PACKAGE / "lib/client.js").read_text()
    methods = re.findall(r"^  (?:async )?(\w+)\(.*{$", client.partition("export class PostageClient")[2], re.MULTILINE)
    [declared] = re.findall(r"^export declare class PostageClient.*?{\n(.*?)^}", TYPES, re.MULTILINE | re.DOTALL)
    [options] = re.findall(r"^export interface ClientOptions {\n(.*?)^}", TYPES, re.MULTILINE | re.DOTALL)

    assert re.findall(r"^  (\w+)[(<]", declared, re.MULTILINE) == methods
    assert sorted(re.findall(r"^  (\w+)\?:", options, re.MULTILINE)) == re.findall(
        r'"(\w+)"', client.partition("const OPTIONS = [")[2].partition("]")[0]
    )
