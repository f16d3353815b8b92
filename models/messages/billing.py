"""The messages of `credits.*`, `*.save`, `users.erase` and `messages.cancel`."""

from typing import ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from models.messages.base import Json, TaskMessage, is_given
from models.messages.fields import (
    Amount,
    Billing,
    CreditCount,
    Currency,
    Id,
    Kind,
    NormalAddress,
    SignedCreditCount,
    TextLine,
    Version,
)


def _is_not_zero(name: str) -> Json:
    return {"required": [name], "properties": {name: {"not": {"const": 0}}}}


_NOT_NOTHING = ConfigDict(json_schema_extra={"anyOf": [_is_not_zero("email"), _is_not_zero("sms")]})


class Credits(TaskMessage):
    """Whole credits of each kind, at least one of them."""

    model_config = _NOT_NOTHING

    email: CreditCount = 0
    sms: CreditCount = 0

    @model_validator(mode="after")
    def _at_least_one(self) -> Self:
        if self.email + self.sms == 0:
            msg = "must hold at least one credit"
            raise ValueError(msg)
        return self

    def of(self, kind: Kind) -> int:
        """Return the credits of one kind."""
        return self.email if kind == "email" else self.sms


class Purchase(TaskMessage):
    """`credits.purchase`: credits that `buyer` bought, as a plan or as a number of credits.

    It has either `plan`, or all of `credits`, `amount` and `currency`.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                is_given("plan") | {"not": {"anyOf": [is_given("credits"), is_given("amount"), is_given("currency")]}},
                is_given("credits", "amount", "currency") | {"not": is_given("plan")},
            ]
        }
    )

    task: ClassVar[str] = "credits.purchase"
    key: ClassVar[str | None] = "order_id"
    order_id: Id
    buyer: Id
    plan: Id | None = None
    credits: Credits | None = None
    amount: Amount | None = None
    currency: Currency | None = None
    credit_to: Literal["owner", "self"] = "owner"
    billing: Billing | None = None

    @model_validator(mode="after")
    def _plan_or_credits(self) -> Self:
        free = (self.credits, self.amount, self.currency)
        if (self.plan is None) == (None in free) or (self.plan is not None and free != (None, None, None)):
            msg = "must have either a plan, or credits with amount and currency"
            raise ValueError(msg)
        return self


class Reversal(TaskMessage):
    """`credits.reverse`: a purchase was paid back, by a refund or a chargeback, so its credits are taken back.

    Without `credits` it is everything that is left of the order. `buyer` is needed only where several organizations
    have an order of that id.
    """

    task: ClassVar[str] = "credits.reverse"
    key: ClassVar[str | None] = "reversal_id"
    reversal_id: Id
    order_id: Id
    kind: Literal["refund", "chargeback"]
    credits: Credits | None = None
    reason: TextLine
    buyer: Id | None = None


class SignedCredits(TaskMessage):
    """Whole credits of each kind, to be given (positive) or taken (negative), at least one of them."""

    model_config = _NOT_NOTHING

    email: SignedCreditCount = 0
    sms: SignedCreditCount = 0

    @model_validator(mode="after")
    def _not_nothing(self) -> Self:
        if self.email == self.sms == 0:
            msg = "must give or take at least one credit"
            raise ValueError(msg)
        return self

    def of(self, kind: Kind) -> int:
        """Return the credits of one kind."""
        return self.email if kind == "email" else self.sms


class Adjustment(TaskMessage):
    """`credits.adjust`: a correction by hand of what `owner` holds."""

    task: ClassVar[str] = "credits.adjust"
    key: ClassVar[str | None] = "adjustment_id"
    adjustment_id: Id
    actor: Id
    owner: Id
    credits: SignedCredits
    reason: TextLine


class SetOwner(TaskMessage):
    """`credits.set_owner`: from now on `user` spends the credits of `owner`; with `owner` = `user`, their own again."""

    task: ClassVar[str] = "credits.set_owner"
    key: ClassVar[str | None] = "change_id"
    change_id: Id
    actor: Id
    user: Id
    owner: Id


class EraseUser(TaskMessage):
    """`users.erase`: what names `user`, or those they wrote to, except what invoices keep."""

    task: ClassVar[str] = "users.erase"
    key: ClassVar[str | None] = "erasure_id"
    erasure_id: Id
    actor: Id
    user: Id


class CancelMessages(TaskMessage):
    """`messages.cancel`: what waits of one job, or of everything that `sender` has sent, is not sent any more.

    It has either `job_id` or `sender`.
    """

    model_config = ConfigDict(json_schema_extra={"oneOf": [is_given("job_id"), is_given("sender")]})

    task: ClassVar[str] = "messages.cancel"
    key: ClassVar[str | None] = "cancel_id"
    cancel_id: Id
    actor: Id
    job_id: Id | None = None
    sender: Id | None = None

    @model_validator(mode="after")
    def _job_or_sender(self) -> Self:
        if (self.job_id is None) == (self.sender is None):
            msg = "must have either a job_id or a sender"
            raise ValueError(msg)
        return self


class Save(TaskMessage):
    """What all `*.save` have: who did it, and a version, so that an older save cannot undo a newer one."""

    version: Version | None = None
    actor: Id | None = None


class SaveUser(Save):
    """`users.save`: a new user, or a new name, address, role or billing information of one."""

    user_id: Id
    organization: Id
    name: TextLine
    email: NormalAddress
    role: Id
    billing: Billing | None = None


Right = Literal["view_user_list", "edit_user", "adjust_credits"]


class SaveRole(Save):
    """`roles.save`: a role of an organization and the rights it holds."""

    organization: Id
    role: Id
    rights: list[Right] = Field(max_length=10)


class SavePlan(Save):
    """`plans.save`: what can be bought under a name. Orders keep the terms they were made under."""

    plan: Id
    name: TextLine
    credits: Credits
    price: Amount
    currency: Currency
