"""Erasure: people are taken out of what is kept beside the money, when its time is over or when a user is erased.

What counts stays: who sent what, when, at what cost, and how it ended. A charge keeps as many refused recipients as it
had, under numbers instead of their addresses. Entries, orders and their chains of hashes name no recipient, and are
left alone. Each function that erases rows does so for at most `limit` of them, found by an index.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, Table, and_, case, delete, exists, func, or_, select, update

from models.database.json_rows import rows_from, rows_param
from models.database.schema import (
    attempts,
    charges,
    dead_letters,
    decisions,
    erasures,
    leases,
    postponed_jobs,
    refusals,
    users,
)
from models.database.statements import insert, is_among, lock_overdue, search_by_index
from models.errors import Reason, Refused
from models.messages.base import Json
from models.messages.billing import EraseUser
from models.sends.charges import KEY, State
from models.sends.due import is_waiting
from models.sends.leases import is_leased
from models.users.changes import record_change
from models.users.organizations import NOBODYS
from models.users.sessions import delete_sign_ins
from models.users.sharing import require_no_credit_users
from models.users.users import User, lock_users, require_rights, unknown_user

ERASED = "erased"
"""What stands for a carrier's words about a recipient."""
WORDS_ERASED = "What the carrier said was erased, because it may name people."
"""What stands for a carrier's words about a message."""


# -- charges ----------------------------------------------------------------------------------------------------------


def erase_recipients(
    connection: Connection, before: datetime, now: datetime, limit: int, *, of: User | None = None
) -> int:
    """Erase who was refused up to `before`, of one sender or of all, and what the carriers said. Returns how many rows.

    All these charges are final, since credits went back. For all senders, rows that others have locked are skipped:
    somebody is erasing them.
    """
    its_own = () if of is None else (charges.c.org_id == of.org_id, charges.c.sender == of.id)
    found = connection.execute(
        select(*KEY, charges.c.recipients_refused)
        .where(charges.c.refunded_at <= before, charges.c.erased_at.is_(None), *its_own)
        .order_by(charges.c.refunded_at, *KEY)
        .limit(limit)
        .with_for_update(skip_locked=of is None)
    ).all()
    rows = [{**row._mapping, "recipients_refused": numbered(row.recipients_refused)} for row in found]  # noqa: SLF001  public
    if not rows:
        return 0
    types = {name: charges.c[name].type for name in rows[0]}
    erased = rows_from(connection.dialect.name, types, "erased")
    # The detail of what failed is what the carrier said. That of what was sent is a sentence of ours.
    detail = case((charges.c.state == State.FAILED, WORDS_ERASED), else_=charges.c.detail)
    connection.execute(
        update(charges)
        .where(charges.c.org_id == erased.c.org_id, charges.c.job_id == erased.c.job_id)
        .values(recipients_refused=erased.c.recipients_refused, detail=detail, erased_at=now),
        rows_param(connection, rows, "erased"),
    )
    return len(rows)


def numbered(refused: Json | None) -> Json | None:
    """Return as many refused recipients as there were, without their addresses and what was said about them."""
    return {f"recipient-{number}": ERASED for number in range(1, len(refused) + 1)} if refused else None


# -- attempts ---------------------------------------------------------------------------------------------------------


def erase_words(connection: Connection, before: datetime, now: datetime, limit: int, *, of: User | None = None) -> int:
    """Erase what carriers said of attempts up to `before`, of one sender or of all. Returns of how many.

    That there was an attempt, at which carrier, and how it ended, stays. For all senders, rows that others have locked
    are skipped, as above.
    """
    key = (attempts.c.org_id, attempts.c.id)
    its_own = () if of is None else (attempts.c.org_id == of.org_id, attempts.c.sender == of.id)
    found = connection.execute(
        select(*key)
        .where(attempts.c.at <= before, attempts.c.detail.is_not(None), attempts.c.erased_at.is_(None), *its_own)
        .order_by(attempts.c.at, *key)
        .limit(limit)
        .with_for_update(skip_locked=of is None)
    ).all()
    if found:
        keys = [(row.org_id, row.id) for row in found]
        connection.execute(update(attempts).where(is_among(key, keys)).values(detail=WORDS_ERASED, erased_at=now))
    return len(found)


# -- refusals and dead letters ----------------------------------------------------------------------------------------


def erase_refusals(connection: Connection, before: datetime, limit: int) -> int:
    """Delete the refusals up to `before`. Returns how many."""
    return _delete_overdue(connection, refusals, before, limit)


def erase_letters(connection: Connection, before: datetime, limit: int) -> int:
    """Delete the dead letters up to `before`. Returns how many."""
    return _delete_overdue(connection, dead_letters, before, limit)


def _delete_overdue(connection: Connection, table: Table, before: datetime, limit: int) -> int:
    found = lock_overdue(connection, [table.c.id], table.c.at, before, limit)
    return _delete(connection, table, [row_id for (row_id,) in found])


def erase_refusals_of(connection: Connection, user: User, limit: int) -> int:
    """Delete the refusals of what a user asked, and of saves of this user. Returns how many."""
    return _delete_about(connection, refusals, user, limit)


def erase_letters_of(connection: Connection, user: User, limit: int) -> int:
    """Delete the dead letters of a user's jobs, and of saves of this user. Returns how many."""
    return _delete_about(connection, dead_letters, user, limit)


def _delete_about(connection: Connection, table: Table, user: User, limit: int) -> int:
    # Of saves, only those of the user's organization: another one may have used the id by mistake.
    in_reach = table.c.org_id.in_([user.org_id, NOBODYS])
    saves_user = and_(table.c.key == user.id, table.c.task == "users.save", in_reach)
    about = select(table.c.id).where((table.c.person == user.id) | saves_user)
    return _delete(connection, table, connection.execute(about.limit(limit)).scalars().all())


def _delete(connection: Connection, table: Table, ids: Sequence[int]) -> int:
    if ids:
        connection.execute(delete(table).where(table.c.id.in_(ids)))
    return len(ids)


# -- users ------------------------------------------------------------------------------------------------------------


def erase_user(connection: Connection, erasure: EraseUser, now: datetime) -> User:
    """Erase who a user is: name, address and billing information. Returns the user, of whom more is to be erased.

    Notes about their messages go too, and so does all by which they could sign in. Id, balance and orders stay, and
    nobody can be saved under the id again. An erasure that was made before is not made again. As in a change of owner,
    the actor's rights come before anything else is looked up. A stranger of another organization is as unknown as
    somebody who was never saved.

    Raises
    ------
    Refused
        `conflicting_job`, `unknown_user`, `not_permitted`, `user_has_credit_users` or `user_has_open_messages`.

    """
    named = lock_users(connection, {erasure.actor, erasure.user}, to_change=True)
    actor = named.get(erasure.actor)
    if actor is None:
        raise unknown_user(erasure.actor)
    earlier = _digest_before(connection, actor, erasure)
    if earlier is not None and erasure.has_digest(earlier):
        return named[erasure.user]
    require_rights(connection, actor, "edit_user", what="erasing a user")
    if earlier is not None:
        sentence = f"The erasure_id {erasure.erasure_id} was used for another erasure: give this one an id of its own."
        raise Refused(Reason.CONFLICTING_JOB, sentence)
    user = named.get(erasure.user)
    if user is None or user.org_id != actor.org_id:
        raise unknown_user(erasure.user)
    require_no_credit_users(connection, user)
    _require_no_open_messages(connection, user)
    _erase_user(connection, user, now)
    connection.execute(
        insert(connection, erasures).values(
            org_id=actor.org_id,
            erasure_id=erasure.erasure_id,
            digest=erasure.digest(),
            actor_id=actor.id,
            user_id=user.id,
            at=now,
        )
    )
    new = {"erasure_id": erasure.erasure_id}
    record_change(connection, "erasure", user.id, org_id=user.org_id, actor=actor.id, old=None, new=new, now=now)
    return user


def _digest_before(connection: Connection, actor: User, erasure: EraseUser) -> str | None:
    """Return the digest of the erasure that was made under this id in the actor's organization."""
    its_own = (erasures.c.org_id == actor.org_id) & (erasures.c.erasure_id == erasure.erasure_id)
    return connection.execute(select(erasures.c.digest).where(its_own)).scalar()


def _require_no_open_messages(connection: Connection, user: User) -> None:
    """Make sure that nothing is owed to the user's recipients. No new message can be charged: the user is locked."""
    search_by_index(connection)
    is_open = or_(
        *(exists().where(condition, charges.c.org_id == user.org_id, charges.c.sender == user.id) for condition in (
            *is_waiting(), is_leased(leases.c.org_id == user.org_id), charges.c.unknown_since.is_not(None)
        ))
    )  # fmt: skip
    is_postponed = exists().where(postponed_jobs.c.person == user.id)
    if connection.execute(select(or_(is_open, is_postponed))).scalar_one():
        sentence = (
            f"Messages of {user.id} are waiting, being sent, or unknown: wait until they have ended, and decide about "
            "the unknown ones (`postage unknown`), then send this erasure again."
        )
        raise Refused(Reason.USER_HAS_OPEN_MESSAGES, sentence)


def _erase_user(connection: Connection, user: User, now: datetime) -> None:
    delete_sign_ins(connection, user)
    connection.execute(
        update(users)
        .where(users.c.id == user.id)
        .values(name="", email="", billing=None, erased_at=func.coalesce(users.c.erased_at, now))
    )
    its_job = and_(charges.c.org_id == decisions.c.org_id, charges.c.job_id == decisions.c.job_id)
    connection.execute(
        update(decisions)
        .where(
            decisions.c.org_id == user.org_id,
            decisions.c.note.is_not(None),
            exists().where(its_job, charges.c.sender == user.id),
        )
        .values(note=None)
    )
