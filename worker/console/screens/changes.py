"""Who changed what, and what was before."""

import json

from models.messages.base import Json
from worker.console.rendering import money
from worker.console.screen import Asked, Screen


def _message(asked: Asked) -> Json:
    return asked.view(subject=asked.given.get("subject", "").strip() or None)


def _details(_asked: Asked, answer: Json) -> Json:
    return {"changed": [_changed(row) for row in answer["rows"]]}


def _changed(row: Json) -> list[tuple[str, str, str]]:
    """Return the fields that a change has changed: each with what it was and what it is, as text."""
    old, new = row["old"] or {}, row["new"] or {}
    names = [*new, *(name for name in old if name not in new)]
    return [(name, _text(old, name), _text(new, name)) for name in names if old.get(name) != new.get(name)]


def _text(side: Json, name: str) -> str:
    """Return a field of one side of a change for people. A price is in the currency beside it."""
    match side.get(name):
        case None:
            return ""
        case list() as several:
            return ", ".join(map(str, several))
        case int() as price if name == "price" and "currency" in side:
            return money(price, side["currency"])
        case other:
            return str(other)


def _rows(answer: Json) -> list[Json]:
    """Return the changes as rows that have the same columns, whatever was changed."""
    return [row | {side: json.dumps(row[side]) for side in ("old", "new")} for row in answer["rows"]]


SCREEN = Screen(
    name="changes",
    path="/changes",
    task="views.changes",
    message=_message,
    details=_details,
    rows=_rows,
    rights=("view_user_list",),
)
