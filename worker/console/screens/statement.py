"""The statement: the entries of an owner's accounts, newest first, each with the balance that it left."""

from models.messages.base import Json
from worker.console.screen import Screen

COLUMNS = ("seq", "at", "cause_kind", "cause_id", "amount", "balance_after", "debt_after", "hash")


def _rows(answer: Json) -> list[Json]:
    """Return the entries of both accounts as rows."""
    return [
        {"kind": account["kind"]} | {name: entry[name] for name in COLUMNS}
        for account in answer["accounts"]
        for entry in account["entries"]
    ]


SCREEN = Screen(name="statement", path="/statement", task="views.statement", rows=_rows)
