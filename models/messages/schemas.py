"""The wire contract as JSON Schema, made from the messages and answers themselves.

The schemas keep to what draft 7 and 2020-12 have in common, so one text serves AsyncAPI and everybody else.
"""

from functools import reduce
from operator import or_
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from models.messages.answers import ANSWERS, forms_of
from models.messages.base import Json
from models.messages.wire import MESSAGES

DIALECT = "https://json-schema.org/draft/2020-12/schema"
"""The dialect of JSON Schema, for those who ask; its identifier."""
MODE: JsonSchemaMode = "validation"
"""Schemas are of what is read: messages as a worker takes them, answers as a producer gets them."""


class _Generator(GenerateJsonSchema):
    """Leaves out titles that only repeat a field's name, and closes objects whose names have a pattern."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ANN401, ARG002  pydantic's
        return False

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        """Return the schema of an object with any names. `patternProperties` alone would let other names through."""
        made = super().dict_schema(schema)
        for pattern, values in made.pop("patternProperties", {}).items():
            made["propertyNames"] = made.get("propertyNames", {}) | {"pattern": pattern}
            made["additionalProperties"] = values
        return made


def message_schema(task: str) -> Json:
    """Return the JSON schema of the object that a task takes."""
    return {"$schema": DIALECT} | MESSAGES[task].model_json_schema(schema_generator=_Generator, mode=MODE)


def answer_schema(task: str) -> Json:
    """Return the JSON schema of what a task answers: one of several forms, if there are several."""
    forms = forms_of(task)
    if len(forms) == 1:
        return {"$schema": DIALECT} | forms[0].model_json_schema(schema_generator=_Generator, mode=MODE)
    either: Any = reduce(or_, forms)
    made = TypeAdapter(either).json_schema(schema_generator=_Generator, mode=MODE)
    return {"$schema": DIALECT} | made


def all_schemas(reference: str) -> dict[str, Json]:
    """Return the schemas of all messages and answers, and of the objects in them, by the names of their classes.

    They refer to each other by `reference`, in which `{model}` is such a name.
    """
    models = dict.fromkeys([*MESSAGES.values(), *(form for task in ANSWERS for form in forms_of(task))])
    _, made = models_json_schema(
        [(model, MODE) for model in models], schema_generator=_Generator, ref_template=reference
    )
    definitions: dict[str, Json] = made["$defs"]
    return definitions
