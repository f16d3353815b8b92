"""Accounts by their keys: which one is whose."""

from typing import NamedTuple

from sqlalchemy import Connection, select

from models.database.schema import accounts


class AccountKey(NamedTuple):
    """The key of an account: its organization, and its number there."""

    org_id: int
    account_id: int


def accounts_of(connection: Connection, org_id: int, owner: str) -> dict[str, AccountKey]:
    """Return the keys of an owner's accounts by kind."""
    query = select(accounts.c.kind, accounts.c.id).where(accounts.c.org_id == org_id, accounts.c.owner_id == owner)
    return {row.kind: AccountKey(org_id, row.id) for row in connection.execute(query)}
