"""`users.erase`, and what the sweep erases when its time is over: whatever names people beside the money."""

from collections.abc import Callable
from datetime import datetime

from celery import shared_task
from sqlalchemy import Connection

from models.messages.base import Json
from models.messages.billing import EraseUser
from models.sends.erasure import (
    erase_letters,
    erase_letters_of,
    erase_recipients,
    erase_refusals,
    erase_refusals_of,
    erase_user,
    erase_words,
)
from models.users.sessions import delete_expired_sessions
from models.users.throttling import delete_old_failures
from tasks.base import PostageTask
from tasks.context import Context

ERASE_BATCH = 500
"""Rows of each table, or items, that are erased in one step."""


def erase_overdue(context: Context) -> int:
    """Erase what names people and whose time is over, one batch of each kind. Returns how many rows and items."""

    def erase_rows(connection: Connection) -> tuple[int, datetime]:
        now = context.now(connection)
        before = now - context.keep_personal
        erased = erase_letters(connection, now - context.keep_letters, ERASE_BATCH)
        erased += erase_refusals(connection, before, ERASE_BATCH)
        erased += erase_words(connection, before, now, ERASE_BATCH)
        erased += delete_expired_sessions(connection, now, ERASE_BATCH)
        erased += delete_old_failures(connection, now, ERASE_BATCH)
        return erased + erase_recipients(connection, before, now, ERASE_BATCH), before

    erased, before = context.database.write(erase_rows)
    return erased + context.quarantine.erase_before(before, ERASE_BATCH)


def erase(context: Context, erasure: EraseUser) -> Json:
    """Erase a user, and then, batch by batch, what names them or those they wrote to.

    If that is interrupted, the same erasure sent again goes on where it ended. Credits, orders and usage stay.
    """
    user = context.database.write(lambda connection: erase_user(connection, erasure, context.now(connection)))

    def erase_some_recipients(connection: Connection) -> int:
        now = context.now(connection)
        return erase_recipients(connection, now, now, ERASE_BATCH, of=user)

    def erase_some_words(connection: Connection) -> int:
        now = context.now(connection)
        return erase_words(connection, now, now, ERASE_BATCH, of=user)

    _repeat(context, lambda connection: erase_letters_of(connection, user, ERASE_BATCH))
    _repeat(context, lambda connection: erase_refusals_of(connection, user, ERASE_BATCH))
    _repeat(context, erase_some_recipients)
    _repeat(context, erase_some_words)
    context.quarantine.erase_of(user.id)
    context.organizations.forget(user.id)
    return {"erasure_id": erasure.erasure_id, "status": "done", "reason": None, "detail": None, "user": user.id}


def _repeat(context: Context, erase_batch: Callable[[Connection], int]) -> None:
    while context.database.write(erase_batch) == ERASE_BATCH:
        pass


@shared_task(name="users.erase", base=PostageTask)
def users_erase(context: Context, message: EraseUser) -> Json:
    """The erasing of a user."""
    return erase(context, message)
