"""Usage as it is defined: added up from every charge there is, in plain Python. What the views must agree with."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Row, select

from models.database.schema import accounts, charges, users
from models.messages.answer import iso_time
from models.messages.fields import KINDS
from models.messages.views import ViewUsage
from models.reports.rollup import same_account
from models.reports.views import show_usage
from models.sends.answers import wire_status
from models.sends.charges import State

Json = dict[str, Any]
COMPARED = ("total", "rows", "more")


def usage_of_all_charges(connection: Connection, view: ViewUsage) -> Json:
    """Give total, rows and whether there are more, for a viewer who exists."""
    found = _charges(connection, view)
    total = {kind: sum(row.credits - row.refunded for row in found if row.kind == kind) for kind in KINDS}
    rows = _messages(found) if view.by == "message" else _days(found)
    return {"total": total, "rows": rows[(view.page - 1) * 100 : view.page * 100], "more": len(rows) > view.page * 100}


def usage_shown(connection: Connection, view: ViewUsage) -> Json:
    """Give the same as the view shows it."""
    shown = show_usage(connection, view)
    return {name: shown[name] for name in COMPARED}


def _charges(connection: Connection, view: ViewUsage) -> list[Row[Any]]:
    owner = connection.execute(select(users.c.credit_owner_id).where(users.c.id == view.viewer)).scalar_one()
    everything = connection.execute(select(charges, accounts.c.owner_id).join(accounts, same_account(charges)))
    is_shown: Callable[[Row[Any]], bool] = lambda row: row.sender == view.viewer  # noqa: E731
    if view.of == "owner":
        is_shown = lambda row: row.owner_id == owner  # noqa: E731
    return [
        row
        for row in everything
        if is_shown(row)
        and (view.since is None or row.created_at >= view.since)
        and (view.until is None or row.created_at < view.until)
    ]


def _messages(found: list[Row[Any]]) -> list[Json]:
    newest = sorted(sorted(found, key=lambda row: row.job_id), key=lambda row: row.created_at, reverse=True)
    return [
        {
            "job_id": row.job_id,
            "user": row.sender,
            "kind": row.kind,
            "credits": row.credits - row.refunded,
            "status": wire_status(State(row.state), row.attempts, row.reason),
            "paid_by": row.owner_id,
            "at": iso_time(row.created_at),
        }
        for row in newest
    ]


def _days(found: list[Row[Any]]) -> list[Json]:
    grouped = defaultdict(list)
    for row in found:
        grouped[str(row.created_at.date()), row.sender, row.kind].append(row.credits - row.refunded)
    ordered = sorted(sorted(grouped), key=lambda key: key[0], reverse=True)
    return [
        {"user": user, "day": day, "kind": kind, "credits": sum(spent), "messages": len(spent)}
        for day, user, kind in ordered
        for spent in [grouped[day, user, kind]]
    ]
