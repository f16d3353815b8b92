"""Roles: a name within an organization, and the rights that it holds."""

from datetime import datetime
from typing import get_args

from sqlalchemy import Connection, func, select

from models.database.schema import roles, users
from models.errors import Reason, Refused
from models.messages.base import Json
from models.messages.billing import Right, SaveRole
from models.users.changes import record_change, save_row
from models.users.organizations import make_organization

RIGHTS: tuple[Right, ...] = get_args(Right)


def upsert_role(connection: Connection, role: SaveRole, now: datetime) -> None:
    """Make a role, and its organization if that is new, or replace the role's rights.

    Raises
    ------
    Refused
        `stale` for an older version than the one that stands.

    """
    org_id = make_organization(connection, role.organization)
    rights: Json = {right: right in role.rights for right in RIGHTS}
    key = {"org_id": org_id, "role": role.role}
    before, after = save_row(connection, roles, key, rights, what=f"Role {role.role}", version=role.version)
    old, new = before and _as_changed(before), _as_changed(after)
    record_change(connection, "role", role.role, org_id=org_id, actor=role.actor, old=old, new=new, now=now)


def _as_changed(role: Json) -> Json:
    return {"rights": [right for right in RIGHTS if role[right]], "version": role["version"]}


def roles_of(connection: Connection, org_id: int) -> list[Json]:
    """Return the roles of an organization by name: the rights that each holds, and how many users have it."""
    have_it = (users.c.org_id == roles.c.org_id) & (users.c.role == roles.c.role) & users.c.erased_at.is_(None)
    members = select(func.count()).select_from(users).where(have_it).scalar_subquery().label("members")
    found = connection.execute(select(roles, members).where(roles.c.org_id == org_id).order_by(roles.c.role))
    return [
        {"role": row.role, "rights": [right for right in RIGHTS if row._mapping[right]], "users": row.members}  # noqa: SLF001  public
        for row in found
    ]


def lock_role(connection: Connection, org_id: int, organization: str, role: str) -> None:
    """Lock a role, shared, against changes until the transaction ends.

    Raises
    ------
    Refused
        `not_found` for a role that was never saved.

    """
    found = connection.execute(
        select(roles.c.role).where(roles.c.org_id == org_id, roles.c.role == role).with_for_update(read=True)
    ).one_or_none()
    if found is None:
        raise unknown_role(organization, role)


def unknown_role(organization: str, role: str) -> Refused:
    """Return the refusal for a role that was never saved."""
    sentence = f"There is no role {role} in organization {organization}: save it with roles.save first."
    return Refused(Reason.NOT_FOUND, sentence)


def role_holds(connection: Connection, org_id: int, role: str, *rights: Right) -> bool:
    """Whether a role that was saved holds all of `rights`."""
    query = select(*(roles.c[right] for right in rights)).where(roles.c.org_id == org_id, roles.c.role == role)
    return all(connection.execute(query).one())
