"""`views.message`: the answer to a send job, read back, and who may read it."""

from sqlalchemy import Connection, select

from models.database.schema import refusals, users
from models.errors import Reason, Refused
from models.messages.answer import iso_time
from models.messages.answers import refusal as whole_refusal
from models.messages.base import Json
from models.messages.views import ViewMessage
from models.messages.wire import SEND_TASKS
from models.sends.answers import answer_to
from models.sends.charges import Charge, JobKey, bulk_payer, find_charges
from models.sends.postponed import find_postponed, postponed_answer
from models.users.users import User, get_user


def show_message(connection: Connection, view: ViewMessage) -> Json:
    """Return the answer to one send job, to its sender and to everybody who spends from the pool that paid.

    Raises
    ------
    Refused
        `unknown_user`; `not_permitted` within the organization; `not_found` in any other, where not even the id may be
        known.

    """
    charge = visible_charge(connection, view)
    if charge is not None:
        return answer_to(connection, charge)
    answer = answer_without_charge(connection, view.job_id, view.viewer)
    if answer is None:
        raise no_message(view)
    return answer


def visible_charge(connection: Connection, view: ViewMessage) -> Charge | None:
    """Return the charge of a job, if it concerns the viewer; None if their organization has none.

    Raises
    ------
    Refused
        `unknown_user`, or `not_permitted`.

    """
    viewer = get_user(connection, view.viewer)
    key = JobKey(viewer.org_id, view.job_id)
    charge = find_charges(connection, [key]).get(key)
    if charge is not None:
        _require_concern(connection, viewer, charge, charge.payer or bulk_payer(connection, key))
    return charge


def answer_without_charge(connection: Connection, job_id: str, person: str | None) -> Json | None:
    """Return the answer to a job that is not due yet, or was refused and took no key; None if there is no such job.

    If a person is given, only to a job that named them as its sender.
    """
    postponed = find_postponed(connection, job_id, person)
    return _refused_before(connection, job_id, person) if postponed is None else postponed_answer(postponed)


def _refused_before(connection: Connection, job_id: str, person: str | None) -> Json | None:
    """Return the refusal of a job that took no key."""
    query = select(refusals).where(
        (refusals.c.key == job_id) | (refusals.c.task_id == job_id), refusals.c.task.in_(SEND_TASKS)
    )
    if person is not None:
        query = query.where(refusals.c.person == person)
    refusal = connection.execute(query.order_by(refusals.c.id.desc()).limit(1)).one_or_none()
    if refusal is None:
        return None
    known = {"job_id": job_id, "sender": refusal.person}
    ended = {"created_at": iso_time(refusal.at), "final_at": iso_time(refusal.at)}
    return whole_refusal(refusal.task, known, refusal.reason, refusal.detail) | ended


def _require_concern(connection: Connection, viewer: User, charge: Charge, payer: str | None) -> None:
    if viewer.id == charge.sender or viewer.owner == payer:
        return
    sender = connection.execute(select(users.c.credit_owner_id).where(users.c.id == charge.sender)).scalar_one()
    if payer is None and sender == viewer.owner:  # refused: nobody paid, but their pool would have
        return
    sentence = "This message was sent by somebody else and paid from a pool that is not yours."
    raise Refused(Reason.NOT_PERMITTED, sentence)


def no_message(view: ViewMessage) -> Refused:
    """Return the refusal of a view of a message that is not there, or not for this viewer."""
    return Refused(Reason.NOT_FOUND, f"There is no message {view.job_id} that you may see.")
