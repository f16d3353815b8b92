"""Users: who they are, in which organization, with which role, and whose credits they spend."""

import functools
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Executable, select, update

from models.database.json_rows import array_param, in_array
from models.database.schema import users
from models.database.statements import insert
from models.errors import Reason, Refused
from models.messages.billing import SaveUser
from models.users.roles import lock_role


@dataclass(frozen=True, slots=True)
class User:
    """A user as the rules need them. `owner` is their credit owner."""

    id: str
    organization: str
    name: str
    email: str
    role: str
    owner: str

    @property
    def is_credit_user(self) -> bool:
        """Whether they spend somebody else's credits."""
        return self.owner != self.id


_COLUMNS = (users.c.id, users.c.organization, users.c.name, users.c.email, users.c.role, users.c.credit_owner_id)


def lock_users(connection: Connection, ids: Collection[str], *, to_change: bool = False) -> dict[str, User]:
    """Lock the users of `ids`, in id order, until the transaction ends, and return those that exist, by id.

    A charge takes the lock shared. A change of owner takes it exclusively (`to_change`), so every charge sees either
    the old owner or the new one.
    """
    statement = _select_for_update(connection.dialect.name, exclusive=to_change)
    return {row.id: User(*row) for row in connection.execute(statement, {"ids": array_param(connection, ids)})}


@functools.cache
def _select_for_update(dialect: str, *, exclusive: bool) -> Executable:
    named = select(*_COLUMNS).where(in_array(dialect, users.c.id, "ids")).order_by(users.c.id)
    return named.with_for_update(read=not exclusive)


def get_user(connection: Connection, user_id: str) -> User:
    """Return one user, without a lock.

    Raises
    ------
    Refused
        `unknown_user`.

    """
    row = connection.execute(select(*_COLUMNS).where(users.c.id == user_id)).one_or_none()
    if row is None:
        raise unknown_user(user_id)
    return User(*row)


def unknown_user(user_id: str) -> Refused:
    """Return the refusal for a user who was never saved."""
    return Refused(Reason.UNKNOWN_USER, f"There is no user {user_id}: save them with users.save first.")


def upsert_user(connection: Connection, user: SaveUser, now: datetime) -> bool:
    """Make a user, their own credit owner, or change who they are. Returns whether the user is new.

    Billing information that is left out stays as it is.

    Raises
    ------
    Refused
        `not_found` for a role that was never saved, `other_organization` for a user of another organization.

    """
    lock_role(connection, user.organization, user.role)
    saved = {"name": user.name, "email": user.email, "role": user.role}
    if user.billing is not None:
        saved["billing"] = user.billing  # type: ignore[assignment]
    made = connection.execute(
        insert(connection, users)
        .values(
            id=user.user_id,
            organization=user.organization,
            credit_owner_id=user.user_id,
            is_owner=True,
            created_at=now,
            **saved,
        )
        .on_conflict_do_nothing()
        .returning(users.c.id)
    ).one_or_none()
    if made is not None:
        return True
    changed = connection.execute(
        update(users).where(users.c.id == user.user_id, users.c.organization == user.organization).values(**saved)
    )
    if changed.rowcount == 0:
        sentence = f"User {user.user_id} belongs to another organization, and nobody can be moved between them."
        raise Refused(Reason.OTHER_ORGANIZATION, sentence)
    return False
