"""Roles: a name within an organization, and the rights that it holds."""

from sqlalchemy import Connection, select

from models.database.schema import roles
from models.database.statements import insert
from models.errors import Reason, Refused
from models.messages.billing import Right, SaveRole


def upsert_role(connection: Connection, role: SaveRole) -> None:
    """Make a role, or replace its rights."""
    rights = {"view_user_list": "view_user_list" in role.rights, "edit_user": "edit_user" in role.rights}
    connection.execute(
        insert(connection, roles)
        .values(organization=role.organization, role=role.role, **rights)
        .on_conflict_do_update(index_elements=[roles.c.organization, roles.c.role], set_=rights)
    )


def lock_role(connection: Connection, organization: str, role: str) -> None:
    """Lock a role, shared, against changes until the transaction ends.

    Raises
    ------
    Refused
        `not_found` for a role that was never saved.

    """
    found = connection.execute(
        select(roles.c.role)
        .where(roles.c.organization == organization, roles.c.role == role)
        .with_for_update(read=True)
    ).one_or_none()
    if found is None:
        sentence = f"There is no role {role} in organization {organization}: save it with roles.save first."
        raise Refused(Reason.NOT_FOUND, sentence)


def role_holds(connection: Connection, organization: str, role: str, *rights: Right) -> bool:
    """Whether a role that was saved holds all of `rights`."""
    query = select(*(roles.c[right] for right in rights)).where(
        roles.c.organization == organization, roles.c.role == role
    )
    return all(connection.execute(query).one())
