"""Attempts: what each carrier said of a job, for people. A message that was taken at once needs no note."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, select

from models.database.schema import attempts
from models.database.statements import insert
from models.ids import new_id
from models.sends.charges import JobKey
from models.sends.outcomes import Settlement


def record_tries(connection: Connection, settlements: Sequence[Settlement], now: datetime) -> None:
    """Note the tries of attempts that have ended, one row for each carrier that was asked."""
    rows = [
        {
            "org_id": one.charge.org_id,
            "job_id": one.charge.job_id,
            "sender": one.charge.sender,
            "number": one.charge.attempts,
            "carrier": each.carrier,
            "outcome": each.outcome,
            "detail": each.detail or None,
            "at": now,
        }
        for one in settlements
        for each in one.tries
    ]
    if rows:
        in_order = sorted(new_id() for _ in rows)  # those of one attempt have the same time
        rows_with_ids = [{**row, "id": row_id} for row, row_id in zip(rows, in_order, strict=True)]
        connection.execute(insert(connection, attempts), rows_with_ids)


class NotedTry(NamedTuple):
    """What one carrier said in an attempt, as it was noted."""

    number: int
    carrier: str | None
    outcome: str
    detail: str | None
    at: datetime


def find_tries(connection: Connection, key: JobKey) -> list[NotedTry]:
    """Return the tries of a job, the oldest first."""
    found = connection.execute(
        select(*(attempts.c[name] for name in NotedTry._fields))
        .where(attempts.c.org_id == key.org_id, attempts.c.job_id == key.job_id)
        .order_by(attempts.c.at, attempts.c.id)
    )
    return [NotedTry(*row) for row in found]
