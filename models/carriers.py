"""What the house asks of a carrier, and what a carrier may say. No SMTP and no HTTP here."""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, Self


class Outcome(enum.StrEnum):
    """What became of one attempt to hand a message over."""

    ACCEPTED = "accepted"
    """The carrier took it (for an email: for at least one recipient)."""
    NEVER = "never"
    """The carrier will not take this message, however often it is asked."""
    NOT_NOW = "not_now"
    """The carrier certainly did not take it, and may if asked again."""
    UNSURE = "unsure"
    """The carrier may have taken it: the line went dead before its answer arrived."""


@dataclass(frozen=True, slots=True)
class Email:
    """One email as a carrier gets it. `recipients` is the envelope: what is still to be handed over."""

    job_id: str
    from_name: str
    from_address: str
    to: tuple[str, ...]
    cc: tuple[str, ...]
    recipients: tuple[str, ...]
    subject: str
    text: str | None
    html: str | None
    reply_to: str | None
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Sms:
    """One text message as a carrier gets it. `to` is E.164; `segments` is what was charged."""

    job_id: str
    to: str
    sender_id: str | None
    text: str
    segments: int


Parcel = Email | Sms


@dataclass(frozen=True, slots=True)
class Receipt:
    """A carrier's answer to one attempt.

    `reference` is the carrier's own id. `refused` and `deferred` name the recipients of an *accepted* email that
    the carrier will never take, or not now, each with the carrier's words. `detail` is a sentence for people.
    """

    outcome: Outcome
    detail: str = ""
    reference: str | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    deferred: Mapping[str, str] = field(default_factory=dict)
    recipients_refused: bool = False
    """With NEVER: it was every recipient that was refused, rather than the message."""

    def tidied(self) -> Self:
        """The same receipt in words that any database keeps: no control characters or half ones, and not too long."""
        if not (self.refused or self.deferred) and all(map(_is_tidy, (self.detail, self.reference or ""))):
            return self  # as nearly always
        return replace(
            self,
            detail=tidy(self.detail),
            reference=None if self.reference is None else tidy(self.reference),
            refused={address: tidy(words) for address, words in self.refused.items()},
            deferred={address: tidy(words) for address, words in self.deferred.items()},
        )


WORDS_MAX = 300
"""Characters of a carrier's words, or of its id for a message, that are kept."""


def _is_tidy(words: str) -> bool:
    return words.isprintable() and len(words) <= WORDS_MAX and words.strip() == words


def tidy(words: str) -> str:
    """A carrier's words on one line of printable characters."""
    return "".join(letter if letter.isprintable() else " " for letter in words[:WORDS_MAX]).strip()


class Carrier(Protocol):
    """Takes messages out of the house."""

    @property
    def honours_job_id(self) -> bool:
        """Whether asking again with the same job id can never send twice."""

    @property
    def at_once(self) -> int:
        """How many deliveries at the same time make it faster, and are welcome to whoever is at the other end."""

    def deliver(self, parcel: Parcel, about_to_hand_over: Callable[[], None]) -> Receipt:
        """Hand one message over. Never raises for what a carrier or a network does; safe to call from threads.

        A carrier that does not honour the job id calls `about_to_hand_over` at the last moment at which it is certain
        that nobody has accepted the message; if that raises, nothing is handed over.
        """

    def close(self) -> None:
        """Say goodbye on kept connections."""
