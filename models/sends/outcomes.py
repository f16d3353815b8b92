"""What the outcome of an attempt means for its charge. Pure: the whole rule of doubt, refunds and retries in one place.

A message is in doubt once a carrier may have it and has not said so. Then nothing that is said later refunds it, and
no other carrier gets it: only the carrier that may have it can take it out of doubt, by saying that it took it. It is
asked again as long as it certainly knows the message again (its key window); afterwards a person has to find out.

| the message | accepted | never | anything else | the same, and no try is left |
|---|---|---|---|---|
| nobody can have it | sent | failed | waits | failed |
| its carrier may have it, and knows it again | sent | waits | waits | unknown |
| its carrier may have it, and would send it twice | sent | unknown | unknown | unknown |

"Anything else" is not now, unsure, what is wrong with us, or a worker that crashed. What failed gets its credits back;
what waits, is sent or unknown stays charged. An email goes to several recipients: those who were refused for good get
their credits back, `failed` becomes `sent` where earlier attempts reached some of them, and those who are deferred
wait, while nobody else gets it twice.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from models.errors import Reason
from models.messages.base import Json
from models.sends.carrier import NEVER_SENDS, Outcome, Receipt
from models.sends.charges import Charge, State
from models.sends.leases import HandedOver
from models.sends.retry_policy import RetryPolicy

CRASHES_MAX = 3
"""Workers that may crash during attempts of one job before it is set aside: it may be what makes them crash."""
CRASH = "crash"
"""How an attempt ended whose worker crashed, beside the outcomes that a carrier gives."""


class Doubt(enum.Enum):
    """Whether a carrier may have a message that it has not said to have."""

    NONE = "nobody can have it"
    ASKABLE = "its carrier may have it, and knows it again"
    LASTING = "its carrier may have it, and would send it twice"


class Rule(NamedTuple):
    """The state in which a charge is after an attempt."""

    accepted: State
    never: State
    otherwise: State
    at_last: State


RULES: Final[Mapping[Doubt, Rule]] = {
    Doubt.NONE: Rule(State.SENT, State.FAILED, State.WAITING, State.FAILED),
    Doubt.ASKABLE: Rule(State.SENT, State.WAITING, State.WAITING, State.UNKNOWN),
    Doubt.LASTING: Rule(State.SENT, State.UNKNOWN, State.UNKNOWN, State.UNKNOWN),
}


class Try(NamedTuple):
    """What one carrier said in an attempt."""

    carrier: str | None
    outcome: str
    detail: str = ""


@dataclass(slots=True, kw_only=True)
class Attempt:
    """An attempt that has ended: what the last carrier answered that was asked, and its key window.

    `tried_before` are carriers that certainly did not take it in this same attempt.
    """

    charge: Charge
    carrier: str
    key_window: timedelta
    receipt: Receipt
    tried_before: Sequence[Try] = ()


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
    carrier: str | None = None
    carrier_reference: str | None = None
    retry_after: timedelta | None = None
    content: Json | None = None
    in_doubt: bool = False
    """Whether the carrier may have the message all the same."""
    doubt_since: datetime | None = None
    """Since when, if that is known better than by the time of the settlement."""
    crashed: bool = False
    """Whether the attempt ended because its worker crashed."""
    counts: bool = True
    """Whether the attempt is one of those that a job has."""
    tries: Sequence[Try] = field(default_factory=tuple)
    """What is worth a note for people; empty for what was taken at once."""


def settlement_for(attempt: Attempt, *, policy: RetryPolicy, now: datetime) -> Settlement:
    """Return how an attempt ends. The credits of recipients who will never get the message go back."""
    charge, receipt = attempt.charge, attempt.receipt
    counts = receipt.outcome is not Outcome.OUR_FAULT
    has_tries = _has_tries(charge, policy, now, counts=counts)
    settlement = _settlement(attempt, policy, now, has_tries=has_tries)
    settlement.carrier = attempt.carrier
    settlement.counts = counts
    if attempt.tried_before or charge.attempts > 1 or not _is_simply_taken(receipt):
        settlement.tries = (*attempt.tried_before, Try(attempt.carrier, receipt.outcome, receipt.detail))
    return settlement


def _is_simply_taken(receipt: Receipt) -> bool:
    return receipt.outcome is Outcome.ACCEPTED and not (receipt.refused or receipt.deferred or receipt.unsure)


def _has_tries(charge: Charge, policy: RetryPolicy, now: datetime, *, counts: bool) -> bool:
    """Whether a job may wait for another attempt: attempts that do not count are limited by time alone."""
    if counts:
        return not policy.is_exhausted(charge.attempts)
    return now - charge.created_at < policy.wait_max


def _settlement(attempt: Attempt, policy: RetryPolicy, now: datetime, *, has_tries: bool) -> Settlement:
    charge, receipt = attempt.charge, _without_what_cannot_count(attempt.charge, attempt.receipt)
    refused = {**(charge.recipients_refused or {}), **receipt.refused}
    if receipt.outcome is Outcome.ACCEPTED:
        if receipt.unsure:
            return _unknown(charge, receipt, {**refused, **receipt.deferred}, pending=list(receipt.unsure))
        if receipt.deferred and has_tries:
            return _wait(charge, receipt, refused, policy, pending=list(receipt.deferred))
        return _sent(charge, receipt, {**refused, **receipt.deferred})
    doubt = _doubt(charge, attempt.key_window, now, is_new=receipt.outcome is Outcome.UNSURE)
    match _state_after(doubt, receipt.outcome, has_tries=has_tries):
        case State.WAITING:
            pending = _remaining(charge, refused)
            return _wait(charge, receipt, refused, policy, pending=pending, in_doubt=doubt is not Doubt.NONE)
        case State.FAILED:
            return _failed(charge, receipt, refused, _reason(receipt))
        case _:
            return _unknown(charge, receipt, refused)


def _without_what_cannot_count(charge: Charge, receipt: Receipt) -> Receipt:
    """Return a receipt without refusals of recipients who may have got the message in an earlier attempt."""
    if charge.handover_started_at is None or not (receipt.refused or receipt.deferred):
        return receipt
    unsure = {**receipt.unsure, **receipt.refused, **receipt.deferred}
    return replace(receipt, refused={}, deferred={}, unsure=unsure if receipt.outcome is Outcome.ACCEPTED else {})


def _state_after(doubt: Doubt, outcome: Outcome, *, has_tries: bool) -> State:
    rule = RULES[doubt]
    if outcome is Outcome.NEVER:
        return rule.never if has_tries or rule.never is not State.WAITING else rule.at_last
    return rule.otherwise if has_tries else rule.at_last


def _doubt(charge: Charge, key_window: timedelta, now: datetime, *, is_new: bool) -> Doubt:
    """Return whether a carrier may have the message. `is_new`: this very attempt has left it in doubt."""
    since = charge.handover_started_at
    if since is None and not is_new:
        return Doubt.NONE
    if is_askable(since or now, key_window, now):
        return Doubt.ASKABLE
    return Doubt.LASTING


def is_askable(since: datetime, key_window: timedelta, now: datetime) -> bool:
    """Whether a carrier that may have a message since then certainly knows it again."""
    return key_window == NEVER_SENDS or now - since < key_window


def _reason(receipt: Receipt) -> Reason:
    if receipt.outcome is not Outcome.NEVER:
        return Reason.CARRIER_UNAVAILABLE
    return Reason.RECIPIENT_REFUSED if receipt.recipients_refused else Reason.CARRIER_REFUSED


def in_doubt_after_crash(charge: Charge, noted: HandedOver | None) -> HandedOver | None:
    """Return which carrier may have a message after a crash: that of an earlier attempt, or what the worker noted."""
    if charge.handover_started_at is not None:
        return HandedOver(charge.carrier, charge.handover_started_at)
    return noted


def settlement_after_crash(
    charge: Charge, noted: HandedOver | None, *, key_window: timedelta, policy: RetryPolicy, now: datetime
) -> Settlement:
    """Return how an attempt ends whose lease expired: its worker crashed, or was without its database for too long.

    `noted` is what the worker noted, and `key_window` that of the carrier which may have the message
    (`in_doubt_after_crash`). A job over which `CRASHES_MAX` workers have crashed is not tried again.
    """
    carrier, since = in_doubt_after_crash(charge, noted) or (None, None)
    doubted = replace(charge, handover_started_at=since)
    has_tries = charge.crashes + 1 < CRASHES_MAX and not policy.is_exhausted(charge.attempts)
    doubt = _doubt(doubted, key_window, now, is_new=False)
    refused = charge.recipients_refused or {}
    match RULES[doubt].otherwise if has_tries else RULES[doubt].at_last:
        case State.WAITING:
            receipt = Receipt(
                Outcome.NOT_NOW, "The worker crashed, or lost its database, before the outcome was known."
            )
            in_doubt = doubt is not Doubt.NONE
            settlement = _wait(charge, receipt, refused, policy, pending=_pending(charge), in_doubt=in_doubt)
            settlement.reason = None
        case State.FAILED:
            words = (
                f"{charge.crashes + 1} workers crashed before this job was handed over: it may be what crashes them."
            )
            settlement = _failed(charge, Receipt(Outcome.NEVER, words), refused, Reason.CARRIER_UNAVAILABLE)
        case _:
            words = "The worker crashed, or lost its database, while the carrier may have taken the message."
            settlement = _unknown(charge, Receipt(Outcome.UNSURE, words), refused)
    settlement.carrier, settlement.doubt_since, settlement.crashed = carrier, since, True
    settlement.tries = (Try(carrier, CRASH, settlement.detail or ""),)
    return settlement


def settlement_of_wait(
    charge: Charge, detail: str, wait: timedelta, *, policy: RetryPolicy, now: datetime
) -> Settlement:
    """Return how an attempt ends in which no carrier was asked, since all rest or a rate is used up. It does not count.

    A job that has waited for too long ends.
    """
    receipt, refused = Receipt(Outcome.NOT_NOW, detail), charge.recipients_refused or {}
    in_doubt = charge.handover_started_at is not None
    if _has_tries(charge, policy, now, counts=False):
        settlement = _wait(charge, receipt, refused, policy, pending=_pending(charge), in_doubt=in_doubt)
        settlement.retry_after = wait
    elif in_doubt:
        settlement = _unknown(charge, receipt, refused)
    else:
        settlement = _failed(charge, receipt, refused, Reason.CARRIER_UNAVAILABLE)
    settlement.carrier, settlement.counts = charge.carrier, False
    return settlement


def settlement_of_doubt(charge: Charge, detail: str) -> Settlement:
    """Return how a job in doubt ends that cannot be asked about any more."""
    settlement = _unknown(charge, Receipt(Outcome.UNSURE, detail), charge.recipients_refused or {})
    settlement.carrier, settlement.counts = charge.carrier, False
    return settlement


def settlement_of_refund(charge: Charge) -> Settlement:
    """Return how an unknown job ends when a person decides that the carrier did not take it.

    Recipients whom earlier attempts certainly reached stay charged.
    """
    words = "A person decided that the carrier did not take it: what it cost went back."
    receipt = Receipt(Outcome.NEVER, words)
    failed = _failed(charge, receipt, charge.recipients_refused or {}, Reason.CARRIER_UNAVAILABLE)
    return replace(failed, reason=Reason.CARRIER_UNAVAILABLE, detail=words, carrier=charge.carrier)


def settlement_of_cancellation(charge: Charge, words: str) -> Settlement:
    """Return how a job ends that waits and was cancelled. Recipients whom earlier attempts reached stay charged."""
    failed = _failed(charge, Receipt(Outcome.NEVER, words), charge.recipients_refused or {}, Reason.CANCELLED)
    return replace(failed, carrier=charge.carrier)


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
        retry_after=max(policy.delay(charge.attempts), receipt.retry_after or timedelta()),
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


def _unknown(
    charge: Charge, receipt: Receipt, refused: dict[str, str], *, pending: list[str] | None = None
) -> Settlement:
    """A person has to find out about all recipients, or about those who are `pending`."""
    return Settlement(
        charge=charge,
        state=State.UNKNOWN,
        detail=receipt.detail,
        recipients_refused=refused or None,
        content={**(charge.content or {}), "recipients": pending} if pending else None,
        carrier_reference=receipt.reference if pending else None,
        in_doubt=True,
    )
