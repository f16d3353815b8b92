"""Roles: a name within an organization, and the rights that it holds."""

from typing import get_args

from sqlalchemy import Connection, select

from models.database.schema import roles
from models.database.statements import insert
from models.errors import Reason, Refused
from models.messages.billing import Right, SaveRole
from models.users.organizations import make_organization

RIGHTS: tuple[Right, ...] = get_args(Right)


def upsert_role(connection: Connection, role: SaveRole) -> None:
    """Make a role, and its organization if that is new, or replace the role's rights."""
    rights = {right: right in role.rights for right in RIGHTS}
    connection.execute(
        insert(connection, roles)
        .values(org_id=make_organization(connection, role.organization), role=role.role, **rights)
        .on_conflict_do_update(index_elements=[roles.c.org_id, roles.c.role], set_=rights)
    )


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
