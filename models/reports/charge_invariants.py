"""Invariants of charges, orders, corrections and changes of owner: what each of them must have, and must agree with.

Each query returns (organization, account, subject, difference, …).
"""

from sqlalchemy import ColumnElement, FromClause, and_, case, func, literal, or_, select, union_all

from models.database.schema import accounts, adjustments, charges, entries, leases, orders, owner_changes, reversals
from models.database.statements import count_keys
from models.messages.fields import KINDS
from models.reports.audit_scope import (
    AuditScope,
    Query,
    charges_in,
    is_account_of,
    orders_in,
)
from models.reports.rollup import same_account
from models.reports.texts import words

# -- charges ----------------------------------------------------------------------------------------------------------


def _has_entry(charge: FromClause, kind: str, cause: str, at: str) -> ColumnElement[bool]:
    """Whether an entry of the charge's account was made for it, at the time that the charge says."""
    its_entry = and_(
        entries.c.org_id == charge.c.org_id,
        entries.c.account_id == charge.c.account_id,
        entries.c.cause_kind == kind,
        entries.c.cause_id == charge.c[cause],
        entries.c.at == charge.c[at],
    )
    return select(entries.c.seq).where(its_entry).exists()


def charges_without_entry(scope: AuditScope) -> Query:
    """Return charges that no entry has paid for."""
    charge = charges_in(scope)
    return select(
        charge.c.org_id, charge.c.account_id, charge.c.job_id, words("no entry of -", charge.c.credits)
    ).where(~_has_entry(charge, "charge", "charged_by", "created_at"))


def refunds_without_entry(scope: AuditScope) -> Query:
    """Return charges that no entry has given back."""
    charge = charges_in(scope)
    return select(
        charge.c.org_id, charge.c.account_id, charge.c.job_id, words("no entry of ", charge.c.refunded)
    ).where(charge.c.refunded > 0, ~_has_entry(charge, "refund", "refunded_by", "refunded_at"))


def unearned_refunds(scope: AuditScope) -> Query:
    """Return sent messages that gave back something else than the credits of the recipients who were refused.

    One that was sent reached somebody. The schema has the rest: what failed gave back everything, and what is not
    final nothing. Whoever removes the recipients must leave their number.
    """
    charge = charges_in(scope)
    refused = func.coalesce(count_keys(charge.c.recipients_refused), 0)
    is_wrong = or_(charge.c.refunded != refused, charge.c.refunded >= charge.c.credits)
    return select(
        charge.c.org_id,
        charge.c.account_id,
        charge.c.job_id,
        words("gave back ", charge.c.refunded, " of ", charge.c.credits),
        words(refused, " recipients refused"),
    ).where(charge.c.state == "sent", is_wrong)


def wrong_payers(scope: AuditScope) -> Query:
    """Return charges that the sender's credit owner of that time has not paid, or from an account of another kind."""
    charge = charges_in(scope)
    owner = _owner_then(charge.c.org_id, charge.c.sender, charge.c.owner_version)
    return (
        select(
            charge.c.org_id,
            charge.c.account_id,
            charge.c.job_id,
            words("paid by ", accounts.c.owner_id, "/", accounts.c.kind),
            words("should be ", owner, "/", charge.c.kind),
        )
        .outerjoin_from(charge, accounts, same_account(charge))
        .where(or_(accounts.c.id.is_(None), accounts.c.owner_id != owner, accounts.c.kind != charge.c.kind))
    )


def bulks(scope: AuditScope) -> Query:
    """Return bulk jobs that do not cost what their messages cost, or are missing."""
    charge, bulk, message = charges_in(scope), charges.alias("bulk"), charges.alias("message")
    found = (
        select(charge.c.org_id, charge.c.account_id, charge.c.bulk_id)
        .where(charge.c.bulk_id.is_not(None))
        .distinct()
        .subquery("found")
    )
    of_it = and_(message.c.org_id == found.c.org_id, message.c.bulk_id == found.c.bulk_id)
    total = select(func.sum(message.c.credits)).where(of_it).scalar_subquery()
    its_bulk = and_(bulk.c.org_id == found.c.org_id, bulk.c.job_id == found.c.bulk_id, bulk.c.state == "bulk")
    return (
        select(
            found.c.org_id,
            found.c.account_id,
            found.c.bulk_id,
            words("costs ", bulk.c.credits),
            words("its messages ", total),
        )
        .outerjoin_from(found, bulk, its_bulk)
        .where(or_(bulk.c.credits.is_(None), bulk.c.credits != total))
    )


def waiting_for_nothing(scope: AuditScope) -> Query:
    """Return jobs that wait and will never be due."""
    charge, bulk = charges_in(scope), charges.alias("bulk")
    due = and_(bulk.c.org_id == charge.c.org_id, bulk.c.job_id == charge.c.bulk_id, bulk.c.due_at.is_not(None))
    return select(charge.c.org_id, charge.c.account_id, charge.c.job_id, words("bulk ", charge.c.bulk_id)).where(
        charge.c.state == "waiting", charge.c.due_at.is_(None), ~select(bulk.c.job_id).where(due).exists()
    )


def held_without_lease(scope: AuditScope) -> Query:
    """Return jobs that are being sent and will never be given up."""
    charge = charges_in(scope)
    its_lease = and_(leases.c.org_id == charge.c.org_id, leases.c.lease_id == charge.c.lease_id)
    return select(charge.c.org_id, charge.c.account_id, charge.c.job_id, words("lease_id ", charge.c.lease_id)).where(
        charge.c.state == "sending", ~select(leases.c.lease_id).where(its_lease).exists()
    )


# -- orders and corrections -------------------------------------------------------------------------------------------


def orders_without_entry(scope: AuditScope) -> Query:
    """Return orders whose credits no entry has added."""
    order = orders_in(scope)
    return select(order.c.org_id, order.c.account_id, order.c.order_id, words("no entry of ", order.c.credits)).where(
        ~_has_entry(order, "purchase", "order_id", "at")
    )


def wrong_owners(scope: AuditScope) -> Query:
    """Return orders whose credits did not go to the credit owner whom the buyer had then."""
    order = orders_in(scope)
    then = _owner_then(order.c.org_id, order.c.buyer_id, order.c.owner_version)
    return select(
        order.c.org_id,
        order.c.account_id,
        order.c.order_id,
        words("credited to ", order.c.owner_id),
        words("should be ", then),
    ).where(order.c.owner_id != then)


def corrections_without_entry(scope: AuditScope) -> Query:
    """Return reversals and adjustments that no entry was made for."""
    order, stretch = orders_in(scope), scope.stretches
    of_orders = select(
        reversals.c.org_id, order.c.account_id, reversals.c.reversal_id.label("id"), literal("reversal").label("kind"),
        case((order.c.kind == "email", reversals.c.email), else_=reversals.c.sms).label("credits"),
    ).join_from(
        order, reversals, (reversals.c.org_id == order.c.org_id) & (reversals.c.order_id == order.c.order_id)
    )  # fmt: skip
    late = [
        select(reversals.c.org_id, accounts.c.id, reversals.c.reversal_id, literal("reversal"), reversals.c[kind])
        .join_from(reversals, orders, (orders.c.org_id == reversals.c.org_id)
                                    & (orders.c.order_id == reversals.c.order_id))
        .join(accounts, (accounts.c.org_id == orders.c.org_id) & (accounts.c.owner_id == orders.c.owner_id)
                      & (accounts.c.kind == kind))
        .where(reversals.c.at >= scope.recent)
        for kind in KINDS
    ]  # fmt: skip
    by_hand = (
        select(
            adjustments.c.org_id, accounts.c.id, adjustments.c.adjustment_id, literal("adjustment"),
            case((accounts.c.kind == "email", adjustments.c.email), else_=adjustments.c.sms),
        )
        .join_from(stretch, accounts, is_account_of(stretch))
        .join(adjustments, (adjustments.c.org_id == accounts.c.org_id)
                         & (adjustments.c.owner_id == accounts.c.owner_id))
        .where(adjustments.c.at >= stretch.c.since, adjustments.c.at < stretch.c.until)
    )  # fmt: skip
    made = union_all(of_orders, *late, by_hand).subquery("made")
    its_entry = and_(
        entries.c.org_id == made.c.org_id,
        entries.c.account_id == made.c.account_id,
        entries.c.cause_kind == made.c.kind,
        entries.c.cause_id == made.c.id,
    )
    return select(
        made.c.org_id, made.c.account_id, words(made.c.kind, " ", made.c.id), words("no entry of ", made.c.credits)
    ).where(made.c.credits != 0, ~select(entries.c.seq).where(its_entry).exists())


# -- changes of owner -------------------------------------------------------------------------------------------------


def wrong_owner_changes(scope: AuditScope) -> Query:
    """Return changes of owner that do not begin where the change before them ended, or whose change before is gone."""
    stretch = scope.stretches
    before = _owner_then(owner_changes.c.org_id, owner_changes.c.user_id, owner_changes.c.version - 1)
    is_owners = and_(owner_changes.c.org_id == accounts.c.org_id, owner_changes.c.user_id == accounts.c.owner_id)
    return (
        select(
            owner_changes.c.org_id,
            accounts.c.id,
            words(owner_changes.c.user_id, " change ", owner_changes.c.version),
            words("from ", owner_changes.c.old_owner_id),
            words("should be from ", before),
        )
        .join_from(stretch, accounts, is_account_of(stretch))
        .join(owner_changes, is_owners)
        .where(owner_changes.c.old_owner_id != before)
    )


def _owner_then(
    org_id: ColumnElement[int], user_id: ColumnElement[str], version: ColumnElement[int]
) -> ColumnElement[str]:
    """Return the credit owner of a user after their `version`th change; "nobody" if there is no such change."""
    change = owner_changes.alias("change")
    changed = (
        select(change.c.new_owner_id)
        .where(change.c.org_id == org_id, change.c.user_id == user_id, change.c.version == version)
        .scalar_subquery()
    )
    return case((version == 0, user_id), else_=func.coalesce(changed, "nobody"))
