"""People: who they are, what their role lets them do, and whose credits they spend."""

import functools
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Executable, Row, select, update

from models.database import insert
from models.errors import Reason, Refused
from models.fields import KINDS
from models.messages import Right, SaveRole, SaveUser
from models.rows import among, listed
from models.tables import accounts, roles, users


@dataclass(frozen=True, slots=True)
class Person:
    """A user as the rules need them. `owner` is whose credits they spend."""

    id: str
    organization: str
    name: str
    email: str
    role: str
    owner: str

    @property
    def shares(self) -> bool:
        """Whether they spend somebody else's credits."""
        return self.owner != self.id


PERSON = (users.c.id, users.c.organization, users.c.name, users.c.email, users.c.role, users.c.credit_owner_id)


def _person(row: Row[str, str, str, str, str, str]) -> Person:
    return Person(*row)


def fence(connection: Connection, ids: Collection[str], *, to_change: bool = False) -> dict[str, Person]:
    """The people of `ids`, locked in id order until the transaction ends, so that no change of owner slips by.

    A charge takes a share of the lock, a change of owner the whole (`to_change`). Unknown ids are left out.
    """
    found = connection.execute(_fence(connection.dialect.name, to_change), {"ids": listed(connection, ids)})
    return {row.id: _person(row) for row in found}


@functools.cache
def _fence(dialect: str, to_change: bool) -> Executable:  # noqa: FBT001  one of the two
    people = select(*PERSON).where(among(dialect, users.c.id, "ids")).order_by(users.c.id)
    return people.with_for_update(read=not to_change)


def look_up(connection: Connection, user_id: str) -> Person:
    """One person, not locked.

    Raises
    ------
    Refused
        `unknown_user`.

    """
    row = connection.execute(select(*PERSON).where(users.c.id == user_id)).one_or_none()
    if row is None:
        raise unknown(user_id)
    return _person(row)


def unknown(user_id: str) -> Refused:
    """The refusal for somebody who was never saved."""
    return Refused(Reason.UNKNOWN_USER, f"There is no user {user_id}: save them with users.save first.")


def has_rights(connection: Connection, person: Person, *rights: Right, to_change: bool = False) -> bool:
    """Whether the person's role holds all of `rights`. Who acts on it (`to_change`) locks the role against changes."""
    query = select(*(roles.c[right] for right in rights)).where(
        roles.c.organization == person.organization, roles.c.role == person.role
    )
    return all(connection.execute(query.with_for_update(read=True) if to_change else query).one())


def save_role(connection: Connection, role: SaveRole) -> None:
    """Make a role, or set its rights anew."""
    rights = {"view_user_list": "view_user_list" in role.rights, "edit_user": "edit_user" in role.rights}
    connection.execute(
        insert(connection, roles)
        .values(organization=role.organization, role=role.role, **rights)
        .on_conflict_do_update(index_elements=[roles.c.organization, roles.c.role], set_=rights)
    )


def save_user(connection: Connection, user: SaveUser, now: datetime) -> None:
    """Make a user, their own credit owner, with an empty account of each kind; or change who they are.

    Billing information that is left out stays as it is.

    Raises
    ------
    Refused
        `not_found` for a role that was never saved, `other_organization` for a user of another organization.

    """
    _require_role(connection, user)
    known = {"name": user.name, "email": user.email, "role": user.role}
    if user.billing is not None:
        known["billing"] = user.billing  # type: ignore[assignment]
    made = connection.execute(
        insert(connection, users)
        .values(
            id=user.user_id,
            organization=user.organization,
            credit_owner_id=user.user_id,
            is_owner=True,
            created_at=now,
            **known,
        )
        .on_conflict_do_nothing()
        .returning(users.c.id)
    ).one_or_none()
    if made is not None:
        # Made with the user: a balance row that appears later would be neither seen nor locked by a race.
        connection.execute(
            insert(connection, accounts),
            [{"owner_id": user.user_id, "kind": kind, "available": 0, "seq": 0} for kind in KINDS],
        )
        return
    changed = connection.execute(
        update(users).where(users.c.id == user.user_id, users.c.organization == user.organization).values(**known)
    )
    if changed.rowcount == 0:
        sentence = f"User {user.user_id} belongs to another organization, and nobody can be moved between them."
        raise Refused(Reason.OTHER_ORGANIZATION, sentence)


def _require_role(connection: Connection, user: SaveUser) -> None:
    role = connection.execute(
        select(roles.c.role)
        .where(roles.c.organization == user.organization, roles.c.role == user.role)
        .with_for_update(read=True)
    ).one_or_none()
    if role is None:
        sentence = f"There is no role {user.role} in organization {user.organization}: save it with roles.save first."
        raise Refused(Reason.NOT_FOUND, sentence)
