"""Cancelling: send jobs that wait are refused, or get their credits back, in the caller's transaction.

What may have reached a carrier is left alone, also if it waits for another attempt: nobody can say that it was not
delivered. A cancellation goes on in steps, and its row says how far it got, so that it can be interrupted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, or_, select, update

from models.database.schema import cancellations, charges, decisions, leases, postponed_jobs
from models.database.statements import insert, is_among, search_by_index
from models.errors import Reason, Refused
from models.ids import new_id
from models.messages.billing import CancelMessages
from models.sends.charges import KEY, Charge, JobKey, SendJob, State, find_charges, find_everywhere
from models.sends.charging import refuse_jobs
from models.sends.due import is_waiting
from models.sends.leases import is_leased
from models.sends.outcomes import Settlement, settlement_of_cancellation
from models.sends.settling import settle
from models.users.organizations import NOBODYS
from models.users.users import find_user, get_user, holds_rights, require_rights, unknown_user


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancellation:
    """A cancellation as it stands: what it covers, and what it has done so far.

    It covers the jobs of one organization: with `job_id` that one and its messages, with `sender` those of one user.
    """

    org_id: int
    cancel_id: str
    actor: str
    job_id: str | None
    sender: str | None
    cancelled: int
    credits: int
    too_late: int
    is_done: bool

    @property
    def refusal(self) -> Refused:
        """Why the jobs are refused."""
        return Refused(Reason.CANCELLED, _words(self.actor, self.cancel_id))


def _words(actor: str, cancel_id: str) -> str:
    return f"{actor} cancelled it ({cancel_id}) before it was handed to a carrier."


# -- the cancellation itself ------------------------------------------------------------------------------------------


def begin_cancellation(connection: Connection, message: CancelMessages, now: datetime) -> Cancellation:
    """Store that a user cancels jobs: their own, or any of their organization if their role holds `edit_user`.

    Jobs of others are to somebody without that right as if they did not exist. One that was begun before is returned
    as it stands.

    Raises
    ------
    Refused
        `conflicting_job`, `unknown_user` or `not_permitted`.

    """
    actor = get_user(connection, message.actor)
    sender = message.sender
    if sender is not None and sender != actor.id:
        require_rights(connection, actor, "edit_user", what="cancelling the messages of others")
        user = find_user(connection, sender)
        if user is None or user.org_id != actor.org_id:
            raise unknown_user(sender)
    elif not holds_rights(connection, actor, "edit_user"):
        sender = actor.id
    return _begin(connection, message, actor.org_id, sender, now)


def begin_as_operator(connection: Connection, message: CancelMessages, org_id: int, now: datetime) -> Cancellation:
    """Store that an operator, who needs no right, cancels jobs of an organization.

    Raises
    ------
    Refused
        `conflicting_job`.

    """
    return _begin(connection, message, org_id, message.sender, now)


def _begin(
    connection: Connection, message: CancelMessages, org_id: int, sender: str | None, now: datetime
) -> Cancellation:
    key = {"org_id": org_id, "cancel_id": message.cancel_id}
    covered = {"job_id": message.job_id, "sender": message.sender}
    connection.execute(
        insert(connection, cancellations)
        .values(**key, **covered, digest=message.digest(), actor=message.actor, cancelled=0, credits=0, too_late=0,
                at=now)
        .on_conflict_do_nothing()
    )  # fmt: skip
    its_own = [cancellations.c[name] == value for name, value in key.items()]
    row = connection.execute(select(cancellations).where(*its_own)).one()
    if not message.has_digest(row.digest):
        sentence = f"The cancel_id {message.cancel_id} was used for another cancellation: give this one its own."
        raise Refused(Reason.CONFLICTING_JOB, sentence)
    return Cancellation(
        org_id=org_id, cancel_id=row.cancel_id, actor=row.actor, job_id=row.job_id, sender=sender,
        cancelled=row.cancelled, credits=row.credits, too_late=row.too_late, is_done=row.done_at is not None,
    )  # fmt: skip


def finish_cancellation(connection: Connection, cancellation: Cancellation, now: datetime) -> bool:
    """Count what it was too late for, and store that the cancellation is done.

    Returns whether there was anything to cancel. One of a job that nobody has found is not stored, so that it may come
    again.
    """
    its_own = _its_row(cancellation)
    row = connection.execute(select(cancellations).where(its_own).with_for_update()).one_or_none()
    if row is None or row.done_at is not None:  # another worker was given the same cancellation, and is done
        return row is not None
    too_late = _count_too_late(connection, cancellation)
    if cancellation.job_id is not None and not row.cancelled + row.too_late + too_late:
        connection.execute(delete(cancellations).where(its_own))
        return False
    _count(connection, cancellation, too_late=too_late)
    connection.execute(update(cancellations).where(its_own).values(done_at=now))
    return True


def _its_row(cancellation: Cancellation) -> ColumnElement[bool]:
    return and_(cancellations.c.org_id == cancellation.org_id, cancellations.c.cancel_id == cancellation.cancel_id)


def _count(connection: Connection, cancellation: Cancellation, **more: int) -> None:
    """Add to what the cancellation has done."""
    counts = {name: cancellations.c[name] + count for name, count in more.items()}
    connection.execute(update(cancellations).where(_its_row(cancellation)).values(counts))


# -- jobs that were not charged yet -----------------------------------------------------------------------------------


def cancel_uncharged(
    connection: Connection, cancellation: Cancellation, jobs: Sequence[tuple[SendJob, int]], now: datetime
) -> None:
    """Refuse jobs of one task that were not charged yet, each with the number of its messages.

    Whoever is first counts: a job that a worker charges meanwhile is left alone, and one that is refused here is
    answered so by the worker that takes it.
    """
    messages_of = {(job.sender, job.job_id): messages for job, messages in jobs}
    refused = refuse_jobs(connection, [job for job, _ in jobs], org_id=cancellation.org_id, now=now)
    cancelled = sum(messages_of[job.sender, job.job_id] for job in refused)
    if cancelled:
        _count(connection, cancellation, cancelled=cancelled)


# -- jobs that wait for an attempt ------------------------------------------------------------------------------------


def cancel_waiting(
    connection: Connection, cancellation: Cancellation, now: datetime, limit: int
) -> Sequence[Settlement]:
    """End jobs that wait for an attempt and were never in doubt; their credits go back. Returns how each has ended.

    Of an email that has reached some of its recipients, only the credits of the others go back, and it ends as sent.
    """
    lease_id = new_id()  # a write of an earlier attempt is ignored from here on
    keys = _lock_waiting(connection, cancellation, limit)
    if not keys:
        return ()
    connection.execute(update(charges).where(is_among(KEY, keys)).values(lease_id=lease_id))
    waiting = find_charges(connection, keys).values()
    words = cancellation.refusal.detail
    settlements = [settlement_of_cancellation(charge, words) for charge in waiting]
    settle(connection, settlements, now, keep_dead=False, state_before=State.WAITING)
    cancelled = sum(one.state is State.FAILED for one in settlements)
    _count(connection, cancellation, cancelled=cancelled, credits=sum(one.refund for one in settlements))
    if cancellation.job_id is None:  # those of one job are counted at the end
        _count(connection, cancellation, too_late=len(settlements) - cancelled)
    return settlements


def _lock_waiting(connection: Connection, cancellation: Cancellation, limit: int) -> list[JobKey]:
    """Lock jobs that may be cancelled, in the order of their keys, until the transaction ends."""
    search_by_index(connection)
    was_resent = exists().where(decisions.c.org_id == charges.c.org_id, decisions.c.job_id == charges.c.job_id)
    never_in_doubt = charges.c.handover_started_at.is_(None) & ~was_resent
    for waits in is_waiting():
        query = select(*KEY).where(charges.c.state == State.WAITING, waits, never_in_doubt, *_covered(cancellation))
        found = connection.execute(query.order_by(*KEY).limit(limit).with_for_update(of=charges)).all()
        if found:
            return [JobKey(*row) for row in found]
    return []


def _covered(cancellation: Cancellation) -> list[ColumnElement[bool]]:
    """Return the conditions for the charges that a cancellation covers."""
    conditions = [charges.c.org_id == cancellation.org_id]
    if cancellation.sender is not None:
        conditions.append(charges.c.sender == cancellation.sender)
    if cancellation.job_id is not None:
        conditions.append(or_(charges.c.job_id == cancellation.job_id, charges.c.bulk_id == cancellation.job_id))
    return conditions


def _count_too_late(connection: Connection, cancellation: Cancellation) -> int:
    """Count the messages that could not be cancelled: of a job, all that are not; of a sender, those that are open."""
    search_by_index(connection)
    count = select(func.count()).select_from(charges).where(*_covered(cancellation))
    if cancellation.job_id is not None:
        was_refused = or_(charges.c.state.in_([State.REFUSED, State.BULK]), charges.c.reason == Reason.CANCELLED)
        return int(connection.execute(count.where(func.coalesce(~was_refused, True))).scalar_one())
    still_open = (*is_waiting(), is_leased(leases.c.org_id == cancellation.org_id))
    return sum(int(connection.execute(count.where(condition)).scalar_one()) for condition in still_open)


def is_charged(connection: Connection, cancellation: Cancellation) -> bool:
    """Whether the one job of a cancellation was charged or refused before, so that no queue has to be searched."""
    if cancellation.job_id is None:
        return False
    its_own = (charges.c.org_id == cancellation.org_id, charges.c.job_id == cancellation.job_id)
    return bool(connection.execute(select(exists().where(*its_own))).scalar_one())


def organizations_with(connection: Connection, job_id: str) -> set[int]:
    """Return the organizations that have a job of this id, charged or postponed."""
    charged = {key.org_id for key in find_everywhere(connection, [job_id])}
    postponed = connection.execute(select(postponed_jobs.c.org_id).where(postponed_jobs.c.key == job_id)).scalars()
    return {*charged, *postponed} - {NOBODYS}


# -- who cancelled a job ----------------------------------------------------------------------------------------------


class Cancelled(NamedTuple):
    """Who cancelled a job, and under which id."""

    actor: str
    cancel_id: str


def find_cancelled(connection: Connection, charge: Charge) -> Cancelled | None:
    """Return who cancelled a job, if somebody did: the cancellation whose words it has.

    Once these are erased, it is the only one that can have been meant. A bulk job that was charged has none.
    """
    said = {charge.detail, *(charge.recipients_refused or {}).values()}
    is_cancelled = charge.reason == Reason.CANCELLED
    if not is_cancelled and not (charge.state is State.SENT and charge.recipients_refused):
        return None
    covers = cancellations.c.job_id.in_([charge.job_id, charge.bulk_id]) | (cancellations.c.sender == charge.sender)
    found = connection.execute(
        select(cancellations.c.actor, cancellations.c.cancel_id)
        .where(cancellations.c.org_id == charge.org_id, covers, cancellations.c.at <= charge.final_at)
        .order_by(cancellations.c.at)
    )
    candidates = [Cancelled(*row) for row in found]
    named = [one for one in candidates if _words(*one) in said]
    if named or not is_cancelled or charge.payer is None or len(candidates) != 1:
        return named[0] if named else None
    return candidates[0]
