"""Why a job was refused, or did not reach anybody: a closed list, and the one exception that carries an entry of it.

    PostageError
    ├── Refused              expected: answered and recorded with its reason, nothing was changed
    └── DatabaseBehindError  the database lacks a migration this code needs

Anything else that is raised is a bug and is left to be loud.
"""

import enum


class Reason(enum.StrEnum):
    """Every reason an answer may give. Each answer adds a sentence (`detail`) that a person can act on."""

    INVALID_JOB = "invalid_job"
    """The message itself is wrong: a field is missing, unknown, of another type, or out of bounds."""
    CONFLICTING_JOB = "conflicting_job"
    """The id was used before, with other content."""
    UNKNOWN_USER = "unknown_user"
    """A user named in the message was never saved."""
    UNKNOWN_PLAN = "unknown_plan"
    """The plan was never saved."""
    INSUFFICIENT_CREDITS = "insufficient_credits"
    """The payer's balance is smaller than the cost."""
    NOT_PERMITTED = "not_permitted"
    """The person's role lacks a right that is needed."""
    OTHER_ORGANIZATION = "other_organization"
    """The people named belong to different organizations."""
    OWNER_IS_CREDIT_USER = "owner_is_credit_user"
    """The chosen credit owner uses somebody else's credits."""
    USER_HAS_CREDIT_USERS = "user_has_credit_users"
    """The user's own credits are used by others."""
    PURCHASE_FOR_SELF_WHILE_SHARING = "purchase_for_self_while_sharing"
    """A credit user asked for credits of their own."""
    BILLING_INFORMATION_MISSING = "billing_information_missing"
    """Neither the order nor the buyer has billing information."""
    RECIPIENT_REFUSED = "recipient_refused"
    """The carrier will take the message for none of its recipients."""
    CARRIER_REFUSED = "carrier_refused"
    """The carrier will never take the message."""
    CARRIER_UNAVAILABLE = "carrier_unavailable"
    """The carrier could not be reached, or said not now, until the attempts were used up."""
    NOT_FOUND = "not_found"
    """What the message names does not exist, or not for this viewer."""


class PostageError(Exception):
    """The root of what Postage raises on purpose."""


class Refused(PostageError):  # noqa: N818  a refusal is an outcome of the trade, not an error of the program
    """A job was refused; `reason` says why, `detail` what to do about it."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class DatabaseBehindError(PostageError):
    """The database lacks migrations that this code needs. Run `postage migrate`."""
