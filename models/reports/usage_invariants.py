"""Invariants of usage: what was rolled up is what the entries and the charges say.

Each query returns (organization, account, subject, difference, …).
"""

from sqlalchemy import ColumnElement, FromClause, and_, func, literal, or_, select, union_all

from models.database.schema import accounts, charges, entries, usage_days, usage_marks
from models.reports.audit_scope import AuditScope, Query, account_name, is_account_of, of_stretch
from models.reports.rollup import USAGE_ENTRY, charged_by, is_usage_entry, same_account, utc_day
from models.reports.texts import words


def usage_sums(scope: AuditScope) -> Query:
    """Return accounts whose days do not add up to what was rolled up, or what was rolled up not to the balance there.

    The sum of all entries up to one is the balance that it left.
    """
    stretch = scope.stretches
    in_scope = select(stretch.c.org_id, stretch.c.account_id).distinct().subquery("in_scope")
    of_days = select(func.sum(usage_days.c.credits)).where(same_account(usage_days)).scalar_subquery()
    same_entry = and_(
        entries.c.org_id == usage_marks.c.org_id,
        entries.c.account_id == usage_marks.c.account_id,
        entries.c.seq == usage_marks.c.seq,
    )
    there = select(entries.c.balance_after).where(same_entry).scalar_subquery()
    too_many = func.coalesce(of_days, 0) - func.coalesce(usage_marks.c.spent, 0)
    too_much = func.coalesce(usage_marks.c.added - usage_marks.c.spent - func.coalesce(there, 0), 0)
    return (
        select(
            accounts.c.org_id,
            accounts.c.id,
            account_name(),
            words("the days have ", too_many, " credits too many"),
            words("the mark has ", too_much, " credits too many"),
        )
        .join_from(in_scope, accounts, is_account_of(in_scope))
        .outerjoin(usage_marks, same_account(usage_marks))
        .where(or_(too_many != 0, too_much != 0))
    )


def wrong_days(scope: AuditScope) -> Query:
    """Return days whose usage, with the entries that are not rolled up yet, differs from the cost of their charges."""
    stretch = scope.stretches
    first, end = utc_day(stretch.c.days_since), utc_day(stretch.c.days_until)
    stored = select(
        usage_days.c.org_id, usage_days.c.account_id, usage_days.c.sender, usage_days.c.day, usage_days.c.credits,
        usage_days.c.messages,
    ).join_from(
        stretch, usage_days, and_(of_stretch(stretch, usage_days), usage_days.c.day >= first, usage_days.c.day < end)
    )  # fmt: skip
    rest = _not_rolled_up(scope)
    unstored = select(
        rest.c.org_id, rest.c.account_id, rest.c.sender, utc_day(rest.c.created_at), rest.c.credits, rest.c.messages
    ).join_from(stretch, rest, and_(of_stretch(stretch, rest), _is_on_days(stretch, rest)))
    charged = select(
        charges.c.org_id, charges.c.account_id, charges.c.sender, utc_day(charges.c.created_at),
        charges.c.refunded - charges.c.credits, literal(-1),
    ).join_from(stretch, charges, and_(of_stretch(stretch, charges), _is_on_days(stretch, charges)))  # fmt: skip
    parts = union_all(stored, unstored, charged).subquery("parts")
    key = parts.c.org_id, parts.c.account_id, parts.c.sender, parts.c.day
    credits_, messages = func.sum(parts.c.credits), func.sum(parts.c.messages)
    wrong = (
        select(*key, credits_.label("credits"), messages.label("messages"))
        .group_by(*key)
        .having(or_(credits_ != 0, messages != 0))
        .subquery("wrong")
    )
    return select(
        accounts.c.org_id,
        accounts.c.id,
        words(accounts.c.owner_id, "/", accounts.c.kind, " ", wrong.c.day, " ", wrong.c.sender),
        words(wrong.c.credits, " credits too many"),
        words(wrong.c.messages, " messages too many"),
    ).join_from(wrong, accounts, same_account(wrong))


def _is_on_days(stretch: FromClause, table: FromClause) -> ColumnElement[bool]:
    return and_(table.c.created_at >= stretch.c.days_since, table.c.created_at < stretch.c.days_until)


def _not_rolled_up(scope: AuditScope) -> FromClause:
    """Return what the entries charged and gave back that are behind the marks of usage, of accounts with whole days."""
    stretch = scope.stretches
    is_behind = and_(of_stretch(stretch, entries), entries.c.seq > func.coalesce(usage_marks.c.seq, 0))
    return charged_by(
        select(*USAGE_ENTRY)
        .outerjoin_from(stretch, usage_marks, of_stretch(stretch, usage_marks))
        .join(entries, is_behind)
        .where(stretch.c.days_since < stretch.c.days_until, is_usage_entry)
    )
