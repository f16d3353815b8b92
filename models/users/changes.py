"""Changes: who changed what, when, and what it was before. Kept append-only, for people to look up."""

from datetime import datetime
from typing import Literal

from sqlalchemy import Connection

from models.database.schema import changes
from models.database.statements import insert
from models.errors import Reason, Refused
from models.ids import new_id
from models.messages.base import Json

ChangeKind = Literal["user", "role", "plan", "owner", "credits", "erasure"]


def record_change(
    connection: Connection,
    kind: ChangeKind,
    subject: str,
    *,
    org_id: int,
    actor: str | None,
    old: Json | None,
    new: Json | None,
    now: datetime,
) -> None:
    """Store a change of `subject`, unless nothing changed. `old` is None for what is new. It holds no personal data."""
    if old == new:
        return
    connection.execute(
        insert(connection, changes).values(
            org_id=org_id, id=new_id(), kind=kind, subject=subject, actor=actor, old=old, new=new, at=now
        )
    )


def refuse_stale(what: str, given: int | None, standing: int | None) -> None:
    """Refuse to save an older version over a newer one. A save without a version is newer than what stands.

    Raises
    ------
    Refused
        `stale`.

    """
    if given is not None and standing is not None and given < standing:
        sentence = f"{what} is at version {standing} already, so version {given} is not saved over it."
        raise Refused(Reason.STALE, sentence)
