"""What people may look at: overview, usage, orders, billing information, users. Reads only.

A *pool* is what one credit owner pays for: by default a viewer sees the pool they spend from, with everybody's rows,
and a reminder when it is not their own. `of: "self"` shows only what the viewer sent, bought and owns.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, Row, Subquery, func, select, union_all

from models import charges as charging
from models.answers import bulk_answer, iso, message_answer, refused_answer, status
from models.charges import Charge, State
from models.database import search_by_index
from models.errors import Reason, Refused
from models.fields import KINDS
from models.messages import SEND_TASKS, View, ViewMessage, ViewUsage
from models.paging import PAGE, page_of
from models.tables import accounts, charges, orders, plans, refusals, users
from models.usage import Whose, paid_by, sent_by, spent
from models.users import Person, has_rights, look_up

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Looking:
    """Who looks, and at whose pool."""

    viewer: Person
    owner: Person
    view: View

    @property
    def whole_pool(self) -> bool:
        """Whether everybody's rows are shown, or the viewer's alone."""
        return self.view.of == "owner"

    def heading(self) -> Json:
        """The fields that overview, usage and orders have in common."""
        return {
            "status": "done",
            "viewer": self.viewer.id,
            "owner": self.owner.id,
            "of": self.view.of,
            "sharing": self.viewer.shares,
            "reminder": self.reminder(),
        }

    def reminder(self) -> str | None:
        """The sentence that tells a credit user whose credits these are."""
        if not self.viewer.shares:
            return None
        owner = self.viewer.owner
        if self.whole_pool:
            return f"You are using the credits of {owner}: this shows everything that is charged and credited there."
        return f"You are using the credits of {owner}: this shows only what is yours."


def look(connection: Connection, view: View) -> Looking:
    """Who looks, and at whose pool.

    Raises
    ------
    Refused
        `unknown_user`.

    """
    viewer = look_up(connection, view.viewer)
    owner = look_up(connection, viewer.owner) if view.of == "owner" and viewer.shares else viewer
    return Looking(viewer, owner, view)


def overview(connection: Connection, view: View) -> Json:
    """Remaining credits and the plans that were bought."""
    looking = look(connection, view)
    balances = connection.execute(
        select(accounts.c.kind, accounts.c.available).where(accounts.c.owner_id == looking.owner.id)
    )
    remaining = {kind: available for kind, available in balances}  # noqa: C416  a Row is a tuple, dict() is untyped
    return {
        **looking.heading(),
        "remaining": {kind: remaining.get(kind, 0) for kind in KINDS},
        "plans": _plans(connection, looking),
    }


def _plans(connection: Connection, looking: Looking) -> list[Json]:
    bought = connection.execute(
        select(plans.c.id, plans.c.name, func.count().label("orders"), func.max(orders.c.at).label("last_at"))
        .join(orders, orders.c.plan == plans.c.id)
        .where(_orders_of(looking))
        .group_by(plans.c.id, plans.c.name)
        .order_by(plans.c.id)
    )
    return [{"plan": row.id, "name": row.name, "orders": row.orders, "last_at": iso(row.last_at)} for row in bought]


def usage(connection: Connection, view: ViewUsage) -> Json:
    """Credits spent: by user, day and kind, or message by message. Refunds are taken out again."""
    looking = look(connection, view)
    whose = paid_by(connection, looking.owner.id) if looking.whole_pool else sent_by(connection, looking.viewer.id)
    search_by_index(connection)
    by_day = spent(whose, view.since, view.until)
    totals = connection.execute(select(by_day.c.kind, func.sum(by_day.c.credits)).group_by(by_day.c.kind))
    total = {kind: int(credits_) for kind, credits_ in totals}
    found = (
        _usage_by_message(connection, whose, view) if view.by == "message" else _usage_by_day(connection, by_day, view)
    )
    rows, more = found
    return {
        **looking.heading(),
        "total": {kind: total.get(kind, 0) for kind in KINDS},
        "by": view.by,
        "rows": rows,
        **_paging(view, more=more),
    }


def _usage_by_day(connection: Connection, by_day: FromClause, view: View) -> tuple[list[Json], bool]:
    key = by_day.c.sender, by_day.c.day, by_day.c.kind
    query = (
        select(*key, func.sum(by_day.c.credits).label("credits"), func.sum(by_day.c.messages).label("messages"))
        .group_by(*key)
        .order_by(by_day.c.day.desc(), by_day.c.sender, by_day.c.kind)
    )
    found, more = page_of(connection, query, view.page)
    return [
        {
            "user": row.sender,
            "day": str(row.day),
            "kind": row.kind,
            "credits": int(row.credits),
            "messages": int(row.messages),
        }
        for row in found
    ], more


def _usage_by_message(connection: Connection, whose: Whose, view: View) -> tuple[list[Json], bool]:
    newest = _newest_charges(whose, view)
    query = (
        select(newest, accounts.c.owner_id)
        .join(accounts, accounts.c.id == newest.c.account_id)
        .order_by(newest.c.created_at.desc(), newest.c.job_id)
    )
    found, more = page_of(connection, query, view.page)
    return [
        {
            "job_id": row.job_id,
            "user": row.sender,
            "kind": row.kind,
            "credits": row.credits - row.refunded,
            "status": status(State(row.state), row.attempts),
            "paid_by": row.owner_id,
            "at": iso(row.created_at),
        }
        for row in found
    ], more


def _newest_charges(whose: Whose, view: View) -> Subquery:
    """The newest charges, no more than the pages up to this one can show: of each account apart, in the index's order.

    An index cannot give the charges of two accounts together in the order of their times.
    """
    names = ("job_id", "account_id", "sender", "kind", "credits", "refunded", "state", "attempts", "created_at")
    one_by_one = [whose] if whose.sender else [Whose({account_id: None}) for account_id in whose.marks]
    newest = [
        select(*(charges.c[name] for name in names))
        .where(each.has(charges), _between(charges.c.created_at, view))
        .order_by(charges.c.created_at.desc(), charges.c.job_id)
        .limit(view.page * PAGE + 1)
        .subquery()
        for each in one_by_one
    ]
    return union_all(*(select(each) for each in newest)).subquery("newest")


def order_history(connection: Connection, view: View) -> Json:
    """Orders, newest first. Whose billing information an order carries is the buyer's affair and not shown."""
    looking = look(connection, view)
    query = (
        select(orders)
        .where(_orders_of(looking), _between(orders.c.at, view))
        .order_by(orders.c.at.desc(), orders.c.order_id)
    )
    found, more = page_of(connection, query, view.page)
    return {**looking.heading(), "rows": [_order(row) for row in found], **_paging(view, more=more)}


def _order(row: Row[*tuple[Any, ...]]) -> Json:
    return {
        "order_id": row.order_id,
        "buyer": row.buyer_id,
        "owner": row.owner_id,
        "plan": row.plan,
        "credits": {"email": row.email, "sms": row.sms},
        "amount": row.amount,
        "currency": row.currency,
        "at": iso(row.at),
    }


def billing(connection: Connection, view: View) -> Json:
    """The viewer's own billing information, never anybody else's."""
    viewer = look_up(connection, view.viewer)
    information = connection.execute(select(users.c.billing).where(users.c.id == viewer.id)).scalar_one()
    return {"status": "done", "viewer": viewer.id, "billing": information}


def user_list(connection: Connection, view: View) -> Json:
    """The users of the viewer's organization.

    Raises
    ------
    Refused
        `unknown_user`, or `not_permitted` without the right `view_user_list`.

    """
    viewer = look_up(connection, view.viewer)
    if not has_rights(connection, viewer, "view_user_list"):
        sentence = f"The role {viewer.role} of {viewer.id} does not hold the right view_user_list."
        raise Refused(Reason.NOT_PERMITTED, sentence)
    query = select(users).where(users.c.organization == viewer.organization).order_by(users.c.id)
    if view.of == "self":
        query = query.where(users.c.credit_owner_id == viewer.id)
    found, more = page_of(connection, query, view.page)
    rows = [
        {
            "user_id": row.id,
            "name": row.name,
            "email": row.email,
            "role": row.role,
            "owner": row.credit_owner_id,
            "sharing": not row.is_owner,
        }
        for row in found
    ]
    return {"status": "done", "viewer": viewer.id, "rows": rows, **_paging(view, more=more)}


def message(connection: Connection, view: ViewMessage) -> Json:
    """The answer to one send job, for its sender and for everybody who spends from the pool that paid.

    Raises
    ------
    Refused
        `unknown_user`; `not_permitted` within the organization, `not_found` beyond it, where even the id is nobody's
        business.

    """
    viewer = look_up(connection, view.viewer)
    charge = charging.read(connection, [view.job_id]).get(view.job_id)
    if charge is None:
        return _refused_before(connection, view)
    payer = charge.payer or charging.bulk_payer(connection, charge.job_id)
    _require_concern(connection, viewer, charge, payer, view)
    if charge.state is not State.BULK:
        return message_answer(charge)
    counts = charging.count_states(connection, charge.job_id)
    return bulk_answer(charge, counts, payer, charging.charged_now(connection, charge.job_id))


def _refused_before(connection: Connection, view: ViewMessage) -> Json:
    """The refusal of a job that took no key, for the person whom it named as its sender."""
    refusal = connection.execute(
        select(refusals)
        .where(
            (refusals.c.key == view.job_id) | (refusals.c.task_id == view.job_id),
            refusals.c.person == view.viewer,
            refusals.c.task.in_(SEND_TASKS),
        )
        .order_by(refusals.c.id.desc())
        .limit(1)
    ).one_or_none()
    if refusal is None:
        raise _no_message(view)
    return {
        **refused_answer(refusal.reason, refusal.detail),
        "job_id": view.job_id,
        "task": refusal.task,
        "kind": refusal.task.partition(".")[0],
        "sender": refusal.person,
        "attempts": 0,
        "created_at": iso(refusal.at),
        "final_at": iso(refusal.at),
    }


def _require_concern(
    connection: Connection, viewer: Person, charge: Charge, payer: str | None, view: ViewMessage
) -> None:
    if viewer.id == charge.sender or viewer.owner == payer:
        return
    sender = connection.execute(
        select(users.c.organization, users.c.credit_owner_id).where(users.c.id == charge.sender)
    ).one_or_none()
    if sender is None or sender.organization != viewer.organization:
        raise _no_message(view)
    if payer is None and sender.credit_owner_id == viewer.owner:  # refused: nobody paid, but it was to be their pool
        return
    sentence = "This message was sent by somebody else and paid from a pool that is not yours."
    raise Refused(Reason.NOT_PERMITTED, sentence)


def _no_message(view: ViewMessage) -> Refused:
    return Refused(Reason.NOT_FOUND, f"There is no message {view.job_id} that you may see.")


def _orders_of(looking: Looking) -> ColumnElement[bool]:
    if looking.whole_pool:
        return orders.c.owner_id == looking.owner.id
    return orders.c.buyer_id == looking.viewer.id


def _between(column: ColumnElement[datetime], view: View) -> ColumnElement[bool]:
    """From `since` on, and before `until`."""
    condition = column >= (view.since or datetime(1970, 1, 1, tzinfo=UTC))
    return condition & (column < view.until) if view.until else condition


def _paging(view: View, *, more: bool) -> Json:
    return {"page": view.page, "more": more}
