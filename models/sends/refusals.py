"""Refusals that take no key: what was asked, by whom, and why it was refused; never the contents of the message."""

from datetime import datetime

from sqlalchemy import Connection

from models.database.schema import refusals
from models.database.statements import insert
from models.errors import Refused
from models.users.users import organization_of


def record_refusal(
    connection: Connection, *, task: str, task_id: str, key: str | None, person: str | None, why: Refused, now: datetime
) -> None:
    """Store one refusal."""
    connection.execute(
        insert(connection, refusals).values(
            org_id=organization_of(person),
            task=task,
            task_id=task_id,
            key=key,
            person=person,
            reason=why.reason,
            detail=why.detail,
            at=now,
        )
    )
