"""Passwords of the console: which are accepted, and how they are kept."""

import unicodedata
from datetime import datetime

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import Connection, select

from models.database.schema import credentials
from models.database.statements import insert
from models.errors import PostageError
from models.users.users import User

LENGTH_MIN, LENGTH_MAX = 12, 256
"""Characters of a password. Length counts; no kinds of characters are asked for (NIST SP 800-63B-4, 3.1.1)."""


class PasswordError(PostageError):
    """A password cannot be taken. The message says why."""


class Passwords:
    """Hashes passwords with argon2id, and compares them. A hash takes a moment, and megabytes, on purpose."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher()  # RFC 9106, section 4, the second recommended option
        self._nobodys = self._hasher.hash("nobody's password")

    def hashed(self, password: str) -> str:
        """Return the hash of a new password.

        Raises
        ------
        PasswordError
            If it is too short or too long.

        """
        if not LENGTH_MIN <= len(password) <= LENGTH_MAX:
            msg = f"A password has {LENGTH_MIN} to {LENGTH_MAX} characters: choose another one."
            raise PasswordError(msg)
        return self._hasher.hash(_normalized(password))

    def fits(self, password: str, password_hash: str | None) -> bool:
        """Whether a hash is of this password. It takes as long if there is no hash."""
        if len(password) > LENGTH_MAX:
            return False
        try:
            self._hasher.verify(password_hash or self._nobodys, _normalized(password))
        except (VerificationError, InvalidHashError):
            return False
        return password_hash is not None


def _normalized(password: str) -> str:
    """Return the password as every keyboard types it: letters with accents can be written in two ways."""
    return unicodedata.normalize("NFKC", password).encode("utf-8", "replace").decode()


def store_password(connection: Connection, user: User, password_hash: str, now: datetime) -> None:
    """Let a user sign in with the password of this hash from now on, and with no other."""
    values = {"password_hash": password_hash, "changed_at": now}
    connection.execute(
        insert(connection, credentials)
        .values(org_id=user.org_id, user_id=user.id, **values)
        .on_conflict_do_update(index_elements=["org_id", "user_id"], set_=values)
    )


def find_password(connection: Connection, user: User) -> str | None:
    """Return the hash of a user's password, or None if they have none."""
    return connection.execute(
        select(credentials.c.password_hash).where(credentials.c.org_id == user.org_id, credentials.c.user_id == user.id)
    ).scalar()
