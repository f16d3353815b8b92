"""What Postage asks of a carrier, and what a carrier may answer. No SMTP and no HTTP here."""

import enum
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Protocol, Self

from models.text import sanitize


class Outcome(enum.StrEnum):
    """What became of one attempt to hand a message over."""

    ACCEPTED = "accepted"
    """The carrier took it (an email: for at least one recipient)."""
    NEVER = "never"
    """The carrier will not take this message, however often it is asked."""
    NOT_NOW = "not_now"
    """The carrier certainly did not take it, and may take it when asked again."""
    UNSURE = "unsure"
    """The carrier may have taken it: the connection broke before its answer arrived."""
    OUR_FAULT = "our_fault"
    """The carrier certainly did not take it, for what is wrong with us: login, account, address, its own credits."""


@dataclass(frozen=True, slots=True)
class Email:
    """One email as a carrier gets it. `recipients` is the envelope: those who are still to get it.

    `to`, `cc` and `reply_to` are addresses, perhaps with names (models/messages/addresses.py).

    `org_id` tells it from an email of the same job id in another organization. It is None for a message that the
    carrier may know from an earlier release, by its job id alone.
    """

    job_id: str
    org_id: int | None
    from_name: str
    from_address: str
    to: tuple[str, ...]
    cc: tuple[str, ...]
    recipients: tuple[str, ...]
    subject: str
    text: str | None
    html: str | None
    reply_to: tuple[str, ...]
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Sms:
    """One text message as a carrier gets it. `to` is E.164; `segments` is what was charged; `org_id` as in `Email`."""

    job_id: str
    org_id: int | None
    to: str
    sender_id: str | None
    text: str
    segments: int


OutboundMessage = Email | Sms
"""A message as a carrier gets it."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """A carrier's answer to one attempt.

    `detail` is a sentence for people, `reference` the carrier's own id of the message. `refused` and `deferred` name
    the recipients of an *accepted* email whom the carrier refused for good, or for now, each with the carrier's words.
    """

    outcome: Outcome
    detail: str = ""
    reference: str | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    deferred: Mapping[str, str] = field(default_factory=dict)
    unsure: Mapping[str, str] = field(default_factory=dict)
    """With ACCEPTED: recipients who may get the email or not, since it was handed over in parts. It is never sent to
    them again."""
    recipients_refused: bool = False
    """With NEVER: the carrier refused every recipient, not the message."""
    is_failing: bool = False
    """With NOT_NOW or UNSURE: the carrier itself does not work (not reachable, slow, broken), for any message."""
    retry_after: timedelta | None = None
    """With NOT_NOW or OUR_FAULT: when the carrier wants to be asked again."""

    def sanitized(self) -> Self:
        """Return the same receipt with every text of the carrier's sanitized."""
        detail, reference = sanitize(self.detail), None if self.reference is None else sanitize(self.reference)
        named = self.refused or self.deferred or self.unsure
        if (detail, reference) == (self.detail, self.reference) and not named:
            return self  # as nearly always
        return replace(
            self,
            detail=detail,
            reference=reference,
            refused={address: sanitize(words) for address, words in self.refused.items()},
            deferred={address: sanitize(words) for address, words in self.deferred.items()},
            unsure={address: sanitize(words) for address, words in self.unsure.items()},
        )


NEVER_SENDS = timedelta.max
"""The window of a carrier that sends nothing."""

Handover = Callable[[], Awaitable[None]]
"""What a carrier awaits at the last moment at which nobody can have accepted the message: that the handover is noted.
If it raises, nothing may be handed over, and the carrier lets the exception pass."""


class Carrier(Protocol):
    """A service that messages are handed to. All of it runs on one event loop."""

    @property
    def key_window(self) -> timedelta:
        """How long the carrier knows a message again by its job id and organization: it will not send it twice.

        Zero if it never does. `NEVER_SENDS` if it sends nothing, so that nothing can be sent twice.
        """

    @property
    def capacity(self) -> int:
        """How many deliveries one worker process may have at work with it at a time."""

    async def deliver(self, message: OutboundMessage, handover: Handover) -> Receipt:
        """Hand one message over, within a bounded time; never raises for what a carrier or a network does.

        A carrier whose `key_window` is zero awaits `handover` at the last moment at which it is certain that nobody has
        accepted the message; what that raises is passed on, and nothing is handed over. For one with a window it was
        noted before.
        """

    async def find_fault(self) -> str | None:
        """Return a sentence if messages could not be handed over now, without sending any; None if they could."""

    async def close(self) -> None:
        """Close the connections that were kept open."""
