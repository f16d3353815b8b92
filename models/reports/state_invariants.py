"""Invariants of how things stand now: users, accounts, leases, jobs that wait. Every audit checks all of them.

Each query returns (organization, account, subject, difference, …); the account is NULL where a violation is of none.
What depends on the time of the audit are parameters (`state_params`), so that the queries are built once.
"""

from datetime import datetime, timedelta

from sqlalchemy import BigInteger, and_, bindparam, false, func, null, or_, select
from sqlalchemy import cast as sql_cast

from models.database.schema import (
    UtcDateTime,
    accounts,
    audit_marks,
    charges,
    entries,
    leases,
    owner_changes,
    users,
)
from models.messages.fields import KINDS
from models.reports.audit_scope import Query, account_name
from models.reports.rollup import same_account
from models.reports.texts import text, words
from models.sends.charges import State
from models.sends.leases import leased_jobs

STALE_AFTER = timedelta(minutes=10)
"""How long after its end a lease may still be there before that is a fault: the sweeper ends them within seconds."""
NO_ACCOUNT = sql_cast(null(), BigInteger)


def state_params(now: datetime, *, longest_wait: timedelta, unknown_for: timedelta) -> dict[str, datetime]:
    """Return the parameters of the queries.

    `longest_wait` is the longest that a job may wait for an attempt, `unknown_for` how long a message may be unknown.
    """
    return {
        "stale_before": now - STALE_AFTER,
        "due_until": now + longest_wait,
        "unknown_before": now - unknown_for,
    }


def below_zero() -> Query:
    """Return accounts with less than nothing."""
    return select(accounts.c.org_id, accounts.c.id, account_name(), text(accounts.c.available)).where(
        or_(accounts.c.available < 0, accounts.c.debt < 0)
    )


def missing_accounts() -> Query:
    """Return users who do not have an account of each kind."""
    count = func.count(accounts.c.id)
    return (
        select(users.c.org_id, NO_ACCOUNT, users.c.id, words(count, " accounts"))
        .outerjoin_from(users, accounts, (accounts.c.org_id == users.c.org_id) & (accounts.c.owner_id == users.c.id))
        .group_by(users.c.id, users.c.org_id)
        .having(count != len(KINDS))
    )


def chains() -> Query:
    """Return users whose credit owner has none to share."""
    owner = users.alias("owner")
    wrong = or_(owner.c.id.is_(None), owner.c.credit_owner_id != owner.c.id, owner.c.org_id != users.c.org_id)
    return (
        select(users.c.org_id, NO_ACCOUNT, users.c.id, words("owner ", users.c.credit_owner_id))
        .outerjoin_from(users, owner, owner.c.id == users.c.credit_owner_id)
        .where(wrong)
    )


def wrong_credit_owners() -> Query:
    """Return users whose credit owner, or its version, is not that of their last change."""
    last, later = owner_changes.alias("last"), owner_changes.alias("later")
    is_last = and_(
        last.c.org_id == users.c.org_id, last.c.user_id == users.c.id, last.c.version == users.c.owner_version
    )
    is_later = and_(
        later.c.org_id == users.c.org_id, later.c.user_id == users.c.id, later.c.version > users.c.owner_version
    )
    never_changed = and_(users.c.owner_version == 0, users.c.credit_owner_id == users.c.id)
    is_right = or_(never_changed, and_(users.c.owner_version > 0, last.c.new_owner_id == users.c.credit_owner_id))
    difference = words("owner ", users.c.credit_owner_id, " by change ", users.c.owner_version)
    changed_to = words("which says ", func.coalesce(last.c.new_owner_id, "nothing"))
    return (
        select(users.c.org_id, NO_ACCOUNT, users.c.id, difference, changed_to)
        .outerjoin_from(users, last, is_last)
        .where(or_(~func.coalesce(is_right, false()), select(later.c.version).where(is_later).exists()))
    )


def stale_leases() -> Query:
    """Return jobs whose lease ended long ago."""
    stale = bindparam("stale_before", type_=UtcDateTime)
    leased = leased_jobs(leases.c.until < stale).subquery("leased")
    its_job = (charges.c.org_id == leased.c.org_id) & (charges.c.job_id == leased.c.job_id)
    # A subquery of each job, so that planners begin with the leases. They know how few charges are sending, and would
    # rather read all charges to find these.
    held_until = select(charges.c.lease_until).where(its_job, charges.c.state == State.SENDING).scalar_subquery()
    job = select(leased.c.org_id, leased.c.job_id, held_until.label("held_until")).cte("job")
    held = job.prefix_with("MATERIALIZED")
    return select(held.c.org_id, NO_ACCOUNT, held.c.job_id, words("lease ended at ", held.c.held_until)).where(
        held.c.held_until < stale
    )


def due_too_late() -> Query:
    """Return jobs that are due later than any retry can be."""
    return select(charges.c.org_id, NO_ACCOUNT, charges.c.job_id, words("due at ", charges.c.due_at)).where(
        charges.c.due_at > bindparam("due_until", type_=UtcDateTime)
    )


def unknown_too_long() -> Query:
    """Return messages about which nobody has decided for too long."""
    since = charges.c.unknown_since
    return select(charges.c.org_id, NO_ACCOUNT, charges.c.job_id, words("unknown since ", since)).where(
        since < bindparam("unknown_before", type_=UtcDateTime)
    )


def not_as_their_last_entry() -> Query:
    """Return accounts that do not hold what their last entry says."""
    last = and_(same_account(entries), entries.c.seq == accounts.c.seq)
    differs = or_(
        entries.c.seq.is_(None),
        entries.c.balance_after != accounts.c.available,
        entries.c.debt_after != accounts.c.debt,
        entries.c.hash != accounts.c.hash,
    )
    return (
        select(
            accounts.c.org_id,
            accounts.c.id,
            account_name(),
            words("balance ", accounts.c.available, ", debt ", accounts.c.debt),
            words("entry ", accounts.c.seq, " says ", entries.c.balance_after, ", debt ", entries.c.debt_after),
        )
        .outerjoin_from(accounts, entries, last)
        .where(differs)
    )


def not_as_checked() -> Query:
    """Return accounts that have fallen behind their marks, or differ from them without a new entry."""
    same_entry = accounts.c.seq == audit_marks.c.seq
    differs = or_(
        accounts.c.hash != audit_marks.c.hash,
        accounts.c.available != audit_marks.c.balance,
        accounts.c.debt != audit_marks.c.debt,
    )
    return (
        select(
            accounts.c.org_id,
            accounts.c.id,
            account_name(),
            words("entry ", accounts.c.seq, " leaves ", accounts.c.available, " and ", accounts.c.hash),
            words("entry ", audit_marks.c.seq, " left ", audit_marks.c.balance, " and ", audit_marks.c.hash),
        )
        .join_from(accounts, audit_marks, same_account(audit_marks))
        .where(or_(accounts.c.seq < audit_marks.c.seq, and_(same_entry, differs)))
    )
