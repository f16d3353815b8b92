"""What a carrier's answer means for a charge. Pure: the whole rule of refunds and retries in one place."""

from dataclasses import replace
from datetime import datetime
from typing import Any

from models.carriers import Outcome, Receipt
from models.charges import Charge, State
from models.errors import Reason
from models.ledger import Settlement
from models.retrying import Patience


def judge(  # noqa: PLR0911  one case, one outcome
    charge: Charge, receipt: Receipt, *, patience: Patience, ask_again: bool, now: datetime
) -> Settlement:
    """How the attempt on `charge` that brought `receipt` ends.

    `ask_again` says that the carrier honours the job id, so that an unsure outcome may be asked about.
    The credits of recipients who will never get the message go back, all others stay charged.
    """
    refused = {**(charge.recipients_refused or {}), **receipt.refused}
    used_up = patience.used_up(charge.attempts)
    match receipt.outcome:
        case Outcome.ACCEPTED if receipt.deferred and not used_up:
            return _wait(charge, receipt, refused, patience, now, pending=list(receipt.deferred))
        case Outcome.ACCEPTED:
            return _sent(charge, receipt, {**refused, **receipt.deferred})
        case Outcome.NEVER:
            reason = Reason.RECIPIENT_REFUSED if receipt.recipients_refused else Reason.CARRIER_REFUSED
            return _never(charge, receipt, refused, reason)
        case Outcome.NOT_NOW if not used_up:
            return _wait(charge, receipt, refused, patience, now, pending=_left(charge, refused))
        case Outcome.UNSURE if ask_again and not used_up:
            return _wait(charge, receipt, refused, patience, now, pending=_left(charge, refused), in_doubt=True)
        case Outcome.NOT_NOW if charge.handed_at is None:
            return _never(charge, receipt, refused, Reason.CARRIER_UNAVAILABLE)
        case _:
            return _unknown(charge, receipt, refused)


DEATHS_MAX = 3
"""Workers that may die over one job before it is set aside: it may be what kills them."""


def judge_death(charge: Charge, *, patience: Patience, ask_again: bool, now: datetime) -> Settlement:
    """How an attempt ends whose lease is over: its worker is dead, or has lost its database for too long.

    As long as nothing was handed over, or the carrier honours the job id (`ask_again`), the job is tried again, a few
    times. Otherwise the carrier may have taken it, and only a person can tell.
    """
    handed = charge.handed_at is not None
    in_doubt = handed or ask_again
    refused = charge.recipients_refused or {}
    if charge.deaths + 1 < DEATHS_MAX and not patience.used_up(charge.attempts) and (ask_again or not handed):
        receipt = Receipt(Outcome.NOT_NOW, "The worker died, or lost its database, before the outcome was known.")
        ended = _wait(charge, receipt, refused, patience, now, pending=_pending(charge), in_doubt=in_doubt)
        return replace(ended, reason=None, death=True)
    if in_doubt:
        words = "The worker died, or lost its database, while the carrier may have taken the message."
        return replace(_unknown(charge, Receipt(Outcome.UNSURE, words), refused), death=True)
    words = f"{charge.deaths + 1} workers died over this job before it was handed over: it may be what kills them."
    return replace(_never(charge, Receipt(Outcome.NEVER, words), refused, Reason.CARRIER_UNAVAILABLE), death=True)


def judge_refund(charge: Charge) -> Settlement:
    """How an unknown job ends when a person decides that the carrier did not take it.

    Recipients whom earlier attempts certainly reached stay charged.
    """
    words = "A person decided that the carrier did not take it: what it cost went back."
    receipt = Receipt(Outcome.NEVER, words)
    ended = _never(charge, receipt, charge.recipients_refused or {}, Reason.CARRIER_UNAVAILABLE)
    return replace(ended, reason=Reason.CARRIER_UNAVAILABLE, detail=words)


def content_to_resend(charge: Charge) -> dict[str, Any]:
    """What the next attempt of an unknown job is to hand over: to nobody who has refused it already."""
    content: dict[str, Any] = charge.content or {}
    if charge.kind == "sms":
        return content
    return {**content, "recipients": _left(charge, charge.recipients_refused or {}) or _pending(charge)}


def _pending(charge: Charge) -> list[str]:
    """The recipients of an email that are still to be handed over; none for a text message."""
    content: dict[str, Any] = charge.content or {}
    return list(content.get("recipients", ()))


def _left(charge: Charge, refused: dict[str, str]) -> list[str]:
    """The pending recipients who have not refused meanwhile."""
    return [address for address in _pending(charge) if address not in refused]


def _handed_over(charge: Charge) -> int:
    """To how many recipients earlier attempts have handed the message over already."""
    if charge.kind == "sms":
        return 0
    refused = charge.recipients_refused or {}
    return charge.credits - len(refused) - len(_left(charge, refused))


def _wait(
    charge: Charge,
    receipt: Receipt,
    refused: dict[str, str],
    patience: Patience,
    now: datetime,
    *,
    pending: list[str],
    in_doubt: bool = False,
) -> Settlement:
    return Settlement(
        charge=charge,
        state=State.WAITING,
        reason=Reason.CARRIER_UNAVAILABLE,
        detail=receipt.detail,
        recipients_refused=refused or None,
        due_at=now + patience.wait(charge.attempts),
        content={**(charge.content or {}), "recipients": pending} if charge.kind == "email" else None,
        in_doubt=charge.handed_at is not None or in_doubt,
    )


def _sent(charge: Charge, receipt: Receipt, refused: dict[str, str]) -> Settlement:
    detail = (
        f"{len(refused)} of {charge.credits} recipients were refused; their credits went back." if refused else None
    )
    return Settlement(
        charge=charge,
        state=State.SENT,
        reason=Reason.RECIPIENT_REFUSED if refused else None,
        detail=detail,
        refund=len(refused),
        recipients_refused=refused or None,
        carrier_reference=receipt.reference,
    )


def _never(charge: Charge, receipt: Receipt, refused: dict[str, str], reason: Reason) -> Settlement:
    """Nobody more will get it. What earlier attempts handed over stays charged, all the rest goes back."""
    if _handed_over(charge):
        return _sent(charge, receipt, {**dict.fromkeys(_pending(charge), receipt.detail), **refused})
    return Settlement(
        charge=charge,
        state=State.FAILED,
        reason=reason,
        detail=receipt.detail,
        refund=charge.credits,
        recipients_refused=refused or None,
    )


def _unknown(charge: Charge, receipt: Receipt, refused: dict[str, str]) -> Settlement:
    return Settlement(
        charge=charge,
        state=State.UNKNOWN,
        detail=receipt.detail,
        recipients_refused=refused or None,
        in_doubt=True,
    )
