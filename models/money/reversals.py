"""Reversals: a purchase was paid back, by a refund or a chargeback, so its credits are taken back.

Taken is what the credit owner of the order still holds. What was spent already becomes a debt of the account, which the
next purchases pay first (orders.py). An order is reversed in as many parts as come, and never by more than it brought.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, func, select

from models.database.schema import orders, organizations, reversals
from models.database.statements import insert
from models.errors import Reason, Refused
from models.messages.billing import Reversal
from models.messages.fields import KINDS, Kind
from models.money import ledger
from models.money.accounts import accounts_of
from models.money.chain import content_of_fields
from models.money.ledger import Move
from models.users.users import get_user


class _Part(NamedTuple):
    """What is taken back of one kind: `credits` in all, of which `debt` were spent already."""

    credits: int
    debt: int


def reverse_order(connection: Connection, reversal: Reversal, now: datetime) -> Row[Any]:
    """Take back what an order brought, or the part of it that is asked for, once. Returns the reversal's row.

    If less is left of the order than is asked for, that is what is taken. The order is locked first, so that two
    reversals of it follow each other.

    Raises
    ------
    Refused
        `conflicting_job`, `unknown_user`, `not_found`, `nothing_remaining`, or `invalid_job` if several organizations
        have an order of this id and no buyer is named. Nothing was done, so the same reversal may come again.

    """
    org_ids = _organizations_meant(connection, reversal)
    candidates = _lock_orders(connection, org_ids, reversal.order_id)
    earlier = _find_reversals(connection, org_ids, reversal.reversal_id)
    for made in earlier:
        if reversal.has_digest(made.digest):
            return made
    order = _only_order(candidates, reversal)
    if order.org_id in {made.org_id for made in earlier}:
        sentence = f"The reversal_id {reversal.reversal_id} was used for another reversal: give this one its own."
        raise Refused(Reason.CONFLICTING_JOB, sentence)
    return _take_back(connection, reversal, order, now)


def _organizations_meant(connection: Connection, reversal: Reversal) -> Collection[int]:
    """Return the organization of the buyer, or all of them if no buyer is named."""
    if reversal.buyer is not None:
        return {get_user(connection, reversal.buyer).org_id}
    return connection.execute(select(organizations.c.id)).scalars().all()


def _lock_orders(connection: Connection, org_ids: Collection[int], order_id: str) -> Sequence[Row[Any]]:
    """Lock the orders of this id, in the order of their keys, until the transaction ends."""
    return connection.execute(
        select(orders)
        .where(orders.c.org_id.in_(org_ids), orders.c.order_id == order_id)
        .order_by(orders.c.org_id)
        .with_for_update(key_share=True)
    ).all()


def _find_reversals(connection: Connection, org_ids: Collection[int], reversal_id: str) -> Sequence[Row[Any]]:
    """Return the reversals of this id, each with the buyer and the owner of its order."""
    return connection.execute(
        select(reversals, orders.c.buyer_id, orders.c.owner_id)
        .join(orders, (orders.c.org_id == reversals.c.org_id) & (orders.c.order_id == reversals.c.order_id))
        .where(reversals.c.org_id.in_(org_ids), reversals.c.reversal_id == reversal_id)
    ).all()


def _only_order(candidates: Sequence[Row[Any]], reversal: Reversal) -> Row[Any]:
    found = [order for order in candidates if reversal.buyer in (None, order.buyer_id)]
    if not found:
        whose = f" of {reversal.buyer}" if reversal.buyer else ""
        raise Refused(Reason.NOT_FOUND, f"There is no order {reversal.order_id}{whose}: check the order_id.")
    if len(found) > 1:
        sentence = f"`buyer`: several organizations have an order {reversal.order_id}, so name who bought it."
        raise Refused(Reason.INVALID_JOB, sentence)
    return found[0]


def _take_back(connection: Connection, reversal: Reversal, order: Row[Any], now: datetime) -> Row[Any]:
    taken = _credits_to_take(reversal, order, left_of(connection, order))
    keys = accounts_of(connection, order.org_id, order.owner_id)
    balances = ledger.lock_accounts(connection, [keys[kind] for kind in taken])
    parts = {
        kind: _Part(credits_, max(0, credits_ - balances[keys[kind]].available)) for kind, credits_ in taken.items()
    }
    nothing = _Part(0, 0)
    email, sms = parts.get("email", nothing), parts.get("sms", nothing)
    made = connection.execute(
        insert(connection, reversals)
        .values(
            org_id=order.org_id,
            reversal_id=reversal.reversal_id,
            digest=reversal.digest(),
            order_id=order.order_id,
            kind=reversal.kind,
            email=email.credits,
            sms=sms.credits,
            email_debt=email.debt,
            sms_debt=sms.debt,
            reason=reversal.reason,
            at=now,
        )
        .on_conflict_do_nothing()
        .returning(*reversals.c)
    ).one_or_none()
    if made is None:  # another order was reversed under the same id at the same time
        return reverse_order(connection, reversal, now)
    moves = [
        Move(
            account=keys[kind],
            amount=part.debt - part.credits,
            debt=part.debt,
            cause_kind="reversal",
            cause_id=reversal.reversal_id,
            content=reversal_content(made),
        )
        for kind, part in parts.items()
    ]
    ledger.post(connection, moves, now)
    return _find_reversals(connection, [order.org_id], reversal.reversal_id)[0]


def left_of(connection: Connection, order: Row[Any]) -> dict[Kind, int]:
    """Return what an order brought and was not reversed yet."""
    reversed_ = connection.execute(
        select(*(func.coalesce(func.sum(reversals.c[kind]), 0).label(kind) for kind in KINDS)).where(
            reversals.c.org_id == order.org_id, reversals.c.order_id == order.order_id
        )
    ).one()
    return {kind: order._mapping[kind] - int(reversed_._mapping[kind]) for kind in KINDS}  # noqa: SLF001  public


def _credits_to_take(reversal: Reversal, order: Row[Any], left: Mapping[Kind, int]) -> dict[Kind, int]:
    """Return what is asked for by kind, as far as it is left."""
    asked = left if reversal.credits is None else {kind: reversal.credits.of(kind) for kind in KINDS}
    taken = {kind: min(asked[kind], left[kind]) for kind in KINDS if min(asked[kind], left[kind])}
    if not taken:
        sentence = (
            f"Order {order.order_id} brought {order.email} email and {order.sms} SMS credits, of which {left['email']} "
            f"and {left['sms']} were not reversed yet: there is nothing more to take back of what this asks for."
        )
        raise Refused(Reason.NOTHING_REMAINING, sentence)
    return taken


def reversal_content(reversal: Row[Any]) -> str:
    """Return the digest of a reversal by which its entries name it."""
    return content_of_fields(reversal.reversal_id, reversal.digest, reversal.order_id, reversal.kind, reversal.email,
                             reversal.sms, reversal.email_debt, reversal.sms_debt)  # fmt: skip
