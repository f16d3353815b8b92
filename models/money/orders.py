"""Orders and plans: who bought what, with whose billing information, and whose accounts were credited."""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select

from models.database.schema import orders, plans, users
from models.database.statements import insert
from models.errors import Reason, Refused
from models.messages.base import Json
from models.messages.billing import Credits, Purchase, SavePlan
from models.messages.fields import KINDS
from models.money import ledger
from models.money.accounts import accounts_of
from models.money.chain import content_of_fields
from models.money.ledger import Move
from models.users.changes import record_change, save_row
from models.users.organizations import NOBODYS
from models.users.users import User, erased_user, lock_users, unknown_user


def upsert_plan(connection: Connection, plan: SavePlan, now: datetime) -> None:
    """Make a plan, or replace its terms. Orders made before keep theirs.

    Raises
    ------
    Refused
        `stale` for an older version than the one that stands.

    """
    terms: Json = {
        "name": plan.name,
        "email": plan.credits.email,
        "sms": plan.credits.sms,
        "price": plan.price,
        "currency": plan.currency,
    }
    key = {"id": plan.plan}
    before, after = save_row(connection, plans, key, terms, what=f"Plan {plan.plan}", version=plan.version)
    old, new = before and _as_changed(before), _as_changed(after)
    record_change(connection, "plan", plan.plan, org_id=NOBODYS, actor=plan.actor, old=old, new=new, now=now)


def _as_changed(plan: Json) -> Json:
    return {name: value for name, value in plan.items() if name != "id"}


def place_order(connection: Connection, purchase: Purchase, now: datetime) -> Row[Any]:
    """Credit what was bought to the buyer's credit owner, once, and store the order. Returns its row.

    The order carries the buyer's own billing information as it is now, whoever gets the credits.

    Raises
    ------
    Refused
        `conflicting_job`, `unknown_user`, `unknown_plan`, `purchase_for_self_while_sharing` or
        `billing_information_missing`. Nothing was done, so the same purchase may come again once its cause is mended.

    """
    buyer = lock_users(connection, {purchase.buyer}).get(purchase.buyer)
    if buyer is None:
        raise unknown_user(purchase.buyer)
    placed = _find_order(connection, buyer.org_id, purchase)
    if placed is not None:
        return placed
    if buyer.is_erased:
        raise erased_user(buyer.id)
    _refuse_for_self_while_sharing(purchase, buyer)
    bought, amount, currency = _terms(connection, purchase)
    order = connection.execute(
        insert(connection, orders)
        .values(
            org_id=buyer.org_id,
            order_id=purchase.order_id,
            digest=purchase.digest(),
            buyer_id=buyer.id,
            owner_id=buyer.owner,
            owner_version=buyer.owner_version,
            plan=purchase.plan,
            email=bought.email,
            sms=bought.sms,
            amount=amount,
            currency=currency,
            billing=_billing(connection, purchase),
            at=now,
        )
        .on_conflict_do_nothing()
        .returning(*orders.c)
    ).one_or_none()
    if order is None:  # the same order was placed at the same time
        return place_order(connection, purchase, now)
    _credit(connection, order, now)
    return order


def _find_order(connection: Connection, org_id: int, purchase: Purchase) -> Row[Any] | None:
    order = connection.execute(
        select(orders).where(orders.c.org_id == org_id, orders.c.order_id == purchase.order_id)
    ).one_or_none()
    if order is not None and not purchase.has_digest(order.digest):
        sentence = f"The order_id {purchase.order_id} was used for another order: give this one an id of its own."
        raise Refused(Reason.CONFLICTING_JOB, sentence)
    return order


def _refuse_for_self_while_sharing(purchase: Purchase, buyer: User) -> None:
    if purchase.credit_to == "self" and buyer.is_credit_user:
        sentence = (
            f"{buyer.id} uses the credits of {buyer.owner} and cannot buy for themselves only: "
            f"set the credit owner of {buyer.id} back to {buyer.id} first."
        )
        raise Refused(Reason.PURCHASE_FOR_SELF_WHILE_SHARING, sentence)


def _terms(connection: Connection, purchase: Purchase) -> tuple[Credits, int, str]:
    """Return the credits, the amount and the currency: those of the purchase itself, or those of its plan."""
    if purchase.credits is not None and purchase.amount is not None and purchase.currency is not None:
        return purchase.credits, purchase.amount, purchase.currency
    plan = connection.execute(select(plans).where(plans.c.id == purchase.plan)).one_or_none()
    if plan is None:
        raise Refused(Reason.UNKNOWN_PLAN, f"There is no plan {purchase.plan}: save it with plans.save first.")
    return Credits(email=plan.email, sms=plan.sms), plan.price, plan.currency


def _billing(connection: Connection, purchase: Purchase) -> dict[str, str]:
    """Return the billing information of the purchase itself, or what is saved for the buyer."""
    if purchase.billing is not None:
        return purchase.billing
    saved: dict[str, str] | None = connection.execute(
        select(users.c.billing).where(users.c.id == purchase.buyer)
    ).scalar_one()
    if not saved:
        sentence = (
            f"There is no billing information for {purchase.buyer}: send it with the order, or save it with users.save."
        )
        raise Refused(Reason.BILLING_INFORMATION_MISSING, sentence)
    return saved


def _credit(connection: Connection, order: Row[Any], now: datetime) -> None:
    """Add the credits that were bought to the owner's accounts, after what these owe."""
    keys = accounts_of(connection, order.org_id, order.owner_id)
    bought = {keys[kind]: order._mapping[kind] for kind in KINDS if order._mapping[kind]}  # noqa: SLF001  public
    balances = ledger.lock_accounts(connection, bought)
    content = order_content(order)
    moves = []
    for account, credits_ in bought.items():
        owed = min(balances[account].debt, credits_)
        moves.append(
            Move(
                account=account,
                amount=credits_ - owed,
                debt=-owed,
                cause_kind="purchase",
                cause_id=order.order_id,
                content=content,
            )
        )
    ledger.post(connection, moves, now)


def order_content(order: Row[Any]) -> str:
    """Return the digest of an order by which its entries name it."""
    return content_of_fields(order.order_id, order.digest, order.buyer_id, order.owner_id, order.email, order.sms,
                             order.amount, order.currency)  # fmt: skip
