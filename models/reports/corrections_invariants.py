"""The invariants of reversals and adjustments, and of the debt that reversals leave."""

from collections.abc import Sequence

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    String,
    Table,
    and_,
    case,
    func,
    literal,
    or_,
    select,
    union_all,
)
from sqlalchemy import cast as sql_cast

from models.database.schema import accounts, adjustments, entries, orders, reversals
from models.messages.fields import KINDS
from models.reports.audit_scope import (
    AuditScope,
    Invariant,
    Query,
    account_name,
    checked_debt,
    column_before,
    entry_name,
    has_moved,
    marked_accounts,
    new_entries,
)
from models.reports.rollup import same_account

_ITS_ORDER = and_(orders.c.org_id == reversals.c.org_id, orders.c.order_id == reversals.c.order_id)


def corrections_invariants(scope: AuditScope) -> list[Invariant]:
    """Return the invariants of reversals, adjustments and debts, for those in `scope`."""
    return [
        Invariant("A debt is what reversals found spent, less what purchases paid of it first", _debt_changes(scope)),
        Invariant("An account owes what its last entry says", _debts(scope)),
        Invariant("Each reversal has its entries: of the accounts that its order credited", _unentered(
            scope, reversals, "reversal_id", "reversal", orders.c.owner_id)),
        Invariant("Each adjustment has its entries: of the owner's accounts", _unentered(
            scope, adjustments, "adjustment_id", "adjustment", adjustments.c.owner_id)),
        Invariant("An order is reversed by no more than it brought", _over_reversed(scope)),
    ]  # fmt: skip


def _debt_changes(scope: AuditScope) -> Query:
    """Return entries that change a debt otherwise than their cause does.

    A reversal adds what it found spent, when the balance is used up. A purchase pays with all that it brings, until
    nothing is owed. Nothing else touches a debt.
    """
    new = new_entries(scope)
    before = func.coalesce(column_before(new, new.c.debt_after), new.c.checked_debt)
    spent = (
        select(case((new.c.kind == "email", reversals.c.email_debt), else_=reversals.c.sms_debt))
        .join(orders, _ITS_ORDER)
        .where(
            reversals.c.org_id == new.c.org_id,
            reversals.c.reversal_id == new.c.cause_id,
            orders.c.owner_id == new.c.owner_id,
        )
        .scalar_subquery()
    )
    bought = (
        select(case((new.c.kind == "email", orders.c.email), else_=orders.c.sms))
        .where(orders.c.org_id == new.c.org_id, orders.c.order_id == new.c.cause_id)
        .scalar_subquery()
    )
    should = case(
        (new.c.cause_kind == "reversal", spent),
        (new.c.cause_kind == "purchase", case((bought < before, -bought), else_=-before)),
        else_=0,
    )
    found = (
        select(
            entry_name(new).label("entry"),
            (new.c.debt_after - before).label("change"),
            should.label("should"),
            new.c.cause_kind,
            new.c.balance_after,
        )
        .where(new.c.seq.is_not(None))
        .subquery()
    )
    is_early = and_(found.c.cause_kind == "reversal", found.c.change > 0, found.c.balance_after > 0)
    return select(
        found.c.entry,
        literal("changes the debt by ") + sql_cast(found.c.change, String),
        literal("should by ") + func.coalesce(sql_cast(found.c.should, String), "nothing that is known"),
        literal("leaves ") + sql_cast(found.c.balance_after, String),
    ).where(or_(found.c.should.is_(None), found.c.should != found.c.change, is_early))


def _debts(scope: AuditScope) -> Query:
    last = select(entries.c.debt_after).where(same_account(entries), entries.c.seq == accounts.c.seq).scalar_subquery()
    return (
        select(
            account_name(),
            literal("owes ") + sql_cast(accounts.c.debt, String),
            literal("its last entry says ") + func.coalesce(sql_cast(last, String), "nothing"),
        )
        .select_from(marked_accounts(scope))
        .where(or_(has_moved(scope), accounts.c.debt != checked_debt), or_(last.is_(None), last != accounts.c.debt))
    )


def _recent(scope: AuditScope, table: Table) -> Sequence[ColumnElement[bool]]:
    return [] if scope.since is None else [table.c.at >= scope.since]


def _unentered(scope: AuditScope, table: Table, key: str, cause_kind: str, owner: ColumnElement[str]) -> Query:
    """Return the rows of `table` that lack an entry of the account of `owner`, in one of the kinds that they move."""
    parts = _by_kind(scope, table, key, owner).subquery("parts")
    its_entry = and_(
        accounts.c.org_id == parts.c.org_id,
        accounts.c.owner_id == parts.c.owner_id,
        accounts.c.kind == parts.c.kind,
        entries.c.cause_kind == cause_kind,
        entries.c.cause_id == parts.c.cause_id,
        entries.c.at == parts.c.at,
    )
    found = select(entries.c.seq).select_from(entries).join(accounts, same_account(entries)).where(its_entry)
    return select(
        parts.c.cause_id, literal("no entry of ") + sql_cast(parts.c.credits, String) + literal(" ") + parts.c.kind
    ).where(parts.c.credits != 0, ~found.exists())


def _by_kind(
    scope: AuditScope, table: Table, key: str, owner: ColumnElement[str]
) -> CompoundSelect[*tuple[object, ...]]:
    """Return the rows of `table` twice: what they move of each kind of credit."""
    source = table.join(orders, _ITS_ORDER) if table is reversals else table
    return union_all(
        *(
            select(
                table.c.org_id,
                table.c[key].label("cause_id"),
                owner.label("owner_id"),
                literal(kind).label("kind"),
                table.c[kind].label("credits"),
                table.c.at,
            )
            .select_from(source)
            .where(*_recent(scope, table))
            for kind in KINDS
        )
    )


def _over_reversed(scope: AuditScope) -> Query:
    """Return orders that were reversed in the scope, and by more than they brought in all."""
    key = reversals.c.org_id, reversals.c.order_id
    recent = select(*key).where(*_recent(scope, reversals)).distinct().subquery("recent")
    sums = {kind: func.sum(reversals.c[kind]) for kind in KINDS}
    taken = [
        sql_cast(sums[kind], String) + literal(" of ") + sql_cast(orders.c[kind], String) + literal(f" {kind}")
        for kind in KINDS
    ]
    return (
        select(orders.c.order_id, *taken)
        .join_from(recent, reversals, and_(*(column == recent.c[column.name] for column in key)))
        .join(orders, _ITS_ORDER)
        .group_by(orders.c.org_id, orders.c.order_id)
        .having(or_(*(sums[kind] > orders.c[kind] for kind in KINDS)))
    )
