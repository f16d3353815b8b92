"""Signing in to the console, and out of it. These are no tasks: whoever waits for an answer has no session yet."""

import math
import threading

from sqlalchemy import Connection

from models.errors import PostageError, Refused
from models.users.passwords import Passwords, find_password, store_password
from models.users.sessions import (
    SignedIn,
    begin_session,
    end_session,
    end_sessions,
    find_link,
    find_session,
    make_link,
    prolong_session,
    use_link,
)
from models.users.throttling import count_attempt, forgive_attempt
from models.users.users import User, get_user
from tasks.context import Context

HASHES_AT_A_TIME = threading.BoundedSemaphore(2)
"""Each takes 64 MiB and a core for a moment: a crowd that signs in waits, and takes no more than this."""
WRONG = "User and password do not belong together: check both, and try again."


class SignInRefusedError(PostageError):
    """Somebody was not signed in. The message says what to do, and never whether there is such a user."""


class TooManyAttemptsError(SignInRefusedError):
    """Too many sign-ins have failed. `wait_s` is after how many seconds the next one is looked at."""

    def __init__(self, wait_s: float) -> None:
        self.wait_s = math.ceil(wait_s)
        seconds = "a second" if self.wait_s == 1 else f"{self.wait_s} seconds"
        super().__init__(f"Too many sign-ins have failed: try again in {seconds}.")


def sign_in(context: Context, passwords: Passwords, user_id: str, password: str, address: str) -> str:
    """Sign in a user who comes from an address. Returns the token of their session.

    Raises
    ------
    SignInRefusedError
        If the password is not theirs, or too many attempts have failed.

    """
    stored = _require_password(context, passwords, user_id, password, address)

    def begin(connection: Connection) -> str:
        if _stored_password(connection, user_id) != stored:  # it was changed meanwhile
            raise SignInRefusedError(WRONG)
        forgive_attempt(connection, user_id, address)
        return begin_session(connection, get_user(connection, user_id), context.now(connection))

    return context.database.write(begin)


def _require_password(context: Context, passwords: Passwords, user_id: str, password: str, address: str) -> str | None:
    """Make sure that a password is the user's; returns its hash. No transaction is open while it is hashed."""
    wait_s = context.database.write(
        lambda connection: count_attempt(connection, user_id, address, context.now(connection))
    )
    if wait_s > 0:
        raise TooManyAttemptsError(wait_s)
    stored = context.database.read(lambda connection: _stored_password(connection, user_id))
    with HASHES_AT_A_TIME:
        fits = passwords.fits(password, stored)
    if not fits:
        raise SignInRefusedError(WRONG)
    return stored


def _stored_password(connection: Connection, user_id: str) -> str | None:
    try:
        return find_password(connection, get_user(connection, user_id))
    except Refused:  # nobody, or somebody who was erased
        return None


def link_for(context: Context, user_id: str) -> str:
    """Return the token of a link that signs in a user once, without a password.

    Raises
    ------
    Refused
        `unknown_user`.

    """
    return context.database.write(
        lambda connection: make_link(connection, get_user(connection, user_id), context.now(connection))
    )


def whom_link_signs_in(context: Context, token: str) -> User | None:
    """Return whom a link would sign in; None if it was used, or has expired."""
    return context.database.read(lambda connection: find_link(connection, token, context.now(connection)))


def sign_in_by_link(context: Context, token: str) -> str:
    """Use up a link. Returns the token of the session that it begins.

    Raises
    ------
    SignInRefusedError
        If it was used, or has expired.

    """

    def use(connection: Connection) -> str:
        now = context.now(connection)
        user = use_link(connection, token, now)
        if user is None:
            raise SignInRefusedError("This link was used already, or has expired: ask for a new one.")
        return begin_session(connection, user, now)

    return context.database.write(use)


def who_is_signed_in(context: Context, token: str) -> SignedIn | None:
    """Return who holds the token of a session, and note that they are there."""
    found = context.database.read(lambda connection: find_session(connection, token, context.now(connection)))
    if found is None:
        return None
    signed_in, is_to_be_noted = found
    if is_to_be_noted:
        context.database.write(lambda connection: prolong_session(connection, token, context.now(connection)))
    return signed_in


def sign_out(context: Context, token: str) -> None:
    """End a session."""
    context.database.write(lambda connection: end_session(connection, token))


def change_password(
    context: Context, passwords: Passwords, signed_in: SignedIn, *, old: str, new: str, address: str
) -> str:
    """Change the password of somebody who is signed in and knows it. Ends all their sessions, and begins a new one.

    Raises
    ------
    SignInRefusedError
        If the old password is not theirs, or too many attempts have failed.
    PasswordError
        If the new one cannot be taken.

    """
    user = signed_in.user
    _require_password(context, passwords, user.id, old, address)
    with HASHES_AT_A_TIME:
        new_hash = passwords.hashed(new)

    def change(connection: Connection) -> str:
        forgive_attempt(connection, user.id, address)
        return _begin_afresh(context, connection, user.id, new_hash)

    return context.database.write(change)


def _begin_afresh(context: Context, connection: Connection, user_id: str, password_hash: str) -> str:
    user, now = get_user(connection, user_id), context.now(connection)
    end_sessions(connection, user)
    store_password(connection, user, password_hash, now)
    return begin_session(connection, user, now)


def set_password(context: Context, passwords: Passwords, user_id: str, password: str) -> User:
    """Give a user a password, and end all their sessions. Returns the user.

    Raises
    ------
    Refused
        `unknown_user`.
    PasswordError
        If it cannot be taken.

    """
    context.database.read(lambda connection: get_user(connection, user_id))
    new_hash = passwords.hashed(password)

    def store(connection: Connection) -> User:
        user = get_user(connection, user_id)
        end_sessions(connection, user)
        store_password(connection, user, new_hash, context.now(connection))
        return user

    return context.database.write(store)
