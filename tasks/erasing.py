"""`users.erase`, and what the sweep erases when its time is over: whatever names people beside the money."""

from collections.abc import Callable

from celery import shared_task
from sqlalchemy import Connection

from models.messages.base import Json
from models.messages.billing import EraseUser
from models.sends.dead_letters import erase_letters
from models.sends.erasure import (
    erase_letters_of,
    erase_recipients,
    erase_recipients_of,
    erase_refusals,
    erase_refusals_of,
    erase_user,
)
from tasks.base import PostageTask
from tasks.context import Context

ERASE_BATCH = 500
"""Rows of each table that are erased in one transaction."""


def erase_overdue(context: Context) -> int:
    """Erase what names people and whose time is over, one batch of each kind. Returns how many rows and items."""
    now = context.now()
    letters_before = now - min(context.keep_dead, context.keep_personal)
    before = now - context.keep_personal
    erased = context.database.write(
        lambda connection: (
            erase_letters(connection, letters_before, ERASE_BATCH)
            + erase_refusals(connection, before, ERASE_BATCH)
            + erase_recipients(connection, before, now, ERASE_BATCH)
        )
    )
    return erased + context.quarantine.erase_before(before)


def erase(context: Context, erasure: EraseUser) -> Json:
    """Erase a user, and then, batch by batch, what names them or those they wrote to.

    If that is interrupted, the same erasure sent again goes on where it ended. Credits, orders and usage stay.
    """
    user = context.database.write(lambda connection: erase_user(connection, erasure, context.now()))
    _repeat(context, lambda connection: erase_letters_of(connection, user, ERASE_BATCH))
    _repeat(context, lambda connection: erase_refusals_of(connection, user, ERASE_BATCH))
    _repeat(context, lambda connection: erase_recipients_of(connection, user, context.now(), ERASE_BATCH))
    context.quarantine.erase_of(user.id)
    return {
        "erasure_id": erasure.erasure_id,
        "status": "done",
        "reason": None,
        "detail": None,
        "user": user.id,
    }


def _repeat(context: Context, erase_batch: Callable[[Connection], int]) -> None:
    while context.database.write(erase_batch) == ERASE_BATCH:
        pass


@shared_task(name="users.erase", base=PostageTask)
def users_erase(context: Context, message: EraseUser) -> Json:
    """The erasing of a user."""
    return erase(context, message)
