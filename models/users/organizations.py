"""Organizations: the number that stands for each in every key."""

from sqlalchemy import Connection, select

from models.database.schema import organizations
from models.database.statements import insert

NOBODYS = 0
"""The number under which is kept what a user asked for who was never saved, and what belongs to no organization."""


def find_organization(connection: Connection, name: str) -> int | None:
    """Return the number of an organization, or None if nothing was ever saved in it."""
    return connection.execute(select(organizations.c.id).where(organizations.c.name == name)).scalar()


def make_organization(connection: Connection, name: str) -> int:
    """Return the number of an organization, which is made if it is new."""
    found = find_organization(connection, name)
    if found is not None:
        return found
    connection.execute(insert(connection, organizations).values(name=name, accounts=0).on_conflict_do_nothing())
    # In a statement of its own: another transaction may have made it meanwhile.
    made: int = connection.execute(select(organizations.c.id).where(organizations.c.name == name)).scalar_one()
    return made


def organization_names(connection: Connection) -> dict[int, str]:
    """Return the names of all organizations by their numbers."""
    return {row.id: row.name for row in connection.execute(select(organizations.c.id, organizations.c.name))}
