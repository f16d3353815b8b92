"""What is due: waiting jobs, and bulk jobs in place of those of their messages that were never begun."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, case, select, update

from models.database.schema import charges
from models.database.statements import is_among, is_selected, lock_overdue
from models.messages.fields import Kind
from models.sends.charges import KEY, JobKey, State


class DueJob(NamedTuple):
    """A job that waits for its next attempt, and how many it has had."""

    kind: Kind
    org_id: int
    job_id: str
    attempts: int

    @property
    def key(self) -> JobKey:
        """The key of the job."""
        return JobKey(self.org_id, self.job_id)


def claim_due(connection: Connection, now: datetime, next_due_at: datetime, limit: int) -> list[DueJob]:
    """Return the jobs whose next attempt is due, and make them due again at `next_due_at`.

    So a busy queue does not get the same job over and over, and a message that is lost is sent once more.
    """
    due = _lock_due(connection, State.WAITING, now, limit)
    claimed = connection.execute(
        update(charges)
        .where(is_among(KEY, due))
        .values(due_at=next_due_at)
        .returning(charges.c.kind, *KEY, charges.c.attempts)
    )
    return sorted(DueJob(*row) for row in claimed)


def claim_due_bulks(connection: Connection, now: datetime, next_due_at: datetime, limit: int) -> list[DueJob]:
    """Return the messages of due bulk jobs that were never begun, in id order, and put the jobs off in the same way.

    A bulk job is no longer due once all its messages were begun: from then on they are due themselves.
    """
    due = _lock_due(connection, State.BULK, now, limit)
    never_begun = [
        (JobKey(row.org_id, row.bulk_id), DueJob(row.kind, row.org_id, row.job_id, row.attempts))
        for row in connection.execute(
            select(charges.c.bulk_id, charges.c.kind, *KEY, charges.c.attempts)
            .where(is_among((charges.c.org_id, charges.c.bulk_id), due), _was_never_begun)
            .order_by(*KEY)
        )
    ]
    unfinished = {bulk for bulk, _ in never_begun}
    connection.execute(
        update(charges)
        .where(is_among(KEY, due))
        .values(due_at=case((is_among(KEY, unfinished), next_due_at), else_=None))
    )
    return [message for _, message in never_begun]


def _lock_due(connection: Connection, state: State, now: datetime, limit: int) -> list[JobKey]:
    found = lock_overdue(connection, KEY, charges.c.due_at, now, limit, charges.c.state == state)
    return [JobKey(*row) for row in found]


_was_never_begun = (charges.c.state == State.WAITING) & charges.c.due_at.is_(None)
"""Whether a message of a bulk job waits for its first attempt. The bulk job is due in its place."""


def is_waiting() -> list[ColumnElement[bool]]:
    """Return the conditions for charges that wait, one for an index each: due themselves, or by their bulk job."""
    bulk = charges.alias("bulk")
    due_bulks = select(bulk.c.org_id, bulk.c.job_id).where(bulk.c.due_at.is_not(None), bulk.c.state == State.BULK)
    return [
        charges.c.due_at.is_not(None) & (charges.c.state == State.WAITING),
        is_selected((charges.c.org_id, charges.c.bulk_id), due_bulks) & _was_never_begun,
    ]
