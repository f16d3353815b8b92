"""Users: who they are, in which organization, with which role, and whose credits they spend."""

import functools
import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ARRAY, BigInteger, ColumnElement, Connection, Executable, bindparam, exists, func, select, update

from models.database.json_rows import array_param, in_array
from models.database.schema import organizations, users
from models.database.statements import insert
from models.errors import Reason, Refused
from models.messages.base import Json
from models.messages.billing import Right, SaveUser
from models.users.changes import record_change, refuse_stale
from models.users.organizations import NOBODYS, find_organization
from models.users.roles import lock_role, role_holds, unknown_role


@dataclass(frozen=True, slots=True)
class User:
    """A user as the rules need them. `owner` is their credit owner, since the `owner_version`th change.

    One who `is_erased` keeps id and balance, and can do nothing any more.
    """

    id: str
    org_id: int
    name: str
    email: str
    role: str
    owner: str
    owner_version: int
    is_erased: bool

    @property
    def is_credit_user(self) -> bool:
        """Whether they spend somebody else's credits."""
        return self.owner != self.id


_COLUMNS = (users.c.id, users.c.org_id, users.c.name, users.c.email, users.c.role, users.c.credit_owner_id,
            users.c.owner_version, users.c.erased_at.is_not(None).label("is_erased"))  # fmt: skip

USER_LOCKS = 1024
"""Advisory locks that all users share: more would fill PostgreSQL's lock table (max_locks_per_transaction)."""


def take_user_locks(connection: Connection, ids: Collection[str], *, to_change: bool = False) -> None:
    """Keep others from changing the credit owners of users until the transaction ends.

    Charges and purchases share a user's lock, and a change of owner takes it alone (`to_change`), so every charge sees
    either the old owner or the new one. It queues in the order of arrival, so that a busy pool delays no change, and it
    writes nothing, unlike a shared lock on the user's row. What it guards must be read in a later statement.
    """
    if connection.dialect.name == "sqlite":  # has one writer at a time
        return
    slots = sorted({_lock_number(user_id) for user_id in ids})
    connection.execute(_take_advisory_locks(exclusive=to_change), {"slots": slots})


@functools.lru_cache(maxsize=100_000)
def _lock_number(user_id: str) -> int:
    """Return the number of a user's advisory lock. Those below zero are used for nothing else (migrations/__init__)."""
    digest = hashlib.blake2b(user_id.encode(), digest_size=4).digest()
    return -1 - int.from_bytes(digest, "big") % USER_LOCKS


@functools.cache
def _take_advisory_locks(*, exclusive: bool) -> Executable:
    take = func.pg_advisory_xact_lock if exclusive else func.pg_advisory_xact_lock_shared
    slot = func.unnest(bindparam("slots", type_=ARRAY(BigInteger))).column_valued("slot")
    return select(func.count(take(slot)))


def lock_users(connection: Connection, ids: Collection[str], *, to_change: bool = False) -> dict[str, User]:
    """Lock users as `take_user_locks` does, and return those that exist, by id."""
    take_user_locks(connection, ids, to_change=to_change)
    found = connection.execute(_select_users(connection.dialect.name), {"ids": array_param(connection, ids)})
    return {row.id: User(*row) for row in found}


@functools.cache
def _select_users(dialect: str) -> Executable:
    return select(*_COLUMNS).where(in_array(dialect, users.c.id, "ids"))


def get_user(connection: Connection, user_id: str) -> User:
    """Return one user, without a lock.

    Raises
    ------
    Refused
        `unknown_user`, also for a user who was erased.

    """
    row = connection.execute(select(*_COLUMNS).where(users.c.id == user_id)).one_or_none()
    if row is None:
        raise unknown_user(user_id)
    user = User(*row)
    if user.is_erased:
        raise erased_user(user_id)
    return user


def organization_of(user_id: ColumnElement[str]) -> ColumnElement[int]:
    """Return the subquery of a user's organization: nobody's, if the user was never saved."""
    known = select(users.c.org_id).where(users.c.id == user_id).scalar_subquery()
    return func.coalesce(known, NOBODYS)


def organizations_of(connection: Connection, ids: Collection[str]) -> dict[str, str]:
    """Return the names of the organizations of users, by user id, without a lock; of those who were saved."""
    rows = connection.execute(_select_organizations(connection.dialect.name), {"ids": array_param(connection, ids)})
    return {row.id: row.name for row in rows}


@functools.cache
def _select_organizations(dialect: str) -> Executable:
    joined = users.join(organizations, organizations.c.id == users.c.org_id)
    return select(users.c.id, organizations.c.name).select_from(joined).where(in_array(dialect, users.c.id, "ids"))


def is_erased(*user_ids: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether one of these is the id of a user who was erased."""
    return exists().where(users.c.id.in_(user_ids), users.c.erased_at.is_not(None))


def unknown_user(user_id: str) -> Refused:
    """Return the refusal for a user who was never saved."""
    return Refused(Reason.UNKNOWN_USER, f"There is no user {user_id}: save them with users.save first.")


def erased_user(user_id: str) -> Refused:
    """Return the refusal for a user who was erased."""
    return Refused(Reason.UNKNOWN_USER, f"User {user_id} was erased, and can do nothing any more.")


def find_user(connection: Connection, user_id: str) -> User | None:
    """Return one user, also one who was erased, without a lock; None for somebody who was never saved."""
    row = connection.execute(select(*_COLUMNS).where(users.c.id == user_id)).one_or_none()
    return None if row is None else User(*row)


def holds_rights(connection: Connection, actor: User, *rights: Right) -> bool:
    """Whether a user's role holds all of these rights."""
    return role_holds(connection, actor.org_id, actor.role, *rights)


def require_rights(connection: Connection, actor: User, *rights: Right, what: str) -> None:
    """Make sure that an actor may do `what`: their role holds all of these rights, and they were not erased.

    Raises
    ------
    Refused
        `unknown_user` for an actor who was erased, or `not_permitted`.

    """
    if actor.is_erased:
        raise erased_user(actor.id)
    if not role_holds(connection, actor.org_id, actor.role, *rights):
        needed = f"the right {rights[0]}" if len(rights) == 1 else f"both rights {' and '.join(rights)}"
        sentence = (
            f"The role {actor.role} of {actor.id} does not hold {needed}, which {what} needs: ask somebody whose role "
            "does."
        )
        raise Refused(Reason.NOT_PERMITTED, sentence)


def upsert_user(connection: Connection, user: SaveUser, now: datetime) -> int | None:
    """Make a user, their own credit owner, or change who they are. Returns a new user's organization, else None.

    Billing information that is left out stays as it is.

    Raises
    ------
    Refused
        `not_found` for a role that was never saved, `other_organization` for a user of another organization, `stale`
        for an older version than the one that stands, and for a user who was erased.

    """
    org_id = find_organization(connection, user.organization)
    if org_id is None:
        raise unknown_role(user.organization, user.role)
    lock_role(connection, org_id, user.organization, user.role)
    given: Json = {"name": user.name, "email": user.email, "role": user.role}
    given |= {
        name: value for name, value in (("billing", user.billing), ("version", user.version)) if value is not None
    }
    made = connection.execute(
        insert(connection, users)
        .values(
            id=user.user_id,
            org_id=org_id,
            credit_owner_id=user.user_id,
            is_owner=True,
            owner_version=0,
            created_at=now,
            **given,
        )
        .on_conflict_do_nothing()
        .returning(users.c.id)
    ).one_or_none()
    old = None if made is not None else _change_user(connection, org_id, user, given)
    new = {"role": user.role, "version": user.version if user.version is not None or old is None else old["version"]}
    record_change(connection, "user", user.user_id, org_id=org_id, actor=user.actor, old=old, new=new, now=now)
    return None if made is None else org_id


def _change_user(connection: Connection, org_id: int, user: SaveUser, given: Json) -> Json:
    """Change a user who is there. Returns the role and the version that stood before."""
    before = connection.execute(
        select(users.c.role, users.c.version, users.c.erased_at)
        .where(users.c.id == user.user_id, users.c.org_id == org_id)
        .with_for_update(key_share=True)
    ).one_or_none()
    if before is None:
        sentence = f"User {user.user_id} belongs to another organization, and nobody can be moved between them."
        raise Refused(Reason.OTHER_ORGANIZATION, sentence)
    if before.erased_at is not None:  # this save may be older, and would bring back what was erased
        sentence = f"User {user.user_id} was erased, which nothing undoes: save whoever comes back under another id."
        raise Refused(Reason.STALE, sentence)
    refuse_stale(f"User {user.user_id}", user.version, before.version)
    connection.execute(update(users).where(users.c.id == user.user_id).values(**given))
    return {"role": before.role, "version": before.version}
