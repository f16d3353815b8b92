"""What the outcome of an attempt means for its charge. Pure: the whole rule of refunds and retries in one place.

| the attempt ended with | attempts are left | the last attempt |
|---|---|---|
| accepted, some recipients deferred | waiting, for those | sent; the deferred get their credits back |
| accepted | sent | sent |
| never | failed, credits back | failed, credits back |
| not now, nothing ever handed over | waiting | failed, credits back |
| not now, handed over before | waiting | unknown |
| unsure, the carrier is idempotent | waiting, in doubt | unknown |
| unsure, the carrier is not idempotent | unknown | unknown |
| a crash, nothing handed over | waiting | failed, credits back |
| a crash, the carrier is idempotent | waiting, in doubt | unknown |
| a crash after the handover had started | unknown | unknown |

`failed` becomes `sent` where earlier attempts reached some of the recipients: those stay charged.
"""

from dataclasses import dataclass, replace
from datetime import timedelta

from models.errors import Reason
from models.messages.base import Json
from models.sends.carrier import Outcome, Receipt
from models.sends.charges import Charge, State
from models.sends.retry_policy import RetryPolicy

CRASHES_MAX = 3
"""Workers that may crash during attempts of one job before it is set aside: it may be what makes them crash."""


# Not frozen, because making a frozen one takes three times as long. Nothing changes it.
@dataclass(slots=True, kw_only=True)
class Settlement:
    """How one attempt ended. `refund` credits go back to the payer. `content` and `retry_after` are for another one."""

    charge: Charge
    state: State
    reason: Reason | None = None
    detail: str | None = None
    refund: int = 0
    recipients_refused: dict[str, str] | None = None
    carrier_reference: str | None = None
    retry_after: timedelta | None = None
    content: Json | None = None
    in_doubt: bool = False
    """Whether the carrier may have the message all the same."""
    crashed: bool = False
    """Whether the attempt ended because its worker crashed."""


def settlement_for(  # noqa: PLR0911  one return for each row of the table
    charge: Charge, receipt: Receipt, *, policy: RetryPolicy, is_idempotent: bool
) -> Settlement:
    """Return how the attempt that brought `receipt` ends. `is_idempotent` is the carrier's.

    The credits of recipients who will never get the message go back, all others stay charged.
    """
    refused = {**(charge.recipients_refused or {}), **receipt.refused}
    attempts_left = not policy.is_exhausted(charge.attempts)
    match receipt.outcome:
        case Outcome.ACCEPTED if receipt.deferred and attempts_left:
            return _wait(charge, receipt, refused, policy, pending=list(receipt.deferred))
        case Outcome.ACCEPTED:
            return _sent(charge, receipt, {**refused, **receipt.deferred})
        case Outcome.NEVER:
            reason = Reason.RECIPIENT_REFUSED if receipt.recipients_refused else Reason.CARRIER_REFUSED
            return _failed(charge, receipt, refused, reason)
        case Outcome.NOT_NOW if attempts_left:
            return _wait(charge, receipt, refused, policy, pending=_remaining(charge, refused))
        case Outcome.UNSURE if is_idempotent and attempts_left:
            return _wait(charge, receipt, refused, policy, pending=_remaining(charge, refused), in_doubt=True)
        case Outcome.NOT_NOW if charge.handover_started_at is None:
            return _failed(charge, receipt, refused, Reason.CARRIER_UNAVAILABLE)
        case _:
            return _unknown(charge, receipt, refused)


def settlement_after_crash(charge: Charge, *, policy: RetryPolicy, is_idempotent: bool) -> Settlement:
    """Return how an attempt ends whose lease expired: its worker crashed, or was without its database for too long.

    If nothing was handed over, or the carrier is idempotent, the job is tried again, up to `CRASHES_MAX` crashes.
    Otherwise the carrier may have taken the message, and only a person can find out.
    """
    handed_over = charge.handover_started_at is not None
    in_doubt = handed_over or is_idempotent
    refused = charge.recipients_refused or {}
    tries_left = charge.crashes + 1 < CRASHES_MAX and not policy.is_exhausted(charge.attempts)
    if tries_left and (is_idempotent or not handed_over):
        receipt = Receipt(Outcome.NOT_NOW, "The worker crashed, or lost its database, before the outcome was known.")
        retry = _wait(charge, receipt, refused, policy, pending=_pending(charge), in_doubt=in_doubt)
        return replace(retry, reason=None, crashed=True)
    if in_doubt:
        words = "The worker crashed, or lost its database, while the carrier may have taken the message."
        return replace(_unknown(charge, Receipt(Outcome.UNSURE, words), refused), crashed=True)
    words = f"{charge.crashes + 1} workers crashed before this job was handed over: it may be what crashes them."
    failed = _failed(charge, Receipt(Outcome.NEVER, words), refused, Reason.CARRIER_UNAVAILABLE)
    return replace(failed, crashed=True)


def settlement_of_refund(charge: Charge) -> Settlement:
    """Return how an unknown job ends when a person decides that the carrier did not take it.

    Recipients whom earlier attempts certainly reached stay charged.
    """
    words = "A person decided that the carrier did not take it: what it cost went back."
    receipt = Receipt(Outcome.NEVER, words)
    failed = _failed(charge, receipt, charge.recipients_refused or {}, Reason.CARRIER_UNAVAILABLE)
    return replace(failed, reason=Reason.CARRIER_UNAVAILABLE, detail=words)


def settlement_of_cancellation(charge: Charge, words: str) -> Settlement:
    """Return how a job ends that waits and was cancelled. Recipients whom earlier attempts reached stay charged."""
    return _failed(charge, Receipt(Outcome.NEVER, words), charge.recipients_refused or {}, Reason.CANCELLED)


def content_for_resend(charge: Charge) -> Json:
    """Return what the next attempt of an unknown job hands over: nothing to recipients who were refused before."""
    content: Json = charge.content or {}
    if charge.kind == "sms":
        return content
    return {**content, "recipients": _remaining(charge, charge.recipients_refused or {}) or _pending(charge)}


def _pending(charge: Charge) -> list[str]:
    """Return the recipients of an email to whom it is still to be handed over; none for a text message."""
    content: Json = charge.content or {}
    return list(content.get("recipients", ()))


def _remaining(charge: Charge, refused: dict[str, str]) -> list[str]:
    """Return the pending recipients who were not refused meanwhile."""
    return [address for address in _pending(charge) if address not in refused]


def _reached(charge: Charge) -> int:
    """Return the number of recipients to whom earlier attempts handed the message over."""
    if charge.kind == "sms":
        return 0
    refused = charge.recipients_refused or {}
    return charge.credits - len(refused) - len(_remaining(charge, refused))


def _wait(
    charge: Charge,
    receipt: Receipt,
    refused: dict[str, str],
    policy: RetryPolicy,
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
        retry_after=policy.delay(charge.attempts),
        content={**(charge.content or {}), "recipients": pending} if charge.kind == "email" else None,
        in_doubt=charge.handover_started_at is not None or in_doubt,
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


def _failed(charge: Charge, receipt: Receipt, refused: dict[str, str], reason: Reason) -> Settlement:
    """Nobody else will get the message. Recipients whom earlier attempts reached stay charged, the rest goes back."""
    if _reached(charge):
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
