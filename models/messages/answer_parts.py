"""What answers are made of: the objects in them, and the types that several of them share."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.errors import Reason
from models.messages.base import Json
from models.messages.fields import Kind

SendStatus = Literal["sending", "retrying", "sent", "failed", "refused", "unknown"]
Why = Annotated[str | None, Field(json_schema_extra={"enum": [*map(str, Reason), None]})]
"""A reason, or null. To whoever reads an answer it is any text: a later release may know more of them."""
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
"""A time in ISO 8601 and UTC."""
Day = Annotated[str, Field(json_schema_extra={"format": "date"})]
"""A day in ISO 8601, of UTC."""


class AnswerFields(BaseModel):
    """The base of all answers, and of the objects in them. Later releases may add fields."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class CreditCounts(AnswerFields):
    """Credits of each kind."""

    email: int
    sms: int


class BoughtPlan(AnswerFields):
    """A plan that was bought, in `views.overview`."""

    plan: str
    name: str
    orders: int
    last_at: Time


class UsageDay(AnswerFields):
    """What the messages of a user on a day cost, in `views.usage`."""

    user: str
    day: Day
    kind: Kind
    credits: int
    messages: int


class UsageMessage(AnswerFields):
    """What a message costs, in `views.usage` by message."""

    job_id: str
    user: str
    kind: Kind
    credits: int
    status: SendStatus
    paid_by: str
    at: Time


class ReversalRow(AnswerFields):
    """A reversal of an order."""

    reversal_id: str
    kind: Literal["refund", "chargeback"]
    credits: CreditCounts
    debt: CreditCounts
    reason: str
    at: Time


class OrderRow(AnswerFields):
    """An order with its reversals; `reversed` has the credits that they took back in all."""

    order_id: str
    buyer: str
    owner: str
    plan: str | None
    credits: CreditCounts
    amount: int
    currency: str
    at: Time
    reversed: CreditCounts
    reversals: list[ReversalRow]


class EntryRow(AnswerFields):
    """An entry of an account, with all that its hash is made of beside the account."""

    seq: int
    amount: int
    balance_after: int
    debt_after: int
    cause_kind: str
    cause_id: str
    at: Time
    content: str
    hash: str


class _OfAccount(AnswerFields):
    owner: str
    kind: Kind
    org_id: int
    account_id: int


class AccountPage(_OfAccount):
    """An account, and a page of its entries, the newest first."""

    balance: int
    debt: int
    hash_before: str
    entries: list[EntryRow]


class EntryOfAccount(EntryRow, _OfAccount):
    """An entry, and its account."""


class EntryMessage(AnswerFields):
    """A message that an entry paid for, or gave back."""

    job_id: str
    user: str
    credits: int
    status: SendStatus
    at: Time


class ReversalOfOrder(ReversalRow):
    """A reversal, and its order."""

    order_id: str


class AdjustmentRow(AnswerFields):
    """An adjustment."""

    adjustment_id: str
    actor: str
    owner: str
    credits: CreditCounts
    reason: str
    at: Time


class UserRow(AnswerFields):
    """A user, in `views.users`."""

    user_id: str
    name: str
    email: str
    role: str
    owner: str
    sharing: bool


class ChangeRow(AnswerFields):
    """A change, in `views.changes`; `old` is null for what is new."""

    kind: str
    subject: str
    actor: str | None
    old: Json | None
    new: Json | None
    at: Time


class StoryRow(AnswerFields):
    """What happened to a job, or without a time how it stands now. Each `kind` has fields of its own besides."""

    model_config = ConfigDict(extra="allow")

    at: Time | None
    kind: str
    text: str
