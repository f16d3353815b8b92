"""Invariants of reversals, and of the debt that they leave.

Each query returns (organization, account, subject, difference, …).
"""

from typing import Any

from sqlalchemy import Select, and_, case, func, or_, select, union

from models.database.schema import accounts, orders, reversals
from models.messages.fields import KINDS, Kind
from models.reports.audit_scope import AuditScope, Query, entries_in, orders_in
from models.reports.entry_invariants import entry_name
from models.reports.texts import words

_ITS_ORDER = and_(orders.c.org_id == reversals.c.org_id, orders.c.order_id == reversals.c.order_id)


def wrong_debts(scope: AuditScope) -> Query:
    """Return entries that change a debt otherwise than their cause does.

    A reversal adds what it found spent, when the balance is used up. A purchase pays with all that it brings, until
    nothing is owed. Nothing else touches a debt.
    """
    entry = entries_in(scope)
    spent = (
        select(case((entry.c.kind == "email", reversals.c.email_debt), else_=reversals.c.sms_debt))
        .where(reversals.c.org_id == entry.c.org_id, reversals.c.reversal_id == entry.c.cause_id)
        .scalar_subquery()
    )
    bought = (
        select(case((entry.c.kind == "email", orders.c.email), else_=orders.c.sms))
        .where(orders.c.org_id == entry.c.org_id, orders.c.order_id == entry.c.cause_id)
        .scalar_subquery()
    )
    before, change = entry.c.debt_before, entry.c.debt_after - entry.c.debt_before
    should = case(
        (entry.c.cause_kind == "reversal", spent),
        (entry.c.cause_kind == "purchase", case((bought < before, -bought), else_=-before)),
        else_=0,
    )
    is_early = and_(entry.c.cause_kind == "reversal", change > 0, entry.c.balance_after > 0)
    return select(
        entry.c.org_id, entry.c.account_id, entry_name(entry), words("changes the debt by ", change),
        words("should by ", should), words("leaves ", entry.c.balance_after),
    ).where(or_(should.is_(None), should != change, is_early))  # fmt: skip


def over_reversed(scope: AuditScope) -> Query:
    """Return orders of which more was reversed than they brought."""
    reversed_of = union(*(part for kind in KINDS for part in _reversed_orders(scope, kind))).subquery("reversed_of")
    total = (
        select(func.sum(case((reversed_of.c.kind == "email", reversals.c.email), else_=reversals.c.sms)))
        .where(reversals.c.org_id == reversed_of.c.org_id, reversals.c.order_id == reversed_of.c.order_id)
        .scalar_subquery()
    )
    return select(
        reversed_of.c.org_id, reversed_of.c.account_id, reversed_of.c.order_id,
        words("brought ", reversed_of.c.credits), words("reversed ", total),
    ).where(total > reversed_of.c.credits)  # fmt: skip


def _reversed_orders(scope: AuditScope, kind: Kind) -> list[Select[*tuple[Any, ...]]]:
    """Return the orders in the scope, and those of which something was reversed lately."""
    order = orders_in(scope)
    of_account = and_(
        accounts.c.org_id == orders.c.org_id, accounts.c.owner_id == orders.c.owner_id, accounts.c.kind == kind
    )
    columns = orders.c.org_id, accounts.c.id.label("account_id"), orders.c.order_id, accounts.c.kind
    credited = select(*columns, orders.c[kind].label("credits"))
    in_scope = select(order.c.order_id).where(order.c.org_id == orders.c.org_id, order.c.order_id == orders.c.order_id)
    return [
        credited.join_from(orders, accounts, of_account).where(in_scope.exists()),
        credited.join_from(reversals, orders, _ITS_ORDER)
        .join(accounts, of_account)
        .where(reversals.c.at >= scope.recent),
    ]
