"""Many rows as one parameter: a JSON array that the database takes apart.

A statement with a parameter for every value of every row is compiled, sent and read anew for each number of rows. With
one parameter it is the same short statement for one row as for five hundred, on both databases.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic_core import to_json
from sqlalchemy import (
    ARRAY,
    JSON,
    ColumnElement,
    Connection,
    Delete,
    Executable,
    FromClause,
    Insert,
    Integer,
    String,
    Text,
    Update,
    any_,
    bindparam,
    cast,
    column,
    func,
    literal_column,
    select,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import JSON as POSTGRES_JSON
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import TypeEngine

T = TypeVar("T")

ROWS = "rows"
"""The name of the parameter."""


def unpacked(dialect: str, columns: Mapping[str, TypeEngine[Any]], name: str = ROWS) -> FromClause:
    """The rows of the parameter `name`, with these columns, to select or update from."""
    given = bindparam(name, type_=Text)
    if dialect == "postgresql":
        named = [column(each, POSTGRES_JSON() if isinstance(kind, JSON) else kind) for each, kind in columns.items()]
        function = func.json_to_recordset(cast(given, POSTGRES_JSON)).table_valued(*named, name="each")
        # The planner guesses a hundred rows, and would rather read all of a small table than look so many up.
        few = select(function.render_derived(with_types=True)).limit(bindparam(f"{name}_count", type_=Integer))
        return few.subquery("given")
    each = func.json_each(given).table_valued("value", name="each")
    values = [
        type_coerce(func.json_extract(each.c.value, f"$.{column}"), String if isinstance(kind, JSON) else kind).label(
            column
        )
        for column, kind in columns.items()
    ]
    return select(*values).subquery("given")


def packed(connection: Connection, rows: Sequence[Mapping[str, Any]], name: str = ROWS) -> dict[str, Any]:
    """The parameters that hold `rows`: values are what JSON knows, and aware datetimes. A column left out is NULL."""
    if connection.dialect.name == "sqlite":
        rows = [{column: _for_sqlite(value) for column, value in row.items()} for row in rows]
        return {name: to_json(rows).decode()}  # three times as fast as Python's own
    return {name: to_json(rows).decode(), f"{name}_count": len(rows)}


def fixed(value: str | int) -> ColumnElement[Any]:
    """A value of the program itself, as text of the statement: a parameter would be sent anew each time."""
    if isinstance(value, int):
        return literal_column(str(value), Integer)
    return literal_column(f"'{value}'", String)


def together(dialect: str, first: Insert | Update | Delete, then: Insert | Update) -> list[Executable]:
    """Two changes that do not see each other: one statement, where the database can do it in one."""
    return [then.add_cte(first.cte("first"))] if dialect == "postgresql" else [first, then]


def among(dialect: str, wanted: ColumnElement[T], name: str) -> ColumnElement[bool]:
    """Whether `wanted` is one of the values of the parameter `name`, which `listed` makes."""
    if dialect == "postgresql":
        return wanted == any_(bindparam(name, type_=ARRAY(wanted.type)))
    values = func.json_each(bindparam(name, type_=Text)).table_valued("value")
    return wanted.in_(select(values.c.value))


def listed(connection: Connection, values: Collection[T]) -> list[T] | str:
    """The parameter that holds `values`."""
    return to_json(list(values)).decode() if connection.dialect.name == "sqlite" else list(values)


class items(GenericFunction[str]):  # noqa: N801  a function of SQL
    """The texts in a JSON array, as a table with the column `value`."""

    name = "json_each"
    identifier = "items"  # under its name it would take the place of `func.json_each` everywhere
    inherit_cache = True


@compiles(items, "postgresql")
def _on_postgresql(element: items, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401  passed through
    return f"json_array_elements_text{compiler.process(element.clause_expr, **options)}"


def _for_sqlite(value: object) -> object:
    """A time in the form in which SQLAlchemy keeps UTC there (models/tables.py, Instant); the rest as it is."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
    return value
