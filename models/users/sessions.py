"""Who is signed in to the console, and the links that sign in somebody once.

Both are a secret token that the browser holds. The database has its digest only, so whoever reads the database, or a
backup of it, can sign in as nobody.
"""

import hashlib
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import Connection, Table, delete, select, update

from models.database.schema import console_sessions, credentials, organizations, roles, sign_in_links, users
from models.database.statements import insert, lock_overdue
from models.messages.billing import Right
from models.users.roles import RIGHTS
from models.users.users import User, get_user

TOKEN_BYTES = 32
SESSION_IDLE = timedelta(hours=2)
"""After which a session ends that is not used."""
SESSION_MAX = timedelta(hours=12)
"""After which every session ends."""
SEEN_EVERY = timedelta(minutes=1)
"""How often it is noted that a session is used."""
LINK_LIFE = timedelta(hours=1)
"""How long a link can be used."""


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A user who is signed in, in their organization, with the rights of their role."""

    user: User
    organization: str
    rights: frozenset[Right]
    token: str = field(repr=False)

    @property
    def form_token(self) -> str:
        """The secret that every form of this session carries. It tells nothing about the session's own."""
        return _digest(f"form:{self.token}")

    def holds(self, rights: Collection[Right]) -> bool:
        """Whether their role holds all of these rights."""
        return self.rights.issuperset(rights)


def begin_session(connection: Connection, user: User, now: datetime) -> str:
    """Sign in a user. Returns the token of the new session."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    connection.execute(
        insert(connection, console_sessions).values(
            token_hash=_digest(token),
            org_id=user.org_id,
            user_id=user.id,
            began_at=now,
            seen_at=now,
            expires_at=now + SESSION_IDLE,
        )
    )
    return token


def find_session(connection: Connection, token: str, now: datetime) -> tuple[SignedIn, bool] | None:
    """Return who holds a token, and whether it is time to note that it is used. None if it signs in nobody (any more).

    Role and rights are those of this moment, so a change of them counts at once.
    """
    row = connection.execute(
        select(console_sessions, organizations.c.name.label("organization"), *(roles.c[right] for right in RIGHTS))
        .join(users, users.c.id == console_sessions.c.user_id)
        .join(organizations, organizations.c.id == users.c.org_id)
        .join(roles, (roles.c.org_id == users.c.org_id) & (roles.c.role == users.c.role))
        .where(
            console_sessions.c.token_hash == _digest(token),
            console_sessions.c.expires_at > now,
            users.c.erased_at.is_(None),
        )
    ).one_or_none()
    if row is None:
        return None
    rights = frozenset(right for right in RIGHTS if row._mapping[right])  # noqa: SLF001  public
    user = get_user(connection, row.user_id)
    return SignedIn(user, row.organization, rights, token), now - row.seen_at >= SEEN_EVERY


def prolong_session(connection: Connection, token: str, now: datetime) -> None:
    """Note that a session is used, which keeps it from expiring, but not for ever."""
    this = console_sessions.c.token_hash == _digest(token)
    began_at = connection.execute(select(console_sessions.c.began_at).where(this)).scalar()
    if began_at is not None:
        expires_at = min(now + SESSION_IDLE, began_at + SESSION_MAX)
        connection.execute(
            update(console_sessions)
            .where(this, console_sessions.c.seen_at < now)
            .values(seen_at=now, expires_at=expires_at)
        )


def end_session(connection: Connection, token: str) -> None:
    """End a session, if there is one."""
    connection.execute(delete(console_sessions).where(console_sessions.c.token_hash == _digest(token)))


def end_sessions(connection: Connection, user: User) -> None:
    """End all sessions of a user, and make their links useless."""
    for table in (console_sessions, sign_in_links):
        connection.execute(delete(table).where(table.c.user_id == user.id))


def delete_sign_ins(connection: Connection, user: User) -> None:
    """Delete all by which a user can be, or become, signed in."""
    end_sessions(connection, user)
    connection.execute(delete(credentials).where(credentials.c.user_id == user.id))


def make_link(connection: Connection, user: User, now: datetime) -> str:
    """Return the token of a link that signs in a user, once."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    connection.execute(
        insert(connection, sign_in_links).values(
            token_hash=_digest(token), org_id=user.org_id, user_id=user.id, expires_at=now + LINK_LIFE
        )
    )
    return token


def find_link(connection: Connection, token: str, now: datetime) -> User | None:
    """Return whom a link would sign in, without using it up; None if it cannot be used (any more)."""
    user_id = connection.execute(
        select(sign_in_links.c.user_id)
        .join(users, users.c.id == sign_in_links.c.user_id)
        .where(
            sign_in_links.c.token_hash == _digest(token),
            sign_in_links.c.expires_at > now,
            users.c.erased_at.is_(None),
        )
    ).scalar()
    return None if user_id is None else get_user(connection, user_id)


def use_link(connection: Connection, token: str, now: datetime) -> User | None:
    """Use up a link, and return whom it signs in. Of two who use it at the same time, only one gets an answer."""
    user = find_link(connection, token, now)
    used = connection.execute(
        delete(sign_in_links).where(sign_in_links.c.token_hash == _digest(token)).returning(sign_in_links.c.token_hash)
    ).one_or_none()
    return None if used is None else user


def delete_expired_sessions(connection: Connection, now: datetime, limit: int) -> int:
    """Delete sessions and links that have expired, up to `limit` of each. Returns how many."""
    return sum(_delete_expired(connection, table, now, limit) for table in (console_sessions, sign_in_links))


def _delete_expired(connection: Connection, table: Table, now: datetime, limit: int) -> int:
    found = lock_overdue(connection, [table.c.token_hash], table.c.expires_at, now, limit)
    if found:
        connection.execute(delete(table).where(table.c.token_hash.in_([token_hash for (token_hash,) in found])))
    return len(found)


def _digest(token: str) -> str:
    """Return the digest of a token. A token is random and long, so no salt and no slow hash is needed."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
