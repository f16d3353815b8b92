"""Attempts: what each carrier said of a job, for people. A message that was taken at once needs no note."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, select

from models.database.schema import attempts
from models.database.statements import insert
from models.ids import new_id
from models.messages.answer import iso_time
from models.messages.base import Json
from models.sends.charges import JobKey
from models.sends.outcomes import Settlement


def record_tries(connection: Connection, settlements: Sequence[Settlement], now: datetime) -> None:
    """Note the tries of attempts that have ended, one row for each carrier that was asked."""
    rows = [
        {
            "org_id": one.charge.org_id,
            "id": new_id(),
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
        connection.execute(insert(connection, attempts), rows)


def find_tries(connection: Connection, key: JobKey) -> list[Json]:
    """Return the tries of a job, the oldest first, as people are shown them."""
    found = connection.execute(
        select(attempts.c.number, attempts.c.carrier, attempts.c.outcome, attempts.c.detail, attempts.c.at)
        .where(attempts.c.org_id == key.org_id, attempts.c.job_id == key.job_id)
        .order_by(attempts.c.at, attempts.c.id)
    )
    return [
        {
            "attempt": row.number,
            "carrier": row.carrier,
            "outcome": row.outcome,
            "words": row.detail,
            "at": iso_time(row.at),
        }
        for row in found
    ]
