"""How the findings of an audit say what differs."""

from sqlalchemy import ColumnElement, String, func, literal
from sqlalchemy import cast as sql_cast
from sqlalchemy.sql.elements import SQLCoreOperations


def text(value: SQLCoreOperations[object]) -> ColumnElement[str]:
    """Return a value as text: "nothing" if there is none."""
    return func.coalesce(sql_cast(value, String), "nothing")


def words(*parts: str | SQLCoreOperations[object]) -> ColumnElement[str]:
    """Return texts and values as one text."""
    first, *rest = (literal(part, String) if isinstance(part, str) else text(part) for part in parts)
    for part in rest:
        first = first + part
    return first
