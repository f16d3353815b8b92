"""The part of a story that is about attempts: what carriers said, what is in doubt, who decided, and how it ended.

What carriers said, and what operators noted, is shown without addresses and numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, select

from models.database.schema import charges, decisions
from models.messages.answer import iso_time
from models.reports.story_event import StoryEvent, said_time
from models.sends.answers import wire_status
from models.sends.attempts import NotedTry, find_tries
from models.sends.cancelling import find_cancelled
from models.sends.carrier import Outcome
from models.sends.charges import FINAL, Charge, State, is_job
from models.sends.leases import LeaseKey, find_handovers
from models.sends.outcomes import CRASH
from models.text import without_people

SAID: Final[Mapping[str, str]] = {
    Outcome.ACCEPTED: "{carrier} took it",
    Outcome.NEVER: "{carrier} refused it for good",
    Outcome.NOT_NOW: "{carrier} did not take it now",
    Outcome.UNSURE: "{carrier} may have taken it",
    Outcome.OUR_FAULT: "{carrier} did not take it, for what is wrong with us",
    CRASH: "it ended in the middle",
}
"""What is told of an attempt, by its outcome."""
DECIDED: Final[Mapping[str, str]] = {
    "refund": "that it was not taken, and gave the credits back",
    "resend": "to send it again",
}


def attempt_events(connection: Connection, charge: Charge) -> Iterator[StoryEvent]:
    """Yield what happened since a job was charged, and how it stands now."""
    decided = connection.execute(
        select(decisions)
        .where(decisions.c.org_id == charge.org_id, decisions.c.job_id == charge.job_id)
        .order_by(decisions.c.at, decisions.c.id)
    ).all()
    tries = find_tries(connection, charge.key)
    yield from map(_attempt, tries)
    yield from _taken_at_once(charge, tries, decided)
    yield from _doubts(connection, charge)
    yield from map(_decision, decided)
    yield from _end(connection, charge)
    yield from _as_it_stands(connection, charge)


def _attempt(noted: NotedTry) -> StoryEvent:
    carrier, words = noted.carrier or "the carrier", without_people(noted.detail or "")
    said = SAID[noted.outcome].format(carrier=carrier)
    fields = {"attempt": noted.number, "carrier": noted.carrier, "outcome": str(noted.outcome), "words": words or None}
    text = f"Attempt {noted.number}: {said}{f': {words}' if words else '.'}"
    return StoryEvent(kind="attempt", at=noted.at, text=text, fields=fields)


def _taken_at_once(charge: Charge, tries: Sequence[NotedTry], decided: Sequence[Row[Any]]) -> Iterator[StoryEvent]:
    """Yield the attempt that left no note: the message was taken at once, or at once after it was resent.

    An email may have ended as sent without one, when those were given up whom it had not reached. Earlier releases
    noted no attempts, so that it may have been a later one.
    """
    is_noted = any(one.at == charge.final_at for one in tries)
    made = {row.decision for row in decided}
    was_given_up = "refund" in made or (charge.refunded > 0 and tries and "resend" not in made)
    if charge.state is not State.SENT or is_noted or was_given_up:
        return
    taken = NotedTry(charge.attempts, charge.carrier, Outcome.ACCEPTED, None, charge.final_at or charge.created_at)
    yield _attempt(taken)


# -- doubt ------------------------------------------------------------------------------------------------------------


def _doubts(connection: Connection, charge: Charge) -> Iterator[StoryEvent]:
    """Yield since when a carrier may have the message: from this attempt, or from an earlier one."""
    lease = LeaseKey(charge.org_id, charge.lease_id or "")
    now_at = find_handovers(connection, [lease]).get(charge.key) if charge.state is State.SENDING else None
    if charge.handover_started_at is not None:
        yield _doubt(
            "in_doubt", charge.carrier, charge.handover_started_at, "may have it since then, and did not say so"
        )
    if now_at is not None:
        yield _doubt("handed_over", now_at.carrier, now_at.at, "is handed the message from then on")


def _doubt(kind: str, carrier: str | None, at: datetime, what: str) -> StoryEvent:
    return StoryEvent(kind=kind, at=at, text=f"{carrier or 'The carrier'} {what}.", fields={"carrier": carrier})


def _decision(row: Row[Any]) -> StoryEvent:
    note = without_people(row.note or "")
    return StoryEvent(
        kind="decided",
        at=row.at,
        text=f"{row.operator} decided {DECIDED[row.decision]}{f': {note}' if note else '.'}",
        fields={"by": row.operator, "decision": row.decision, "note": note or None},
    )


# -- how it ended, or stands ------------------------------------------------------------------------------------------


def _end(connection: Connection, charge: Charge) -> Iterator[StoryEvent]:
    if charge.state not in FINAL:
        return
    cancelled = find_cancelled(connection, charge)
    if cancelled is not None:
        yield StoryEvent(
            kind="cancelled",
            at=charge.final_at,
            text=f"{cancelled.actor} cancelled it ({cancelled.cancel_id}).",
            fields={"by": cancelled.actor, "cancel_id": cancelled.cancel_id},
        )
    status = wire_status(charge.state, charge.attempts, charge.reason)
    because = f" ({charge.reason})" if charge.reason else ""
    words = without_people(charge.detail or "")
    yield StoryEvent(
        kind="settled" if charge.payer else "refused",
        at=charge.final_at,
        text=f"{'It ended as' if charge.payer else 'It was'} {status}{because}{f': {words}' if words else '.'}",
        fields={"status": status, "reason": charge.reason},
    )


def _as_it_stands(connection: Connection, charge: Charge) -> Iterator[StoryEvent]:
    match charge.state:
        case State.WAITING:
            yield _waits(charge)
        case State.SENDING:
            until = _time(connection, charge, "lease_until")
            text = f"Attempt {charge.attempts} is being made; its lease lasts until {said_time(until)}."
            fields = {"attempt": charge.attempts, "until": iso_time(until)}
            yield StoryEvent(kind="sending", at=None, text=text, fields=fields)
        case State.UNKNOWN:
            since = _time(connection, charge, "unknown_since")
            words = without_people(charge.detail or "")
            text = f"Nobody knows since {said_time(since)} whether it was taken{f': {words}' if words else '.'}"
            text += " It stays charged until a person decides."
            yield StoryEvent(
                kind="unknown", at=None, text=text, fields={"since": iso_time(since), "why": words or None}
            )


def _waits(charge: Charge) -> StoryEvent:
    words = without_people(charge.detail or "")
    if charge.due_at is None:
        text = f"It waits for its first attempt, with the other messages of {charge.bulk_id}."
    else:
        text = f"It waits until {said_time(charge.due_at)}{f': {words}' if words else '.'}"
    if charge.handover_started_at is not None:
        text += " No other carrier gets it than the one that may have it."
    return StoryEvent(kind="waits", at=None, text=text, fields={"until": iso_time(charge.due_at), "why": words or None})


def _time(connection: Connection, charge: Charge, name: str) -> datetime:
    at: datetime = connection.execute(select(charges.c[name]).where(is_job(charge.key))).scalar_one()
    return at
