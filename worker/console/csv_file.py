"""The rows of an answer as CSV (RFC 4180), page by page."""

import csv
import io
from collections.abc import Iterator
from itertools import islice

from models.messages.base import Json
from models.text import spreadsheet_cell
from worker.console.screen import Asked, Screen

PAGES_MAX = 1_000


def csv_lines(screen: Screen, asked: Asked, answer: Json) -> Iterator[str]:
    """Yield the rows of an answer and of the pages after it, with a header before them."""
    header: list[str] = []
    for rows in islice(_pages(screen, asked, answer), PAGES_MAX):
        text = io.StringIO()
        writer = csv.writer(text)
        for row in map(_flat, rows):
            if not header:
                header = list(row)
                writer.writerow(header)
            writer.writerow([spreadsheet_cell(row.get(name, "")) for name in header])
        yield text.getvalue()


def _pages(screen: Screen, asked: Asked, answer: Json) -> Iterator[list[Json]]:
    for page in asked.pages(screen.task, screen.message(asked) | {"page": 1}, first=answer):
        if page is not answer and page["status"] == "refused":
            return
        yield screen.rows(page) or []


def _flat(row: Json, before: str = "") -> dict[str, str]:
    """Return a row with the fields of objects in it beside its own, and without lists."""
    flat: dict[str, str] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{name}.")
        elif not isinstance(value, list):
            flat[before + name] = "" if value is None else str(value)
    return flat
