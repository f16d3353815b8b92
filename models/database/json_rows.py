"""Many rows as one parameter: a JSON array that the database unpacks.

A statement with one parameter for each value of each row has to be compiled, sent and planned anew for every number of
rows. With one parameter it stays the same short statement, for one row as for five hundred, on both databases.
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
    FromClause,
    Integer,
    String,
    Text,
    any_,
    bindparam,
    cast,
    column,
    func,
    select,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import JSON as POSTGRES_JSON
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import TypeEngine

from models.database.statements import sql_literal

T = TypeVar("T")


def rows_from(dialect: str, columns: Mapping[str, TypeEngine[Any]], name: str) -> FromClause:
    """Return the rows of the parameter `name` as a subquery of that name with `columns`, to select or update from."""
    parameter = bindparam(f"{name}_json", type_=Text)
    if dialect == "postgresql":
        typed = [column(each, POSTGRES_JSON() if isinstance(kind, JSON) else kind) for each, kind in columns.items()]
        records = func.json_to_recordset(cast(parameter, POSTGRES_JSON)).table_valued(*typed, name="record")
        # The planner guesses a hundred rows, and for that many it would rather read all of a small table.
        known_number = select(records.render_derived(name="record", with_types=True)).limit(
            bindparam(f"{name}_count", type_=Integer)
        )
        return known_number.subquery(name)
    record = func.json_each(parameter).table_valued("value", name="record")
    values = [
        type_coerce(
            func.json_extract(record.c.value, sql_literal(f"$.{each}")), String if isinstance(kind, JSON) else kind
        ).label(each)
        for each, kind in columns.items()
    ]
    return select(*values).subquery(name)


def rows_param(connection: Connection, rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Return the parameters that hold `rows` for `rows_from`. A column left out of a row is NULL.

    Values are what JSON knows, and aware datetimes.
    """
    if connection.dialect.name == "sqlite":
        rows = [{each: _as_sqlite_stores(value) for each, value in row.items()} for row in rows]
        return {f"{name}_json": to_json(rows).decode()}  # pydantic's writer takes a third of the time of Python's
    return {f"{name}_json": to_json(rows).decode(), f"{name}_count": len(rows)}


def in_array(dialect: str, value: ColumnElement[T], name: str) -> ColumnElement[bool]:
    """Whether `value` is one of the values of the parameter `name`, which `array_param` makes."""
    if dialect == "postgresql":
        return value == any_(bindparam(name, type_=ARRAY(value.type)))
    elements = func.json_each(bindparam(name, type_=Text)).table_valued("value")
    return value.in_(select(elements.c.value))


def array_param(connection: Connection, values: Collection[T]) -> list[T] | str:
    """Return the parameter that holds `values` for `in_array`."""
    return to_json(list(values)).decode() if connection.dialect.name == "sqlite" else list(values)


class json_elements(GenericFunction[str]):  # noqa: N801  a function of SQL
    """The texts in a JSON array, as a table with the column `value`."""

    name = "json_each"
    identifier = "json_elements"  # under its own name it would replace `func.json_each` everywhere
    inherit_cache = True


@compiles(json_elements, "postgresql")
def _on_postgresql(element: json_elements, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401  SQLAlchemy's
    return f"json_array_elements_text{compiler.process(element.clause_expr, **options)}"


def _as_sqlite_stores(value: object) -> object:
    """Return a time in the form in which SQLAlchemy stores UTC on SQLite (`schema.UtcDateTime`), the rest as it is."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
    return value
