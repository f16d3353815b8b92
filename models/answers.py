"""What a task answers: a JSON object that shows nothing private when it is printed."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from models.charges import OPEN, Charge, State

SHOWN = ("job_id", "order_id", "change_id", "status", "reason")


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """One answer. `fields` is the JSON object that the caller gets.

    Celery prints results into its events and logs, so `repr` shows ids and outcomes only: no address, number, text
    or billing information. kombu's JSON encoder asks `__json__` for what goes over the wire.
    """

    fields: dict[str, Any]

    def __json__(self) -> dict[str, Any]:
        return self.fields

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401  JSON
        return self.fields[name]

    def __repr__(self) -> str:
        return " ".join(f"{name}={self.fields[name]}" for name in SHOWN if self.fields.get(name) is not None)


def message_answer(charge: Charge) -> dict[str, Any]:
    """The answer to a send job. `credits` is what is charged now, `cost` what the message costs."""
    return {
        "job_id": charge.job_id,
        "task": charge.task,
        "kind": charge.kind,
        "status": status(charge.state, charge.attempts),
        "reason": charge.reason,
        "detail": charge.detail,
        "sender": charge.sender,
        "paid_by": charge.payer,
        "credits": charge.credits - charge.refunded if charge.payer else 0,
        "cost": charge.credits,
        "attempts": charge.attempts,
        "recipients_refused": charge.recipients_refused or {},
        "carrier_reference": charge.carrier_reference,
        "created_at": iso(charge.created_at),
        "next_attempt_at": iso(charge.due_at),
        "final_at": iso(charge.final_at),
    }


def brief_answer(charge: Charge) -> dict[str, Any]:
    """As much of the answer to a send job as logs and events show, where nobody waits for the rest."""
    return {
        "job_id": charge.job_id,
        "status": status(charge.state, charge.attempts),
        "reason": charge.reason,
        "detail": charge.detail,
    }


def status(state: State, attempts: int) -> str:
    """The word for a charge's state on the wire: a job that waits for its first attempt is as good as sending."""
    if state is State.WAITING:
        return "retrying" if attempts else "sending"
    return str(state)


def bulk_status(counts: Mapping[State, int]) -> str:
    """One word for all messages of a bulk job: the one that most needs knowing."""
    if any(counts.get(state) for state in OPEN):
        return "sending"
    return next((str(state) for state in (State.UNKNOWN, State.SENT) if counts.get(state)), str(State.FAILED))


def bulk_answer(charge: Charge, counts: Mapping[State, int], payer: str | None, credits_now: int) -> dict[str, Any]:
    """The answer to a bulk job: as for one message, with how many of its messages stand where."""
    answer = message_answer(charge)
    if charge.state is State.BULK:
        answer |= {"status": bulk_status(counts), "paid_by": payer, "credits": credits_now}
    return answer | {"messages": {str(state): count for state, count in sorted(counts.items())}}


def iso(instant: datetime | None) -> str | None:
    """ISO 8601 in UTC, or None."""
    return instant.astimezone(UTC).isoformat(timespec="milliseconds") if instant else None


def refused_answer(reason: str, detail: str) -> dict[str, Any]:
    """What every refusal says."""
    return {"status": "refused", "reason": reason, "detail": detail, "credits": 0, "paid_by": None}
