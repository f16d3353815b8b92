"""Findings: violations of invariants, each kept as a row as long as it stands, and afterwards.

A finding alarms until somebody acknowledges it, saying why. It alarms again if its difference changes, or if it comes
back after it was resolved. It is resolved by an audit that has looked where it was and does not find it any more.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, case, select, true, update

from models.database.schema import findings
from models.database.statements import insert
from models.money.accounts import AccountKey

SUBJECT_MAX = 200
"""Characters that are stored of a subject."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One violation of an invariant: in the history of an account, or of none."""

    invariant: str
    subject: str
    difference: str
    org_id: int = 0
    account_id: int | None = None

    @property
    def key(self) -> tuple[int, str, str]:
        """What tells it from all other findings."""
        return self.org_id, self.invariant, self.subject


is_standing = findings.c.resolved_at.is_(None)
"""Whether a finding was there when an audit last looked."""
is_alarming = and_(is_standing, findings.c.acknowledged_at.is_(None))
"""Whether it stands, and nobody has said why."""
is_holding = and_(is_alarming, findings.c.account_id.is_not(None), findings.c.by_whole.is_(False))
"""Whether it keeps the marks of its account where they are, so that the next audit looks there again."""


def record_findings(
    connection: Connection, found: Iterable[Finding], now: datetime, *, cut: Collection[str], by_whole: bool
) -> None:
    """Store what an audit has found, and resolve what it has not found any more.

    `cut` are the invariants with more violations than were read.
    """
    by_key = {finding.key: finding for finding in found}
    rows = [
        {
            "org_id": finding.org_id,
            "account_id": finding.account_id,
            "by_whole": by_whole,
            "invariant": finding.invariant,
            "subject": finding.subject,
            "difference": finding.difference,
            "first_at": now,
            "last_at": now,
        }
        for finding in by_key.values()
    ]
    if rows:
        connection.execute(_upsert(connection), rows)
    standing = connection.execute(select(findings).where(is_standing, findings.c.last_at < now)).all()
    gone = [
        row.id
        for row in standing
        if (row.org_id, row.invariant, row.subject) not in by_key
        and row.invariant not in cut
        and (by_whole or _was_looked_for(row))
    ]
    resolve(connection, gone, now)


def _was_looked_for(row: Row[Any]) -> bool:
    """Whether every audit looks where a finding was."""
    return row.account_id is None or (row.acknowledged_at is None and not row.by_whole)


def _upsert(connection: Connection) -> Any:  # noqa: ANN401  an insert of either dialect
    made = insert(connection, findings)
    again, before = made.excluded, findings.c
    is_the_same = and_(before.resolved_at.is_(None), before.difference == again.difference)
    changed = {
        "account_id": again.account_id,
        "by_whole": case((before.resolved_at.is_(None), and_(before.by_whole, again.by_whole)), else_=again.by_whole),
        "difference": again.difference,
        "first_at": case((before.resolved_at.is_(None), before.first_at), else_=again.first_at),
        "last_at": again.last_at,
        "resolved_at": None,
        **{
            name: case((is_the_same, before[name]), else_=None)
            for name in ("acknowledged_at", "acknowledged_by", "note")
        },
    }
    return made.on_conflict_do_update(index_elements=[before.org_id, before.invariant, before.subject], set_=changed)


def resolve(connection: Connection, ids: Sequence[int], now: datetime) -> None:
    """Note that findings are there no more."""
    if ids:
        connection.execute(update(findings).where(findings.c.id.in_(ids)).values(resolved_at=now))


def resolve_checked(connection: Connection, checked: Mapping[AccountKey, datetime], now: datetime) -> None:
    """Resolve what was found in accounts whose whole history was checked since a time, if it was not found since then.

    It is for findings for which audits do not look in particular: acknowledged ones, and those of whole audits.
    """
    rows = connection.execute(select(findings).where(is_standing, findings.c.account_id.is_not(None)))
    gone = [
        row.id
        for row in rows
        if (since := checked.get(AccountKey(row.org_id, row.account_id))) is not None and row.last_at < since
    ]
    resolve(connection, gone, now)


def holding_accounts(connection: Connection) -> set[AccountKey]:
    """Return the accounts whose marks stay where they are."""
    query = select(findings.c.org_id, findings.c.account_id).where(is_holding).distinct()
    return {AccountKey(*row) for row in connection.execute(query)}


def alarming_findings(connection: Connection) -> list[Finding]:
    """Return all findings that stand and that nobody has acknowledged, in the order in which they were found."""
    query = select(findings).where(is_alarming).order_by(findings.c.first_at, findings.c.id)
    return [
        Finding(row.invariant, row.subject, row.difference, row.org_id, row.account_id)
        for row in connection.execute(query)
    ]


def list_findings(connection: Connection, *, everything: bool = False) -> Sequence[Row[Any]]:
    """Return the findings that stand, or all there ever were, the newest first."""
    query = select(findings).where(true() if everything else is_standing)
    return connection.execute(query.order_by(findings.c.last_at.desc(), findings.c.id.desc())).all()


def acknowledge_findings(
    connection: Connection, ids: Sequence[int] | None, *, operator: str, note: str | None, now: datetime
) -> list[Row[Any]]:
    """Note who has seen findings that alarm, and why they may stand; all of them if `ids` is None. Returns these."""
    chosen = is_alarming if ids is None else and_(is_alarming, findings.c.id.in_(ids))
    acknowledged = connection.execute(
        update(findings)
        .where(chosen)
        .values(acknowledged_at=now, acknowledged_by=operator, note=note)
        .returning(*findings.c)
    )
    return sorted(acknowledged, key=lambda row: row.id)
