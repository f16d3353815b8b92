"""Orders: what was bought, by whom, with whose billing information, and who got the credits."""

from datetime import datetime

from sqlalchemy import Connection, Row, select

from models import ledger
from models.database import insert
from models.errors import Reason, Refused
from models.fields import KINDS
from models.messages import Credits, Purchase, SavePlan
from models.tables import orders, plans, users
from models.users import Person, fence, unknown


def save_plan(connection: Connection, plan: SavePlan) -> None:
    """Make a plan, or set its terms anew; orders made before keep theirs."""
    terms = {
        "name": plan.name,
        "email": plan.credits.email,
        "sms": plan.credits.sms,
        "price": plan.price,
        "currency": plan.currency,
    }
    connection.execute(
        insert(connection, plans)
        .values(id=plan.plan, **terms)
        .on_conflict_do_update(index_elements=[plans.c.id], set_=terms)
    )


def purchase(connection: Connection, order: Purchase, digest: str, now: datetime) -> Row[object]:
    """Credit what `order` bought to the buyer's credit owner, once, and keep the order; returns its row.

    The order carries the buyer's own billing information as it is now, whoever gets the credits.

    Raises
    ------
    Refused
        `conflicting_job`, `unknown_user`, `unknown_plan`, `purchase_for_self_while_sharing` or
        `billing_information_missing`. Nothing was done, so the same order may come again once that is mended.

    """
    known = _read(connection, order, digest)
    if known is not None:
        return known
    buyer = fence(connection, {order.buyer}).get(order.buyer)
    if buyer is None:
        raise unknown(order.buyer)
    _refuse_for_self_while_sharing(order, buyer)
    bought, amount, currency = _terms(connection, order)
    made = connection.execute(
        insert(connection, orders)
        .values(
            order_id=order.order_id,
            digest=digest,
            buyer_id=buyer.id,
            owner_id=buyer.owner,
            plan=order.plan,
            email=bought.email,
            sms=bought.sms,
            amount=amount,
            currency=currency,
            billing=_billing(connection, order),
            at=now,
        )
        .on_conflict_do_nothing()
        .returning(*orders.c)
    ).one_or_none()
    if made is None:  # the same order was made while this one looked
        return purchase(connection, order, digest, now)
    ledger.credit(connection, buyer.owner, {kind: bought.of(kind) for kind in KINDS}, order.order_id, now)
    return made


def _read(connection: Connection, order: Purchase, digest: str) -> Row[object] | None:
    known = connection.execute(
        select(orders).where(orders.c.order_id == order.order_id).with_for_update(key_share=True)
    ).one_or_none()
    if known is not None and known.digest != digest:
        sentence = f"The order_id {order.order_id} was used for another order: give this one an id of its own."
        raise Refused(Reason.CONFLICTING_JOB, sentence)
    return known


def _refuse_for_self_while_sharing(order: Purchase, buyer: Person) -> None:
    if order.credit_to == "self" and buyer.shares:
        sentence = (
            f"{buyer.id} uses the credits of {buyer.owner} and cannot buy for themselves only: "
            f"set the credit owner of {buyer.id} back to {buyer.id} first."
        )
        raise Refused(Reason.PURCHASE_FOR_SELF_WHILE_SHARING, sentence)


def _terms(connection: Connection, order: Purchase) -> tuple[Credits, int, str]:
    if order.credits is not None and order.amount is not None and order.currency is not None:
        return order.credits, order.amount, order.currency
    plan = connection.execute(select(plans).where(plans.c.id == order.plan)).one_or_none()
    if plan is None:
        raise Refused(Reason.UNKNOWN_PLAN, f"There is no plan {order.plan}: save it with plans.save first.")
    return Credits(email=plan.email, sms=plan.sms), plan.price, plan.currency


def _billing(connection: Connection, order: Purchase) -> dict[str, str]:
    if order.billing is not None:
        return order.billing
    billing: dict[str, str] | None = connection.execute(
        select(users.c.billing).where(users.c.id == order.buyer)
    ).scalar_one()
    if not billing:
        sentence = (
            f"There is no billing information for {order.buyer}: send it with the order, or save it with users.save."
        )
        raise Refused(Reason.BILLING_INFORMATION_MISSING, sentence)
    return billing
