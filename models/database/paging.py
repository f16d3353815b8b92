"""Pages of a long list."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select

PAGE_SIZE = 100
"""Rows on one page."""


def fetch_page(
    connection: Connection, query: Select[*tuple[Any, ...]], page: int
) -> tuple[Sequence[Row[*tuple[Any, ...]]], bool]:
    """Return the rows of one page (counted from 1), and whether more rows follow it."""
    found = connection.execute(query.offset((page - 1) * PAGE_SIZE).limit(PAGE_SIZE + 1)).all()
    return found[:PAGE_SIZE], len(found) > PAGE_SIZE
