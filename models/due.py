"""What is due: jobs that wait for their next attempt, and bulk jobs in place of messages that were never begun."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, case, select, update

from models.charges import State
from models.database import lock_past
from models.fields import Kind
from models.tables import charges


class Due(NamedTuple):
    """A job that waits for its next attempt, and how many were made."""

    kind: Kind
    job_id: str
    attempts: int


def take_due(connection: Connection, now: datetime, look_again_at: datetime, limit: int) -> list[Due]:
    """The jobs whose next attempt is due, longest first.

    Each is put off until `look_again_at`, so that a busy queue does not get the same job over and over, and a lost
    message is made up for.
    """
    due = _lock_due(connection, State.WAITING, now, limit)
    taken = connection.execute(
        update(charges)
        .where(charges.c.job_id.in_(due))
        .values(due_at=look_again_at)
        .returning(charges.c.kind, charges.c.job_id, charges.c.attempts)
    )
    return sorted(Due(*row) for row in taken)


def take_due_bulks(connection: Connection, now: datetime, look_again_at: datetime, limit: int) -> list[Due]:
    """The messages of due bulk jobs that were never begun, in id order; the jobs are put off in the same way.

    A job all of whose messages were begun is not due any more: from then on they are due themselves.
    """
    due = _lock_due(connection, State.BULK, now, limit)
    left = [
        (row.bulk_id, Due(row.kind, row.job_id, row.attempts))
        for row in connection.execute(
            select(charges.c.bulk_id, charges.c.kind, charges.c.job_id, charges.c.attempts)
            .where(charges.c.bulk_id.in_(due), _never_begun)
            .order_by(charges.c.job_id)
        )
    ]
    unfinished = {bulk_id for bulk_id, _ in left}
    connection.execute(
        update(charges)
        .where(charges.c.job_id.in_(due))
        .values(due_at=case((charges.c.job_id.in_(unfinished), look_again_at), else_=None))
    )
    return [message for _, message in left]


def _lock_due(connection: Connection, state: State, now: datetime, limit: int) -> list[str]:
    return lock_past(connection, charges.c.job_id, charges.c.due_at, now, limit, charges.c.state == state)


_never_begun = (charges.c.state == State.WAITING) & charges.c.due_at.is_(None)
"""Whether a message of a bulk job waits for its first attempt: not it is due, but the job."""


def waits() -> list[ColumnElement[bool]]:
    """Which charges wait for an attempt: those that are due themselves, and those whose bulk job is."""
    bulk = charges.alias("bulk")
    due = select(bulk.c.job_id).where(bulk.c.due_at.is_not(None), bulk.c.state == State.BULK)
    return [
        charges.c.due_at.is_not(None) & (charges.c.state == State.WAITING),
        charges.c.bulk_id.in_(due) & _never_begun,
    ]
