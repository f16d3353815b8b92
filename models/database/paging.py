"""Pages of a long list, by cursors.

A page continues where the one before it ended: after the last row that was shown, by the values that the list is
ordered by. So rows that come or go between two pages make no row appear twice and none be skipped, and a late page
costs what the first one does. A cursor is those values under the names of their columns, so that one list does not take
the cursor of another, written so that nobody needs to look into it.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, Connection, Row, Select, and_, false, or_
from sqlalchemy.types import TypeEngine

from models.errors import Reason, Refused

PAGE_SIZE = 100
"""Rows on one page."""


class SortKey(NamedTuple):
    """One column that a list is ordered by, none of whose values is NULL."""

    column: ColumnElement[Any]
    descending: bool = False


class Page(NamedTuple):
    """The rows of one page, and the cursor of the next one; None if nothing follows."""

    rows: Sequence[Row[*tuple[Any, ...]]]
    next: str | None


def fetch_page(
    connection: Connection,
    query: Select[*tuple[Any, ...]],
    order: Mapping[str, SortKey],
    cursor: str | None = None,
    page: int = 1,
) -> Page:
    """Return the page after `cursor`, or the one with the number `page`, counted from 1, of a list without cursor.

    `order` names the columns of the query by which the list is ordered. Together they tell each row from all others.

    Raises
    ------
    Refused
        `invalid_job` for a cursor that no such list gave.

    """
    ordered = query.order_by(*(each.column.desc() if each.descending else each.column for each in order.values()))
    ordered = ordered.where(is_after(order, cursor)) if cursor else ordered.offset((page - 1) * PAGE_SIZE)
    rows = connection.execute(ordered.limit(PAGE_SIZE + 1)).all()
    if len(rows) <= PAGE_SIZE:
        return Page(rows, None)
    last = rows[PAGE_SIZE - 1]._mapping  # noqa: SLF001  its public name
    return Page(rows[:PAGE_SIZE], _encode({name: last[name] for name in order}))


def is_after(order: Mapping[str, SortKey], cursor: str) -> ColumnElement[bool]:
    """Whether a row comes after the one whose values a cursor holds.

    Raises
    ------
    Refused
        `invalid_job` for a cursor that no such list gave.

    """
    values = list(zip(order.values(), _decode(cursor, order), strict=True))
    after: ColumnElement[bool] = false()
    for each, value in reversed(values):
        beyond = each.column < value if each.descending else each.column > value
        after = or_(beyond, and_(each.column == value, after))
    first, value = values[0]
    # It follows from the rest, but is what an index can begin at: of an OR planners make no such use.
    begins = first.column <= value if first.descending else first.column >= value
    return and_(begins, after)


def refused_cursor() -> Refused:
    """Return the refusal of a cursor that no such list gave."""
    return Refused(Reason.INVALID_JOB, "`next`: must be what `next` was in an answer to the same question.")


def _encode(values: Mapping[str, Any]) -> str:
    plain = {name: value.isoformat() if isinstance(value, date) else value for name, value in values.items()}
    return base64.urlsafe_b64encode(json.dumps(plain).encode()).rstrip(b"=").decode()


def _decode(cursor: str, order: Mapping[str, SortKey]) -> list[Any]:
    try:
        plain = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not isinstance(plain, dict) or plain.keys() != order.keys():
            raise TypeError  # noqa: TRY301  all that is wrong with a cursor is refused in one place
        return [_typed(plain[name], each.column.type) for name, each in order.items()]
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise refused_cursor() from None


def _typed(value: Any, type_: TypeEngine[Any]) -> Any:  # noqa: ANN401  what JSON holds
    """Return a value of a cursor as its column has it. What is raised for anything else, `_decode` refuses."""
    kind = type_.python_type
    if kind is datetime:
        at = datetime.fromisoformat(value)
        if at.tzinfo is None:
            raise ValueError(value)
        return at.astimezone(UTC)
    if kind is date:
        return date.fromisoformat(value)
    if type(value) is not kind:
        raise TypeError(value)
    if kind is int:
        value.to_bytes(8 if isinstance(type_, BigInteger) else 4, signed=True)  # more is no such number
    elif "\0" in value.encode().decode():  # no database stores it, nor what UTF-8 does not know
        raise ValueError(value)
    return value
