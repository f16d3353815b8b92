"""Pages of a long list."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select

PAGE = 100
"""Rows of one page."""


def page_of(
    connection: Connection, query: Select[*tuple[Any, ...]], page: int
) -> tuple[Sequence[Row[*tuple[Any, ...]]], bool]:
    """The rows of one page (from 1), and whether there are more behind it."""
    found = connection.execute(query.offset((page - 1) * PAGE).limit(PAGE + 1)).all()
    return found[:PAGE], len(found) > PAGE
