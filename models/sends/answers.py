"""The answers to send jobs, single and bulk."""

from collections.abc import Mapping

from sqlalchemy import Connection

from models.errors import Reason
from models.messages.answer import iso_time
from models.messages.base import Json
from models.sends.charges import OPEN, Charge, State, bulk_credits, bulk_payer, count_bulk_states


def answer_to(connection: Connection, charge: Charge) -> Json:
    """Return the answer to a send job as it stands; for a bulk job, with how its messages stand."""
    if charge.state is not State.BULK:
        was_bulk = charge.bulk_id is None and charge.task.endswith(".send_many")  # and was refused: it has no messages
        return send_answer(charge) | ({"messages": {}} if was_bulk else {})
    return bulk_answer(
        charge,
        count_bulk_states(connection, charge.key),
        payer=bulk_payer(connection, charge.key),
        credits_now=bulk_credits(connection, charge.key),
    )


def send_answer(charge: Charge) -> Json:
    """Return the answer to a job that sends one message. `credits` is what is charged now, `cost` what it costs."""
    return {
        "job_id": charge.job_id,
        "task": charge.task,
        "kind": charge.kind,
        "status": wire_status(charge.state, charge.attempts, charge.reason),
        "reason": charge.reason,
        "detail": charge.detail,
        "sender": charge.sender,
        "paid_by": charge.payer,
        "credits": charge.credits - charge.refunded if charge.payer else 0,
        "cost": charge.credits,
        "attempts": charge.attempts,
        "recipients_refused": charge.recipients_refused or {},
        "carrier_reference": charge.carrier_reference,
        "created_at": iso_time(charge.created_at),
        "next_attempt_at": iso_time(charge.due_at),
        "final_at": iso_time(charge.final_at),
    }


def bulk_answer(charge: Charge, counts: Mapping[State, int], *, payer: str | None, credits_now: int) -> Json:
    """Return the answer to a bulk job: as for one message, and how many of its messages are in each state."""
    answer = send_answer(charge)
    if charge.state is State.BULK:
        answer |= {"status": bulk_status(counts), "paid_by": payer, "credits": credits_now}
    return answer | {"messages": {str(state): count for state, count in sorted(counts.items())}}


def wire_status(state: State, attempts: int, reason: str | None) -> str:
    """Return the `status` of an answer.

    A job that waits for its first attempt counts as sending. One that was cancelled after it had been charged is
    refused, like one that was cancelled before: nothing is charged, and nothing was sent.
    """
    if state is State.FAILED and reason == Reason.CANCELLED:
        return str(State.REFUSED)
    if state is State.WAITING:
        return "retrying" if attempts else "sending"
    return str(state)


def bulk_status(counts: Mapping[State, int]) -> str:
    """Return one status for all messages of a bulk job: the one that needs attention most."""
    if any(counts.get(state) for state in OPEN):
        return "sending"
    by_weight = (State.UNKNOWN, State.SENT, State.FAILED, State.REFUSED)
    return next(str(state) for state in by_weight if counts.get(state))
