"""Every error that Postage raises on purpose, and the closed list of reasons for a refusal.

    PostageError                something expected; its message is a sentence that a person can act on
    ├── Refused                 a job was refused: answered and recorded with its reason, nothing was changed
    └── OperatorError           a command or a process cannot go on until somebody mends what the sentence names
        ├── DatabaseBehindError the database lacks a migration that this code needs
        └── DatabaseAheadError  the database has a migration that this code does not know

Anything else that is raised is a bug, and stays loud.
"""

import enum


class Reason(enum.StrEnum):
    """Every reason that an answer may give. Each answer adds a sentence (`detail`) that a person can act on."""

    INVALID_JOB = "invalid_job"
    """A field of the message is missing, unknown, of the wrong type, or out of bounds."""
    CONFLICTING_JOB = "conflicting_job"
    """The id was used before with other content."""
    UNKNOWN_USER = "unknown_user"
    """A user named in the message was never saved."""
    UNKNOWN_PLAN = "unknown_plan"
    """The plan was never saved."""
    INSUFFICIENT_CREDITS = "insufficient_credits"
    """The payer's balance is smaller than the cost."""
    NOT_PERMITTED = "not_permitted"
    """The user's role lacks a right that the job needs, or its producer's key does not allow it."""
    OTHER_ORGANIZATION = "other_organization"
    """The users named belong to different organizations."""
    OWNER_IS_CREDIT_USER = "owner_is_credit_user"
    """The chosen credit owner uses somebody else's credits."""
    USER_HAS_CREDIT_USERS = "user_has_credit_users"
    """Other users spend this user's credits."""
    USER_HAS_OPEN_MESSAGES = "user_has_open_messages"
    """Messages of a user who is to be erased have not ended yet."""
    PURCHASE_FOR_SELF_WHILE_SHARING = "purchase_for_self_while_sharing"
    """A credit user asked for credits of their own."""
    BILLING_INFORMATION_MISSING = "billing_information_missing"
    """Neither the order nor the buyer has billing information."""
    RECIPIENT_REFUSED = "recipient_refused"
    """The carrier refused every recipient for good."""
    CARRIER_REFUSED = "carrier_refused"
    """The carrier refused the message for good."""
    CARRIER_UNAVAILABLE = "carrier_unavailable"
    """The carrier could not be reached, or said "not now", until the attempts were used up."""
    NOT_FOUND = "not_found"
    """What the message names does not exist, or this viewer may not know that it does."""
    STALE = "stale"
    """An older version of what was saved than the one that stands."""
    TOO_LARGE = "too_large"
    """What a viewer asked for takes the database longer than a statement may."""
    NOTHING_REMAINING = "nothing_remaining"
    """Everything that the reversal asks for was reversed already."""

    EXPIRED = "expired"
    """No worker had begun the job by the time that its producer set (`expires`)."""
    CANCELLED = "cancelled"
    """The job was cancelled, or its Celery task revoked, before anything was handed to a carrier."""


class PostageError(Exception):
    """The root of everything that Postage raises on purpose."""


class Refused(PostageError):  # noqa: N818  a refusal is a normal outcome, not an error of the program
    """A job was refused: `reason` says why, `detail` what to do about it."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class OperatorError(PostageError):
    """Something that an operator must mend. The message says what is wrong and what to do."""


class DatabaseBehindError(OperatorError):
    """The database lacks migrations that this code needs. Run `postage migrate`."""


class DatabaseAheadError(OperatorError):
    """The database has migrations of a newer release. Upgrade the code, or restore a backup from before them."""
