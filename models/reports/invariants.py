"""The invariants of the money, each with a read-only query that returns its violations. Nothing is repaired here."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import (
    ColumnElement,
    Exists,
    FromClause,
    String,
    and_,
    case,
    func,
    literal,
    not_,
    or_,
    select,
    union_all,
)
from sqlalchemy import cast as sql_cast

from models.database.schema import (
    accounts,
    audit_marks,
    charges,
    entries,
    leases,
    orders,
    usage_days,
    usage_marks,
    users,
)
from models.messages.fields import KINDS
from models.reports.audit_scope import (
    AuditScope,
    Query,
    checked_balance,
    checked_seq,
    has_moved,
    is_behind_mark,
    marked_accounts,
    new_entries,
    recent_charges,
    recent_orders,
    rolled_since_mark,
)
from models.reports.rollup import charged_by_entries, utc_day
from models.sends.leases import is_leased

STALE_AFTER = timedelta(minutes=10)
"""How long after its end a lease may still be there before that is a fault: the sweeper ends them within seconds."""


@dataclass(frozen=True, slots=True)
class Invariant:
    """An invariant, and the query that returns its violations as (subject, difference, …)."""

    name: str
    violations: Query


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
        Invariant("Each entry has its charge, refund or order: the same account and amount", _orphans(scope)),
        Invariant(
            "Each charge has its entry, or its bulk job has: the payer's account, the whole cost",
            _charges_without_entry(scope),
        ),
        Invariant("Each refund has its entry: the same account, the amount refunded", _refunds_without_entry(scope)),
        Invariant("Each order has its entries: the owner's accounts, what was bought", _orders_without_entry(scope)),
        Invariant("A bulk job costs what its messages cost, and knows how many they are", _bulks(scope)),
        Invariant("What waits is due, itself or by its bulk job", _waiting_for_nothing(scope)),
        Invariant("What is being sent is held under a lease", _held_without_lease(scope)),
        Invariant(
            "An account's days of usage add up to its entries, as far as they were rolled up", _usage_sums(scope)
        ),
    ]
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
    return select(_account_name(), sql_cast(accounts.c.available, String)).where(accounts.c.available < 0)


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
    wrong = or_(
        owner.c.id.is_(None), owner.c.credit_owner_id != owner.c.id, owner.c.organization != users.c.organization
    )
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
            _account_name(),
            literal("balance ") + sql_cast(accounts.c.available, String),
            literal("entries add up to ") + sql_cast(total, String),
            literal("counted ") + sql_cast(accounts.c.seq, String),
            literal("entries ") + sql_cast(count, String),
        )
        .select_from(marked_accounts(scope).outerjoin(entries, is_behind_mark()))
        .where(moved)
        .group_by(accounts.c.id, audit_marks.c.seq, audit_marks.c.balance)
        .having(or_(total != accounts.c.available, count != accounts.c.seq, last != accounts.c.seq))
    )


def _continuity(scope: AuditScope) -> Query:
    new = new_entries(scope)
    before = func.lag(new.c.balance_after).over(partition_by=new.c.account_id, order_by=new.c.seq)
    should = func.coalesce(before, new.c.checked_balance) + new.c.amount
    chain = select(new.c.cause, should.label("should"), new.c.balance_after).subquery()
    return select(
        chain.c.cause,
        literal("should leave ") + sql_cast(chain.c.should, String),
        literal("says ") + sql_cast(chain.c.balance_after, String),
    ).where(chain.c.should != chain.c.balance_after)


def _orphans(scope: AuditScope) -> Query:
    new = new_entries(scope)
    bulk = charges.alias("bulk")
    # As the value of a row: from an EXISTS PostgreSQL would make a join with all charges.
    alone = select(bulk.c.messages).where(bulk.c.job_id == charges.c.bulk_id).scalar_subquery().is_(None)
    causes = [
        _of_charge(new, "charge:", -charges.c.credits, alone),
        _of_charge(new, "refund:", charges.c.refunded),
        _of_bulk(new),
    ]
    causes += [_of_order(new, kind) for kind in KINDS]
    return select(new.c.cause, sql_cast(new.c.amount, String)).where(
        new.c.seq.is_not(None), *(not_(cause) for cause in causes)
    )


def _of_charge(new: FromClause, prefix: str, amount: ColumnElement[int], *conditions: ColumnElement[bool]) -> Exists:
    same = and_(
        new.c.cause.like(f"{prefix}%"),
        charges.c.job_id == func.substr(new.c.cause, len(prefix) + 1),
        charges.c.account_id == new.c.account_id,
        amount == new.c.amount,
        *conditions,
    )
    return select(charges.c.job_id).where(same).exists()


def _of_bulk(new: FromClause) -> Exists:
    """Whether an entry is that of a bulk job, whose messages were paid from the same account."""
    bulk, message = charges.alias("bulk"), charges.alias("message")
    same = and_(
        new.c.cause.like("charge:%"),
        bulk.c.job_id == func.substr(new.c.cause, len("charge:") + 1),
        # With IS NOT NULL, PostgreSQL would see how few rows match, and read all charges to find those first.
        func.coalesce(bulk.c.messages, 0) > 0,
        -bulk.c.credits == new.c.amount,
    )
    payer = select(func.min(message.c.account_id)).where(message.c.bulk_id == bulk.c.job_id).scalar_subquery()
    return select(bulk.c.job_id).where(same, payer == new.c.account_id).exists()


def _of_order(new: FromClause, kind: str) -> Exists:
    prefix, suffix = "purchase:", f":{kind}"
    length = func.length(new.c.cause) - len(prefix) - len(suffix)
    order_id = func.substr(new.c.cause, len(prefix) + 1, length)
    same = and_(
        # PostgreSQL refuses a negative length, so shorter causes must be sorted out first.
        orders.c.order_id == case((new.c.cause.like(f"{prefix}%{suffix}"), order_id)),
        orders.c[kind] == new.c.amount,
        orders.c.owner_id == new.c.owner_id,
        new.c.kind == kind,
    )
    return select(orders.c.order_id).where(same).exists()


# -- charges and orders -----------------------------------------------------------------------------------------------


def _charges_without_entry(scope: AuditScope) -> Query:
    recent = recent_charges(scope)
    same_account = entries.c.account_id == recent.c.account_id
    its_own = and_(
        same_account,
        entries.c.cause == literal("charge:") + recent.c.job_id,
        entries.c.amount == -recent.c.credits,
    )
    of_its_bulk = and_(same_account, entries.c.cause == literal("charge:") + recent.c.bulk_id)
    return select(recent.c.job_id, literal("no entry of -") + sql_cast(recent.c.credits, String)).where(
        recent.c.account_id.is_not(None),
        *(~select(entries.c.seq).where(matches).exists() for matches in (its_own, of_its_bulk)),
    )


def _refunds_without_entry(scope: AuditScope) -> Query:
    recent = recent_charges(scope)
    matches = and_(
        entries.c.cause == literal("refund:") + recent.c.job_id,
        entries.c.account_id == recent.c.account_id,
        entries.c.amount == recent.c.refunded,
    )
    return select(recent.c.job_id, literal("no entry of ") + sql_cast(recent.c.refunded, String)).where(
        recent.c.refunded > 0, ~select(entries.c.seq).where(matches).exists()
    )


def _bulks(scope: AuditScope) -> Query:
    recent, message = recent_charges(scope), charges.alias("message")
    of_it = message.c.bulk_id == recent.c.job_id
    total = func.coalesce(select(func.sum(message.c.credits)).where(of_it).scalar_subquery(), 0)
    count = select(func.count(message.c.job_id)).where(of_it).scalar_subquery()
    said = func.coalesce(recent.c.messages, count)
    return select(
        recent.c.job_id,
        sql_cast(recent.c.credits, String) + literal(" for ") + sql_cast(said, String),
        sql_cast(total, String) + literal(" for ") + sql_cast(count, String),
    ).where(recent.c.state == "bulk", or_(total != recent.c.credits, recent.c.messages != count))


def _waiting_for_nothing(scope: AuditScope) -> Query:
    recent, bulk = recent_charges(scope), charges.alias("bulk")
    due = and_(bulk.c.job_id == recent.c.bulk_id, bulk.c.due_at.is_not(None))
    return select(recent.c.job_id, literal("bulk ") + func.coalesce(recent.c.bulk_id, literal("none"))).where(
        recent.c.state == "waiting", recent.c.due_at.is_(None), ~select(bulk.c.job_id).where(due).exists()
    )


def _orders_without_entry(scope: AuditScope) -> Query:
    bought = [
        select(
            orders.c.order_id, orders.c.owner_id, literal(kind).label("kind"), orders.c[kind].label("credits")
        ).where(*recent_orders(scope))
        for kind in KINDS
    ]
    parts = union_all(*bought).subquery()
    matches = and_(
        entries.c.cause == literal("purchase:") + parts.c.order_id + literal(":") + parts.c.kind,
        entries.c.amount == parts.c.credits,
        entries.c.account_id == accounts.c.id,
        accounts.c.owner_id == parts.c.owner_id,
        accounts.c.kind == parts.c.kind,
    )
    found = select(entries.c.seq).select_from(entries).join(accounts, accounts.c.id == entries.c.account_id)
    return select(parts.c.order_id, literal("no entry of ") + sql_cast(parts.c.credits, String)).where(
        parts.c.credits > 0, ~found.where(matches).exists()
    )


def _held_without_lease(scope: AuditScope) -> Query:
    recent = recent_charges(scope)
    return select(recent.c.job_id, literal("lease_id ") + func.coalesce(recent.c.lease_id, literal("none"))).where(
        recent.c.state == "sending", ~select(leases.c.lease_id).where(leases.c.lease_id == recent.c.lease_id).exists()
    )


# -- usage ------------------------------------------------------------------------------------------------------------


def _usage_sums(scope: AuditScope) -> Query:
    """Return accounts whose usage was rolled up since their marks and differs from the sum of their entries.

    The sum of all entries up to one is the balance that it left.
    """
    of_days = func.coalesce(
        select(func.sum(usage_days.c.credits))
        .where(usage_days.c.account_id == usage_marks.c.account_id)
        .scalar_subquery(),
        0,
    )
    same_entry = and_(entries.c.account_id == usage_marks.c.account_id, entries.c.seq == usage_marks.c.seq)
    balance = func.coalesce(select(entries.c.balance_after).where(same_entry).scalar_subquery(), 0)
    sums = usage_marks.c.added - usage_marks.c.spent
    return (
        select(
            _account_name(),
            literal("days add up to ") + sql_cast(of_days, String),
            literal("spent ") + sql_cast(usage_marks.c.spent, String),
            literal("entries add up to ") + sql_cast(sums, String),
            literal("balance there ") + sql_cast(balance, String),
        )
        .select_from(marked_accounts(scope).join(usage_marks, usage_marks.c.account_id == accounts.c.id))
        .where(or_(literal(not scope.marked), rolled_since_mark), or_(of_days != usage_marks.c.spent, balance != sums))
    )


def _days() -> Query:
    """Return days whose usage, with the entries that are not rolled up yet, differs from the cost of their charges."""
    mark = select(usage_marks.c.seq).where(usage_marks.c.account_id == entries.c.account_id).scalar_subquery()
    rest = charged_by_entries(entries.c.seq > func.coalesce(mark, 0))
    parts = union_all(
        select(
            usage_days.c.account_id, usage_days.c.sender, usage_days.c.day, usage_days.c.credits, usage_days.c.messages
        ),
        select(rest.c.account_id, rest.c.sender, utc_day(rest.c.created_at), rest.c.credits, rest.c.messages),
        select(
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
            _account_name(),
            parts.c.sender,
            parts.c.day,
            sql_cast(credits_, String) + literal(" credits too many"),
            sql_cast(messages, String) + literal(" messages too many"),
        )
        .join_from(parts, accounts, accounts.c.id == parts.c.account_id)
        .group_by(*key)
        .having(or_(credits_ != 0, messages != 0))
    )


def _account_name() -> ColumnElement[str]:
    return (accounts.c.owner_id + literal("/") + accounts.c.kind).label("account")
