"""The fields of every answer. docs/producers.md says what they mean; a test holds both and real answers together.

A refused answer has them all, null where there is nothing to say: a reader need not look at `status` first.
"""

import re
from typing import Any, Literal, get_origin

from pydantic import Field

from models.messages.answer import refused_answer
from models.messages.answer_parts import (
    AccountPage,
    AdjustmentRow,
    AnswerFields,
    BoughtPlan,
    ChangeRow,
    CreditCounts,
    EntryMessage,
    EntryOfAccount,
    OrderRow,
    ReversalOfOrder,
    SendStatus,
    StoryRow,
    Time,
    UsageDay,
    UsageMessage,
    UserRow,
    Why,
)
from models.messages.base import Json
from models.messages.fields import ID

_ASKED = re.compile(f"{ID.pattern}(/[0-9]{{1,3}})?")
"""The id of a job, or of one message of a bulk job: nothing else that was asked is repeated."""


class CommandAnswer(AnswerFields):
    """How a command ended."""

    status: Literal["done", "refused"]
    reason: Why
    detail: str | None


class _OrderKey(AnswerFields):
    order_id: str | None


class PurchaseAnswer(_OrderKey, CommandAnswer):
    """`credits.purchase`."""

    buyer: str | None
    paid_by: str | None
    owner: str | None
    credits: CreditCounts | None
    amount: int | None
    currency: str | None


class _ReversalKey(AnswerFields):
    reversal_id: str | None


class ReversalAnswer(_ReversalKey, CommandAnswer):
    """`credits.reverse`."""

    order_id: str | None
    kind: str | None
    buyer: str | None
    owner: str | None
    credits: CreditCounts | None
    debt: CreditCounts | None


class _AdjustmentKey(AnswerFields):
    adjustment_id: str | None


class AdjustmentAnswer(_AdjustmentKey, CommandAnswer):
    """`credits.adjust`."""

    actor: str | None
    owner: str | None
    credits: CreditCounts | None


class _ChangeKey(AnswerFields):
    change_id: str | None


class OwnerAnswer(_ChangeKey, CommandAnswer):
    """`credits.set_owner`."""

    user: str | None
    owner: str | None


class UserAnswer(CommandAnswer):
    """`users.save`."""

    user_id: str | None


class RoleAnswer(CommandAnswer):
    """`roles.save`."""

    organization: str | None
    role: str | None


class PlanAnswer(CommandAnswer):
    """`plans.save`."""

    plan: str | None


class _CancelKey(AnswerFields):
    cancel_id: str | None


class CancelAnswer(_CancelKey, CommandAnswer):
    """`messages.cancel`."""

    actor: str | None
    cancelled: int | None
    credits: int
    too_late: int | None


class _ErasureKey(AnswerFields):
    erasure_id: str | None


class ErasureAnswer(_ErasureKey, CommandAnswer):
    """`users.erase`."""

    user: str | None


class SendAnswer(AnswerFields):
    """A send job: what `views.message` returns."""

    job_id: str | None
    task: str | None
    kind: str | None
    status: SendStatus
    reason: Why
    detail: str | None
    sender: str | None
    paid_by: str | None
    credits: int
    cost: int | None
    attempts: int
    recipients_refused: dict[str, str]
    carrier_reference: str | None
    created_at: Time | None
    next_attempt_at: Time | None
    final_at: Time | None
    messages: dict[str, int] = Field(default_factory=dict)


class StoryAnswer(SendAnswer):
    """`views.explain`: the answer to a send job, and what led to it."""

    story: list[StoryRow]


class ViewAnswer(AnswerFields):
    """What all views but `views.message` and `views.explain` have. `reason` and `detail` come only with a refusal."""

    status: Literal["done", "refused"]
    viewer: str | None
    reason: Why = None
    detail: str | None = None


class PoolView(ViewAnswer):
    """What the views of a pool have."""

    owner: str | None
    of: str | None
    sharing: bool | None
    reminder: str | None


class Paged(AnswerFields):
    """What the views in pages have."""

    page: int | None
    more: bool | None
    next: str | None


class OverviewAnswer(PoolView):
    """`views.overview`."""

    remaining: CreditCounts | None
    debt: CreditCounts | None
    plans: list[BoughtPlan] | None


class UsageAnswer(PoolView, Paged):
    """`views.usage`."""

    total: CreditCounts | None
    by: str | None
    rows: list[UsageDay | UsageMessage] | None


class OrdersAnswer(PoolView, Paged):
    """`views.orders`."""

    rows: list[OrderRow] | None


class StatementAnswer(PoolView):
    """`views.statement`: a page of each account."""

    accounts: list[AccountPage] | None
    more: bool | None
    next: str | None


class EntryAnswer(PoolView):
    """`views.statement` with `entry`: what is behind it."""

    entry: EntryOfAccount | None
    messages: list[EntryMessage] | None
    order: OrderRow | None
    reversal: ReversalOfOrder | None
    adjustment: AdjustmentRow | None


class BillingAnswer(ViewAnswer):
    """`views.billing`."""

    billing: dict[str, str] | None


class UsersAnswer(ViewAnswer, Paged):
    """`views.users`."""

    rows: list[UserRow] | None


class ChangesAnswer(ViewAnswer, Paged):
    """`views.changes`."""

    rows: list[ChangeRow] | None


ANSWERS: dict[str, type[AnswerFields]] = {
    "email.send": SendAnswer,
    "sms.send": SendAnswer,
    "email.send_many": SendAnswer,
    "sms.send_many": SendAnswer,
    "credits.purchase": PurchaseAnswer,
    "credits.reverse": ReversalAnswer,
    "credits.adjust": AdjustmentAnswer,
    "credits.set_owner": OwnerAnswer,
    "users.save": UserAnswer,
    "roles.save": RoleAnswer,
    "plans.save": PlanAnswer,
    "messages.cancel": CancelAnswer,
    "users.erase": ErasureAnswer,
    "views.overview": OverviewAnswer,
    "views.usage": UsageAnswer,
    "views.orders": OrdersAnswer,
    "views.statement": StatementAnswer,
    "views.billing": BillingAnswer,
    "views.users": UsersAnswer,
    "views.changes": ChangesAnswer,
    "views.message": SendAnswer,
    "views.explain": StoryAnswer,
}
"""The answer of every task."""


def refusal(task: str, given: object, reason: str, detail: str) -> Json:
    """Return the whole answer to a job of `task` that was refused.

    It has every field: valid ids as they were asked, zero or nothing where a field is never null, and null elsewhere.
    """
    answer = _answer_of(task, given)
    fields: Json = {
        name: _asked(given, name) if field.annotation == str | None else _nothing(field.annotation)
        for name, field in answer.model_fields.items()
    }
    if issubclass(answer, SendAnswer):
        fields |= {} if task.startswith("views.") else {"task": task, "kind": task.partition(".")[0]}
        if not task.endswith(".send_many"):
            del fields["messages"]
    refused = refused_answer(reason, detail)
    return refused | fields | {name: refused[name] for name in ("status", "reason", "detail")}


def forms_of(task: str) -> tuple[type[AnswerFields], ...]:
    """Return every form that the answer of a task may have."""
    return (ANSWERS[task], EntryAnswer) if task == "views.statement" else (ANSWERS[task],)


def _answer_of(task: str, given: object) -> type[AnswerFields]:
    is_entry = task == "views.statement" and isinstance(given, dict) and given.get("entry") is not None
    return EntryAnswer if is_entry else ANSWERS[task]


def _asked(given: object, name: str) -> str | None:
    value = given.get(name) if isinstance(given, dict) else None
    return value if isinstance(value, str) and _ASKED.fullmatch(value) else None


def _nothing(hint: object) -> Any:  # noqa: ANN401  JSON
    if hint is int:
        return 0
    origin = get_origin(hint)
    return origin() if origin in (dict, list) else None
