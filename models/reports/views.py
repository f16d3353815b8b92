"""What users may look at: overview, usage, orders, billing information, users. Nothing is written.

A *pool* is everything that one credit owner pays for. By default a viewer sees the pool that they spend from, with
everybody's rows, and a reminder if it is not their own. `of: "self"` shows only what the viewer sent, bought and owns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, Row, Subquery, func, select, true, union_all

from models.database.paging import PAGE_SIZE, Page, SortKey, fetch_page, is_after
from models.database.schema import accounts, charges, orders, plans, reversals, users
from models.database.statements import is_among, search_by_index
from models.errors import Reason, Refused
from models.messages.answer import iso_time
from models.messages.base import Json
from models.messages.fields import KINDS
from models.messages.views import View, ViewUsage
from models.reports.rollup import same_account
from models.reports.usage import UsageScope, paid_by, sent_by, usage_by_day
from models.sends.answers import wire_status
from models.sends.charges import State
from models.users.roles import role_holds
from models.users.users import User, get_user, unknown_user


@dataclass(frozen=True, slots=True)
class ViewScope:
    """Who looks, and at whose pool: `owner` is the viewer, or the viewer's credit owner."""

    viewer: User
    owner: User
    view: View

    @property
    def whole_pool(self) -> bool:
        """Whether everybody's rows are shown, or only the viewer's."""
        return self.view.of == "owner"

    def heading(self) -> Json:
        """Return the fields that overview, usage and orders share."""
        return {
            "status": "done",
            "viewer": self.viewer.id,
            "owner": self.owner.id,
            "of": self.view.of,
            "sharing": self.viewer.is_credit_user,
            "reminder": self.reminder(),
        }

    def reminder(self) -> str | None:
        """Return the sentence that tells a credit user whose credits these are."""
        if not self.viewer.is_credit_user:
            return None
        owner = self.viewer.owner
        if self.whole_pool:
            return f"You are using the credits of {owner}: this shows everything that is charged and credited there."
        return f"You are using the credits of {owner}: this shows only what is yours."


def scope_of(connection: Connection, view: View) -> ViewScope:
    """Return who looks, and at whose pool.

    Raises
    ------
    Refused
        `unknown_user`.

    """
    viewer = get_user(connection, view.viewer)
    owner = get_user(connection, viewer.owner) if view.of == "owner" and viewer.is_credit_user else viewer
    return ViewScope(viewer, owner, view)


def show_overview(connection: Connection, view: View) -> Json:
    """Return the remaining credits, what is owed, and the plans that were bought."""
    scope = scope_of(connection, view)
    balances = connection.execute(
        select(accounts.c.kind, accounts.c.available, accounts.c.debt).where(
            accounts.c.org_id == scope.owner.org_id, accounts.c.owner_id == scope.owner.id
        )
    ).all()
    remaining = {row.kind: row.available for row in balances}
    debt = {row.kind: row.debt for row in balances}
    return {
        **scope.heading(),
        "remaining": {kind: remaining.get(kind, 0) for kind in KINDS},
        "debt": {kind: debt.get(kind, 0) for kind in KINDS},
        "plans": _plans(connection, scope),
    }


def _plans(connection: Connection, scope: ViewScope) -> list[Json]:
    bought = connection.execute(
        select(plans.c.id, plans.c.name, func.count().label("orders"), func.max(orders.c.at).label("last_at"))
        .join(orders, orders.c.plan == plans.c.id)
        .where(_orders_of(scope))
        .group_by(plans.c.id, plans.c.name)
        .order_by(plans.c.id)
    )
    return [
        {"plan": row.id, "name": row.name, "orders": row.orders, "last_at": iso_time(row.last_at)} for row in bought
    ]


def show_usage(connection: Connection, view: ViewUsage) -> Json:
    """Return the credits spent: by user, day and kind, or message by message. Refunds are taken out again."""
    scope = scope_of(connection, view)
    usage = paid_by(connection, scope.owner) if scope.whole_pool else sent_by(connection, scope.viewer)
    search_by_index(connection)
    by_day = usage_by_day(usage, view.since, view.until)
    totals = connection.execute(select(by_day.c.kind, func.sum(by_day.c.credits)).group_by(by_day.c.kind))
    total = {kind: int(credits_) for kind, credits_ in totals}
    return {
        **scope.heading(),
        "total": {kind: total.get(kind, 0) for kind in KINDS},
        "by": view.by,
        **(
            _usage_by_message(connection, usage, view)
            if view.by == "message"
            else _usage_by_day(connection, by_day, view)
        ),
    }


def _usage_by_day(connection: Connection, by_day: FromClause, view: View) -> Json:
    key = by_day.c.sender, by_day.c.day, by_day.c.kind
    query = select(
        *key, func.sum(by_day.c.credits).label("credits"), func.sum(by_day.c.messages).label("messages")
    ).group_by(*key)
    order = {"day": SortKey(by_day.c.day, descending=True), "sender": SortKey(by_day.c.sender),
             "kind": SortKey(by_day.c.kind)}  # fmt: skip
    page = fetch_page(connection, query, order, view.next, view.page)
    rows = [
        {
            "user": row.sender,
            "day": str(row.day),
            "kind": row.kind,
            "credits": int(row.credits),
            "messages": int(row.messages),
        }
        for row in page.rows
    ]
    return paged(view, page, rows)


def _usage_by_message(connection: Connection, usage: UsageScope, view: View) -> Json:
    newest = _newest_charges(usage, view)
    query = select(newest, accounts.c.owner_id).join(accounts, same_account(newest))
    page = fetch_page(connection, query, _newest_first(newest), view.next, view.page)
    rows = [
        {
            "job_id": row.job_id,
            "user": row.sender,
            "kind": row.kind,
            "credits": row.credits - row.refunded,
            "status": wire_status(State(row.state), row.attempts, row.reason),
            "paid_by": row.owner_id,
            "at": iso_time(row.created_at),
        }
        for row in page.rows
    ]
    return paged(view, page, rows)


def _newest_first(table: FromClause) -> dict[str, SortKey]:
    return {"created_at": SortKey(table.c.created_at, descending=True), "job_id": SortKey(table.c.job_id)}


def _newest_charges(usage: UsageScope, view: View) -> Subquery:
    """Return the newest charges, as many as the pages up to this one can show, from each account separately.

    An index gives the charges of one account in the order of their times, but not those of two accounts together.
    """
    names = (
        "org_id",
        "job_id",
        "account_id",
        "sender",
        "kind",
        "credits",
        "refunded",
        "state",
        "attempts",
        "reason",
        "created_at",
    )
    separately = [usage] if usage.sender else [UsageScope({account: None}) for account in usage.marks]
    after = is_after(_newest_first(charges), view.next) if view.next else true()
    newest = [
        select(*(charges.c[name] for name in names))
        .where(each.covers(charges), between(charges.c.created_at, view), after)
        .order_by(charges.c.created_at.desc(), charges.c.job_id)
        .limit(view.page * PAGE_SIZE + 1)
        .subquery()
        for each in separately
    ]
    return union_all(*(select(each) for each in newest)).subquery("newest")


def show_orders(connection: Connection, view: View) -> Json:
    """Return the orders, newest first, each with what was reversed of it.

    The billing information on an order is the buyer's own and not shown.
    """
    scope = scope_of(connection, view)
    query = select(orders).where(_orders_of(scope), between(orders.c.at, view))
    newest_first = {"at": SortKey(orders.c.at, descending=True), "order_id": SortKey(orders.c.order_id)}
    page = fetch_page(connection, query, newest_first, view.next, view.page)
    made = reversals_of(connection, page.rows)
    return {**scope.heading(), **paged(view, page, [order_row(row, made) for row in page.rows])}


OrderKey = tuple[int, str]


def reversals_of(connection: Connection, found: Sequence[Row[Any]]) -> dict[OrderKey, list[Row[Any]]]:
    """Return the reversals of these orders, by organization and order id, the oldest first."""
    key = reversals.c.org_id, reversals.c.order_id
    query = select(reversals).where(is_among(key, [(row.org_id, row.order_id) for row in found]))
    made: dict[OrderKey, list[Row[Any]]] = {}
    for row in connection.execute(query.order_by(reversals.c.at, reversals.c.reversal_id)):
        made.setdefault((row.org_id, row.order_id), []).append(row)
    return made


def order_row(row: Row[Any], made: Mapping[OrderKey, Sequence[Row[Any]]]) -> Json:
    """Return an order as views show it, with its reversals among those that were `made`."""
    its_reversals = made.get((row.org_id, row.order_id), ())
    return {
        "order_id": row.order_id,
        "buyer": row.buyer_id,
        "owner": row.owner_id,
        "plan": row.plan,
        "credits": {"email": row.email, "sms": row.sms},
        "amount": row.amount,
        "currency": row.currency,
        "at": iso_time(row.at),
        "reversed": {
            "email": sum(reversal.email for reversal in its_reversals),
            "sms": sum(reversal.sms for reversal in its_reversals),
        },
        "reversals": [reversal_row(reversal) for reversal in its_reversals],
    }


def reversal_row(row: Row[Any]) -> Json:
    """Return a reversal as views show it: what was taken back, and how much of that became debt."""
    return {
        "reversal_id": row.reversal_id,
        "kind": row.kind,
        "credits": {"email": row.email, "sms": row.sms},
        "debt": {"email": row.email_debt, "sms": row.sms_debt},
        "reason": row.reason,
        "at": iso_time(row.at),
    }


def show_billing(connection: Connection, view: View) -> Json:
    """Return the viewer's own billing information, never anybody else's."""
    viewer = get_user(connection, view.viewer)
    information = connection.execute(select(users.c.billing).where(users.c.id == viewer.id)).scalar_one()
    return {"status": "done", "viewer": viewer.id, "billing": information}


def viewer_of_users(connection: Connection, view: View) -> User:
    """Return a viewer who may look at the users of their organization.

    Raises
    ------
    Refused
        `unknown_user`, or `not_permitted` without the right `view_user_list`.

    """
    viewer = get_user(connection, view.viewer)
    if not role_holds(connection, viewer.org_id, viewer.role, "view_user_list"):
        sentence = f"The role {viewer.role} of {viewer.id} does not hold the right view_user_list."
        raise Refused(Reason.NOT_PERMITTED, sentence)
    return viewer


def show_users(connection: Connection, view: View) -> Json:
    """Return the users of the viewer's organization, without those who were erased.

    Raises
    ------
    Refused
        `unknown_user`, or `not_permitted` without the right `view_user_list`.

    """
    viewer = viewer_of_users(connection, view)
    query = select(users).where(users.c.org_id == viewer.org_id, users.c.erased_at.is_(None))
    if view.of == "self":
        query = query.where(users.c.credit_owner_id == viewer.id)
    page = fetch_page(connection, query, {"id": SortKey(users.c.id)}, view.next, view.page)
    rows = [_user_row(row) for row in page.rows]
    return {"status": "done", "viewer": viewer.id, **paged(view, page, rows)}


def _user_row(row: Row[Any]) -> Json:
    return {
        "user_id": row.id,
        "name": row.name,
        "email": row.email,
        "role": row.role,
        "owner": row.credit_owner_id,
        "sharing": not row.is_owner,
    }


def show_user(connection: Connection, view: View, user_id: str) -> Json:
    """Return one user of the viewer's organization, and how many others spend their credits.

    Raises
    ------
    Refused
        As `show_users`, and `unknown_user` for somebody who was erased or belongs to another organization.

    """
    viewer = viewer_of_users(connection, view)
    row = connection.execute(
        select(users).where(users.c.id == user_id, users.c.org_id == viewer.org_id, users.c.erased_at.is_(None))
    ).one_or_none()
    if row is None:
        raise unknown_user(user_id)
    spends_their_credits = (users.c.credit_owner_id == user_id) & (users.c.id != user_id)
    credit_users = connection.execute(select(func.count()).select_from(users).where(spends_their_credits)).scalar_one()
    return {"status": "done", "viewer": viewer.id, "user": {**_user_row(row), "credit_users": credit_users}}


def _orders_of(scope: ViewScope) -> ColumnElement[bool]:
    if scope.whole_pool:
        return (orders.c.org_id == scope.owner.org_id) & (orders.c.owner_id == scope.owner.id)
    return (orders.c.org_id == scope.viewer.org_id) & (orders.c.buyer_id == scope.viewer.id)


def between(column: ColumnElement[datetime], view: View) -> ColumnElement[bool]:
    """Return the condition for times from `since` on and before `until`."""
    condition = column >= (view.since or datetime(1970, 1, 1, tzinfo=UTC))
    return condition & (column < view.until) if view.until else condition


def paged(view: View, page: Page, rows: list[Json]) -> Json:
    """Return the rows of a page, and how to ask for the next one."""
    return {"rows": rows, "page": None if view.next else view.page, "more": page.next is not None, "next": page.next}
