"""Refusals that take no key: what was asked, by whom and why not, never what the message said."""

from datetime import datetime

from sqlalchemy import Connection

from models.database import insert
from models.errors import Refused
from models.tables import refusals


def record(
    connection: Connection, *, task: str, task_id: str, key: str | None, person: str | None, why: Refused, now: datetime
) -> None:
    """Keep one refusal."""
    connection.execute(
        insert(connection, refusals).values(
            task=task, task_id=task_id, key=key, person=person, reason=why.reason, detail=why.detail, at=now
        )
    )
