"""The invariants of the money, each with a read-only query that returns its violations. Nothing is repaired here."""

from datetime import datetime, timedelta

from sqlalchemy import (
    ColumnElement,
    String,
    and_,
    case,
    func,
    literal,
    or_,
    select,
    union_all,
)
from sqlalchemy import cast as sql_cast

from models.database.schema import (
    accounts,
    adjustments,
    audit_marks,
    charges,
    entries,
    leases,
    orders,
    owner_changes,
    reversals,
    usage_days,
    usage_marks,
    users,
)
from models.messages.fields import KINDS
from models.reports.audit_scope import (
    AuditScope,
    Invariant,
    Query,
    account_name,
    checked_balance,
    checked_seq,
    column_before,
    entry_name,
    has_moved,
    is_behind_mark,
    marked_accounts,
    new_entries,
    recent_charges,
    recent_orders,
    rolled_since_mark,
)
from models.reports.corrections_invariants import corrections_invariants
from models.reports.rollup import charged_by_entries, is_charged_by, is_refunded_by, same_account, utc_day
from models.sends.leases import is_leased

STALE_AFTER = timedelta(minutes=10)
"""How long after its end a lease may still be there before that is a fault: the sweeper ends them within seconds."""


def state_invariants(now: datetime) -> list[Invariant]:
    """Return the invariants of users, accounts and leases. They have no history, so every audit checks all of them."""
    return [
        Invariant("No balance is below zero", _below_zero()),
        Invariant("Each user has an account of each kind", _missing_accounts()),
        Invariant("A credit owner owns their own credits, in the same organization", _chains()),
        Invariant("No attempt outlives its lease", _stale_leases(now)),
    ]


def history_invariants(scope: AuditScope) -> list[Invariant]:
    """Return the invariants of entries, charges and orders, for those in `scope`."""
    found = [
        Invariant("An account's entries add up to its balance, and are counted without a gap", _sums(scope)),
        Invariant("Each entry leaves the balance that the one before and its amount make", _continuity(scope)),
        Invariant("Each entry moves what it was made for: charges, refunds, an order, …", _orphans(scope)),
        Invariant("Each charge has its entry: of the payer's account, made when it was", _charges_without_entry(scope)),
        Invariant("Each refund has its entry: of the payer's account, made when it was", _refunds_without_entry(scope)),
        Invariant("Each order has its entries: of the owner's accounts", _orders_without_entry(scope)),
        Invariant("Each charge is paid by the sender's credit owner of that time, in its kind", _wrong_payers(scope)),
        Invariant("Each order is credited to the buyer's credit owner of that time", _wrong_owners(scope)),
        Invariant("A bulk job costs what its messages cost", _bulks(scope)),
        Invariant("What waits is due, itself or by its bulk job", _waiting_for_nothing(scope)),
        Invariant("What is being sent is held under a lease", _held_without_lease(scope)),
        Invariant(
            "An account's days of usage add up to its entries, as far as they were rolled up", _usage_sums(scope)
        ),
    ]
    found += corrections_invariants(scope)
    if scope.since is None:  # it reads everything, so only an audit of the whole history checks it
        found.append(Invariant("Each day of usage, with what is not rolled up yet, is what its charges cost", _days()))
    return found


def examined_counts(scope: AuditScope) -> dict[str, Query]:
    """Return, for each table with history, the query that counts its rows in `scope`."""
    return {
        "entries": select(func.count(new_entries(scope).c.seq)),
        "charges": select(func.count()).select_from(recent_charges(scope)),
        "orders": select(func.count()).select_from(orders).where(*recent_orders(scope)),
    }


# -- the state --------------------------------------------------------------------------------------------------------


def _below_zero() -> Query:
    return select(account_name(), sql_cast(accounts.c.available, String)).where(accounts.c.available < 0)


def _missing_accounts() -> Query:
    count = func.count(accounts.c.id)
    return (
        select(users.c.id, sql_cast(count, String) + literal(" accounts"))
        .outerjoin_from(users, accounts, accounts.c.owner_id == users.c.id)
        .group_by(users.c.id)
        .having(count != len(KINDS))
    )


def _chains() -> Query:
    owner = users.alias("owner")
    wrong = or_(owner.c.id.is_(None), owner.c.credit_owner_id != owner.c.id, owner.c.org_id != users.c.org_id)
    return (
        select(users.c.id, literal("owner ") + users.c.credit_owner_id)
        .outerjoin_from(users, owner, owner.c.id == users.c.credit_owner_id)
        .where(wrong)
    )


def _stale_leases(now: datetime) -> Query:
    stale = now - STALE_AFTER
    return select(charges.c.job_id, literal("lease ended at ") + sql_cast(charges.c.lease_until, String)).where(
        is_leased(leases.c.until < stale), charges.c.lease_until < stale
    )


# -- entries ----------------------------------------------------------------------------------------------------------


def _sums(scope: AuditScope) -> Query:
    total = checked_balance + func.coalesce(func.sum(entries.c.amount), 0)
    count = checked_seq + func.count(entries.c.seq)
    last = func.coalesce(func.max(entries.c.seq), checked_seq)
    moved = or_(has_moved(scope), accounts.c.available != checked_balance)
    return (
        select(
            account_name(),
            literal("balance ") + sql_cast(accounts.c.available, String),
            literal("entries add up to ") + sql_cast(total, String),
            literal("counted ") + sql_cast(accounts.c.seq, String),
            literal("entries ") + sql_cast(count, String),
        )
        .select_from(marked_accounts(scope).outerjoin(entries, is_behind_mark()))
        .where(moved)
        .group_by(accounts.c.org_id, accounts.c.id, audit_marks.c.seq, audit_marks.c.balance)
        .having(or_(total != accounts.c.available, count != accounts.c.seq, last != accounts.c.seq))
    )


def _continuity(scope: AuditScope) -> Query:
    new = new_entries(scope)
    before = func.coalesce(column_before(new, new.c.balance_after), new.c.checked_balance)
    chain = select(entry_name(new).label("entry"), (before + new.c.amount).label("should"), new.c.balance_after)
    found = chain.subquery()
    return select(
        found.c.entry,
        literal("should leave ") + sql_cast(found.c.should, String),
        literal("says ") + sql_cast(found.c.balance_after, String),
    ).where(found.c.should != found.c.balance_after)


def _orphans(scope: AuditScope) -> Query:
    new = new_entries(scope)
    charged = select(func.sum(charges.c.credits)).where(is_charged_by(new)).scalar_subquery()
    refunded = select(func.sum(charges.c.refunded)).where(is_refunded_by(new)).scalar_subquery()
    bought = (
        select(case((new.c.kind == "email", orders.c.email), else_=orders.c.sms))
        .where(
            orders.c.org_id == new.c.org_id, orders.c.order_id == new.c.cause_id, orders.c.owner_id == new.c.owner_id
        )
        .scalar_subquery()
    )
    changed_debt = new.c.debt_after - func.coalesce(column_before(new, new.c.debt_after), new.c.checked_debt)
    reversed_ = (
        select(-case((new.c.kind == "email", reversals.c.email), else_=reversals.c.sms))
        .where(reversals.c.org_id == new.c.org_id, reversals.c.reversal_id == new.c.cause_id)
        .scalar_subquery()
    )
    adjusted = (
        select(case((new.c.kind == "email", adjustments.c.email), else_=adjustments.c.sms))
        .where(
            adjustments.c.org_id == new.c.org_id,
            adjustments.c.adjustment_id == new.c.cause_id,
            adjustments.c.owner_id == new.c.owner_id,
        )
        .scalar_subquery()
    )
    should = case(
        (new.c.cause_kind == "opening", literal(0)),
        (new.c.cause_kind == "charge", -charged),
        (new.c.cause_kind == "refund", refunded),
        (new.c.cause_kind == "purchase", bought),
        (new.c.cause_kind == "reversal", reversed_),
        (new.c.cause_kind == "adjustment", adjusted),
    )
    found = (
        select(entry_name(new).label("entry"), (new.c.amount - changed_debt).label("moved"), should.label("should"))
        .where(new.c.seq.is_not(None))
        .subquery()
    )
    return select(
        found.c.entry,
        literal("moved ") + sql_cast(found.c.moved, String),
        literal("for ") + func.coalesce(sql_cast(found.c.should, String), "nothing"),
    ).where(or_(found.c.should.is_(None), found.c.should != found.c.moved))


# -- charges and orders -----------------------------------------------------------------------------------------------


def _charges_without_entry(scope: AuditScope) -> Query:
    recent = recent_charges(scope)
    its_entry = and_(
        entries.c.org_id == recent.c.org_id,
        entries.c.account_id == recent.c.account_id,
        entries.c.cause_kind == "charge",
        entries.c.cause_id == recent.c.charged_by,
        entries.c.at == recent.c.created_at,
    )
    return select(recent.c.job_id, literal("no entry of -") + sql_cast(recent.c.credits, String)).where(
        recent.c.account_id.is_not(None), ~select(entries.c.seq).where(its_entry).exists()
    )


def _refunds_without_entry(scope: AuditScope) -> Query:
    recent = recent_charges(scope)
    its_entry = and_(
        entries.c.org_id == recent.c.org_id,
        entries.c.account_id == recent.c.account_id,
        entries.c.cause_kind == "refund",
        entries.c.cause_id == recent.c.refunded_by,
        entries.c.at == recent.c.refunded_at,
    )
    return select(recent.c.job_id, literal("no entry of ") + sql_cast(recent.c.refunded, String)).where(
        recent.c.refunded > 0, ~select(entries.c.seq).where(its_entry).exists()
    )


def _wrong_payers(scope: AuditScope) -> Query:
    """Return charges that the sender's credit owner of that time has not paid, or from an account of another kind."""
    recent = recent_charges(scope)
    return (
        select(recent.c.job_id, literal("paid by ") + accounts.c.owner_id + literal("/") + accounts.c.kind)
        .join_from(recent, accounts, same_account(recent))
        .where(
            or_(
                accounts.c.owner_id != _owner_then(recent.c.org_id, recent.c.sender, recent.c.owner_version),
                accounts.c.kind != recent.c.kind,
            )
        )
    )


def _wrong_owners(scope: AuditScope) -> Query:
    """Return orders whose credits did not go to the credit owner whom the buyer had then."""
    then = _owner_then(orders.c.org_id, orders.c.buyer_id, orders.c.owner_version)
    return select(orders.c.order_id, literal("credited to ") + orders.c.owner_id).where(
        *recent_orders(scope), orders.c.owner_id != then
    )


def _owner_then(
    org_id: ColumnElement[int], user_id: ColumnElement[str], version: ColumnElement[int]
) -> ColumnElement[str]:
    """Return the credit owner of a user after their `version`th change; "nobody" if there is no such change."""
    changed = (
        select(owner_changes.c.new_owner_id)
        .where(owner_changes.c.org_id == org_id, owner_changes.c.user_id == user_id, owner_changes.c.version == version)
        .scalar_subquery()
    )
    return case((version == 0, user_id), else_=func.coalesce(changed, "nobody"))


def _bulks(scope: AuditScope) -> Query:
    recent, message = recent_charges(scope), charges.alias("message")
    of_it = and_(message.c.org_id == recent.c.org_id, message.c.bulk_id == recent.c.job_id)
    total = func.coalesce(select(func.sum(message.c.credits)).where(of_it).scalar_subquery(), 0)
    return select(
        recent.c.job_id, sql_cast(recent.c.credits, String), literal("its messages ") + sql_cast(total, String)
    ).where(recent.c.state == "bulk", total != recent.c.credits)


def _waiting_for_nothing(scope: AuditScope) -> Query:
    recent, bulk = recent_charges(scope), charges.alias("bulk")
    due = and_(bulk.c.org_id == recent.c.org_id, bulk.c.job_id == recent.c.bulk_id, bulk.c.due_at.is_not(None))
    return select(recent.c.job_id, literal("bulk ") + func.coalesce(recent.c.bulk_id, literal("none"))).where(
        recent.c.state == "waiting", recent.c.due_at.is_(None), ~select(bulk.c.job_id).where(due).exists()
    )


def _orders_without_entry(scope: AuditScope) -> Query:
    bought = [
        select(
            orders.c.org_id, orders.c.order_id, orders.c.owner_id, literal(kind).label("kind"),
            orders.c[kind].label("credits"),
        ).where(*recent_orders(scope))
        for kind in KINDS
    ]  # fmt: skip
    parts = union_all(*bought).subquery()
    matches = and_(
        entries.c.cause_kind == "purchase",
        entries.c.cause_id == parts.c.order_id,
        accounts.c.org_id == parts.c.org_id,
        accounts.c.owner_id == parts.c.owner_id,
        accounts.c.kind == parts.c.kind,
    )
    found = select(entries.c.seq).select_from(entries).join(accounts, same_account(entries))
    return select(parts.c.order_id, literal("no entry of ") + sql_cast(parts.c.credits, String)).where(
        parts.c.credits > 0, ~found.where(matches).exists()
    )


def _held_without_lease(scope: AuditScope) -> Query:
    recent = recent_charges(scope)
    its_lease = and_(leases.c.org_id == recent.c.org_id, leases.c.lease_id == recent.c.lease_id)
    return select(recent.c.job_id, literal("lease_id ") + func.coalesce(recent.c.lease_id, literal("none"))).where(
        recent.c.state == "sending", ~select(leases.c.lease_id).where(its_lease).exists()
    )


# -- usage ------------------------------------------------------------------------------------------------------------


def _usage_sums(scope: AuditScope) -> Query:
    """Return accounts whose usage was rolled up since their marks and differs from the sum of their entries.

    The sum of all entries up to one is the balance that it left.
    """
    of_days = func.coalesce(
        select(func.sum(usage_days.c.credits))
        .where(usage_days.c.org_id == usage_marks.c.org_id, usage_days.c.account_id == usage_marks.c.account_id)
        .scalar_subquery(),
        0,
    )
    same_entry = and_(
        entries.c.org_id == usage_marks.c.org_id,
        entries.c.account_id == usage_marks.c.account_id,
        entries.c.seq == usage_marks.c.seq,
    )
    balance = func.coalesce(select(entries.c.balance_after).where(same_entry).scalar_subquery(), 0)
    sums = usage_marks.c.added - usage_marks.c.spent
    return (
        select(
            account_name(),
            literal("days add up to ") + sql_cast(of_days, String),
            literal("spent ") + sql_cast(usage_marks.c.spent, String),
            literal("entries add up to ") + sql_cast(sums, String),
            literal("balance there ") + sql_cast(balance, String),
        )
        .select_from(marked_accounts(scope).join(usage_marks, same_account(usage_marks)))
        .where(or_(literal(not scope.marked), rolled_since_mark), or_(of_days != usage_marks.c.spent, balance != sums))
    )


def _days() -> Query:
    """Return days whose usage, with the entries that are not rolled up yet, differs from the cost of their charges."""
    of_account = and_(usage_marks.c.org_id == entries.c.org_id, usage_marks.c.account_id == entries.c.account_id)
    mark = select(usage_marks.c.seq).where(of_account).scalar_subquery()
    rest = charged_by_entries(entries.c.seq > func.coalesce(mark, 0))
    parts = union_all(
        select(
            usage_days.c.org_id,
            usage_days.c.account_id,
            usage_days.c.sender,
            usage_days.c.day,
            usage_days.c.credits,
            usage_days.c.messages,
        ),
        select(
            rest.c.org_id, rest.c.account_id, rest.c.sender, utc_day(rest.c.created_at), rest.c.credits, rest.c.messages
        ),
        select(
            charges.c.org_id,
            charges.c.account_id,
            charges.c.sender,
            utc_day(charges.c.created_at),
            charges.c.refunded - charges.c.credits,
            literal(-1),
        ).where(charges.c.account_id.is_not(None)),
    ).subquery("parts")
    key = accounts.c.owner_id, accounts.c.kind, parts.c.sender, parts.c.day
    credits_, messages = func.sum(parts.c.credits), func.sum(parts.c.messages)
    return (
        select(
            account_name(),
            parts.c.sender,
            parts.c.day,
            sql_cast(credits_, String) + literal(" credits too many"),
            sql_cast(messages, String) + literal(" messages too many"),
        )
        .join_from(parts, accounts, same_account(parts))
        .group_by(*key)
        .having(or_(credits_ != 0, messages != 0))
    )
