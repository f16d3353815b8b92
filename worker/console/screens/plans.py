"""Plans and their prices, and the purchase of one by somebody who may add credits without paying.

Nobody pays on this page. Whoever holds `adjust_credits` can give credits anyway, so that an order lets them do no more.
"""

import re

from models.errors import Reason, Refused
from models.messages.base import Json
from models.messages.billing import Right
from models.reports.plans import plans_for_sale
from worker.console.forms import Form
from worker.console.jobs import new_key
from worker.console.screen import Asked, Screen
from worker.console.sentences import say

TO_BUY: tuple[Right, ...] = ("adjust_credits",)
ORDER_ID = re.compile(r"console-[0-9a-f]{32}")
"""The ids of orders that are made here. Any other could take the id of an order that comes from elsewhere."""


def _answer(asked: Asked) -> Json:
    viewer = asked.viewer.user
    rows = asked.read(plans_for_sale)
    return {
        "status": "done",
        "viewer": viewer.id,
        "owner": viewer.owner,
        "sharing": viewer.is_credit_user,
        "rows": rows,
    }


def _details(asked: Asked, answer: Json) -> Json:
    may_buy = asked.viewer.holds(TO_BUY)
    order_id = asked.given.get("order_id")
    return {
        "may_buy": may_buy,
        "billing": asked.ask("views.billing", {"viewer": asked.viewer.user.id}).get("billing"),
        "chosen": _find_plan(answer, asked.given.get("plan")) if may_buy else None,
        "terms_of": _terms_of,
        "order_id": order_id,
        "order": asked.answer_of(order_id) if order_id else None,
        "new_order_id": new_key(),
    }


def _find_plan(answer: Json, plan: str | None) -> Json | None:
    return next((row for row in answer["rows"] if row["plan"] == plan), None)


def _terms_of(plan: Json) -> str:
    """Return what a plan brings and costs, to be compared."""
    return f"{plan['credits']['email']}/{plan['credits']['sms']}/{plan['price']}/{plan['currency']}"


def _change(asked: Asked, form: Form) -> str:
    """Enqueue the purchase. The order's id comes with the form: whoever sends that twice buys once.

    Raises
    ------
    Refused
        `not_permitted`; `unknown_plan`; `stale` if the plan has other terms than those that were shown.

    """
    viewer, plan_id, order_id = asked.viewer.user, form.get("plan", ""), form.get("order_id", "")
    if not asked.viewer.holds(TO_BUY):
        raise Refused(Reason.NOT_PERMITTED, say("plans.no_right", role=viewer.role))
    if not ORDER_ID.fullmatch(order_id):
        raise Refused(Reason.INVALID_JOB, say("plans.other_id"))
    plan = _find_plan(_answer(asked), plan_id)
    if plan is None:
        raise Refused(Reason.UNKNOWN_PLAN, say("plans.gone", plan=plan_id))
    if form.get("terms") != _terms_of(plan):
        raise Refused(Reason.STALE, say("plans.changed", plan=plan_id))
    if asked.answer_of(order_id) is None:
        asked.enqueue("credits.purchase", order_id, {"order_id": order_id, "buyer": viewer.id, "plan": plan_id})
    return asked.link(order_id=order_id)


SCREEN = Screen(name="plans", path="/plans", answer=_answer, details=_details, change=_change)
