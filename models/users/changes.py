"""Changes: who changed what, when, and what it was before. Kept append-only, for people to look up."""

from datetime import datetime
from typing import Literal

from sqlalchemy import Connection, Table, and_, select, update

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


def save_row(
    connection: Connection, table: Table, key: Json, given: Json, *, what: str, version: int | None
) -> tuple[Json | None, Json]:
    """Make the row of `key` in a table with versions, or change it. Returns it as it stood before, and as it is now.

    What is new stood as None. A row that is saved without a version keeps the one that it has.

    Raises
    ------
    Refused
        `stale` for an older version than the one that stands; `what` names the row.

    """
    given = given if version is None else {**given, "version": version}
    made = connection.execute(
        insert(connection, table).values(**key, **given).on_conflict_do_nothing().returning(*table.c)
    ).one_or_none()
    if made is not None:
        return None, made._asdict()
    its_own = and_(*(table.c[name] == value for name, value in key.items()))
    before = connection.execute(select(table).where(its_own).with_for_update(key_share=True)).one()._asdict()
    refuse_stale(what, version, before["version"])
    connection.execute(update(table).where(its_own).values(**given))
    return before, {**before, **given}


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
