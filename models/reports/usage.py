"""Usage: what each sender's messages cost now, by day. It is exact at any moment.

Days that were rolled up (rollup.py) are read from `usage_days`; entries behind an account's mark are read themselves.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, Select, Subquery, func, or_, select, union_all

from models.database.schema import accounts, charges, owner_changes, usage_days, usage_marks
from models.database.statements import is_among
from models.money.accounts import AccountKey
from models.reports.rollup import charged_by_entries, entries_between, rolled_seq, same_account, utc_day
from models.users.users import User

EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(9999, 12, 31, tzinfo=UTC)
_MIDNIGHT = time(tzinfo=UTC)

Query = Select[*tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class UsageScope:
    """Whose usage: everything that some accounts paid, or only what one sender sent of it.

    `marks` has each account with the last entry that was rolled up, or None if no entry lies behind that.
    """

    marks: Mapping[AccountKey, int | None]
    sender: str | None = None

    def covers(self, table: FromClause) -> ColumnElement[bool]:
        """Whether a row of charges or of `usage_days` belongs to this scope."""
        if self.sender is not None:
            its_own = table.c.org_id.in_({account.org_id for account in self.marks}) & (table.c.sender == self.sender)
            return its_own & table.c.account_id.is_not(None)
        return is_among((table.c.org_id, table.c.account_id), self.marks)


def paid_by(connection: Connection, owner: User) -> UsageScope:
    """Return the scope of what an owner paid, whoever sent it."""
    return UsageScope(_marks(connection, owner.org_id, [owner.id]))


def sent_by(connection: Connection, sender: User) -> UsageScope:
    """Return the scope of what a user sent, whoever paid it: they themselves, or anybody whose credits they spent."""
    owners = connection.execute(
        select(owner_changes.c.new_owner_id).where(
            owner_changes.c.org_id == sender.org_id, owner_changes.c.user_id == sender.id
        )
    )
    return UsageScope(_marks(connection, sender.org_id, {sender.id, *owners.scalars()}), sender.id)


def _marks(connection: Connection, org_id: int, owners: Collection[str]) -> dict[AccountKey, int | None]:
    found = connection.execute(
        select(accounts.c.org_id, accounts.c.id, accounts.c.seq, rolled_seq.label("rolled"))
        .outerjoin_from(accounts, usage_marks, same_account(usage_marks))
        .where(accounts.c.org_id == org_id, accounts.c.owner_id.in_(owners))
        .order_by(accounts.c.id)
    )
    return {AccountKey(row.org_id, row.id): row.rolled if row.seq > row.rolled else None for row in found}


def usage_by_day(scope: UsageScope, since: datetime | None, until: datetime | None) -> Subquery:
    """Return what charges made from `since` on and before `until` cost now: sender, day, kind, credits, messages.

    Several rows may have the same sender, day and kind. Full days come from `usage_days` and from the entries that are
    not rolled up yet; the parts of days at both ends come from their charges.
    """
    since, until = since or EARLIEST, until or LATEST
    first = since.toordinal() + (since.timetz() != _MIDNIGHT)
    end = until.toordinal()
    if first >= end:
        return _from_charges(scope, since, until).subquery("usage")
    first_midnight, last_midnight = _midnight(first), _midnight(end)
    parts = [
        _from_days(scope, first_midnight.date(), last_midnight.date()),
        *_from_entries(scope, first_midnight, last_midnight),
        *(
            _from_charges(scope, *span)
            for span in ((since, first_midnight), (last_midnight, until))
            if span[0] < span[1]
        ),
    ]
    return union_all(*parts).subquery("usage")


def _midnight(ordinal: int) -> datetime:
    return datetime.combine(date.fromordinal(ordinal), _MIDNIGHT)


def _from_days(scope: UsageScope, first: date, end: date) -> Query:
    return (
        select(usage_days.c.sender, usage_days.c.day, accounts.c.kind, usage_days.c.credits, usage_days.c.messages)
        .join(accounts, same_account(usage_days))
        .where(scope.covers(usage_days), usage_days.c.day >= first, usage_days.c.day < end)
    )


def _from_entries(scope: UsageScope, since: datetime, until: datetime) -> list[Query]:
    """Return the query of entries that are not rolled up yet, if there are any."""
    behind = [entries_between(account, seq + 1) for account, seq in scope.marks.items() if seq is not None]
    if not behind:
        return []
    charged = charged_by_entries(or_(*behind))
    day = utc_day(charged.c.created_at).label("day")
    return [
        select(charged.c.sender, day, charged.c.kind, charged.c.credits, charged.c.messages).where(
            scope.covers(charged), charged.c.created_at >= since, charged.c.created_at < until
        )
    ]


def _from_charges(scope: UsageScope, since: datetime, until: datetime) -> Query:
    day, cost = utc_day(charges.c.created_at), charges.c.credits - charges.c.refunded
    return (
        select(
            charges.c.sender,
            day.label("day"),
            charges.c.kind,
            func.sum(cost).label("credits"),
            func.count().label("messages"),
        )
        .where(scope.covers(charges), charges.c.created_at >= since, charges.c.created_at < until)
        .group_by(charges.c.sender, day, charges.c.kind)
    )
