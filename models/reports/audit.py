"""Audits: every invariant of the money is checked, over the whole history or over what is new since the last audit.

An audit that finds nothing leaves marks, in its own transaction: for each account its last entry and the balance there,
and the time of the audit. The next one continues from the marks, so its work does not grow with the history. Why this
leaves no gap:

* **Entries** are found by number, not by time. The ledger numbers them while the account is locked, so they become
  visible in that order: an entry that is not committed yet has a higher number than the mark. For each new entry its
  charge, refund or order is looked up, and the new entries must add up to the difference of the balance.
* **Charges and orders** are found by time, for the opposite direction: a charge without an entry moves no account. They
  are read from the time of the last audit on, with an overlap. `created_at`, `refunded_at` and `at` are when the
  transaction that writes them began, by the database's clock, so a row may appear later than its time says: by as long
  as that transaction takes. A worker that stood still for longer within it may be late with a charge. That is looked up
  with its entry only, as above, until an audit of the whole history.
* **Usage** is checked for accounts of which more was rolled up since the mark: the days add up to what was spent, and
  that, with what was added, to the balance there. Each single day is checked by an audit of the whole history.
* **A change to something marked** is seen by an audit of the whole history only.

While there are findings the marks stay, so every audit finds a fault again until it is repaired.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, or_, select

from models.database.engine import Database
from models.database.schema import accounts, audit_marks, audit_progress, usage_marks
from models.database.statements import insert, search_by_index
from models.messages.base import Json
from models.reports.audit_scope import WHOLE_HISTORY, AuditScope, rolled_since_mark
from models.reports.invariants import Invariant, examined_counts, history_invariants, state_invariants
from models.reports.rollup import same_account

FINDINGS_MAX = 100
"""Findings that are reported for each invariant; more would say nothing new."""
MARGIN = timedelta(minutes=20)
"""Twice the longest that one transaction of the ledger can take (fewer than ten statements, each ended by the database
after a minute)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One violation of an invariant."""

    invariant: str
    subject: str
    difference: str


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit found, and how many rows of each table with history it examined."""

    findings: list[Finding]
    whole: bool
    since: datetime | None
    """The time from which on charges and orders were examined; None: all of them."""
    examined: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> Json:
        """Return the report as an answer."""
        return {
            "status": "failed" if self.findings else "done",
            "full": self.whole,
            "since": self.since.isoformat() if self.since else None,
            "examined": self.examined,
            "findings": [
                {"invariant": finding.invariant, "subject": finding.subject, "difference": finding.difference}
                for finding in self.findings
            ],
        }


def run_audit(database: Database, now: datetime, *, retried_for: timedelta, whole: bool = False) -> AuditReport:
    """Audit what is new, or the whole history, and move the marks if nothing was found.

    `retried_for` is how long workers retry a transaction. An audit of the whole history that finds something removes
    the marks, so that the next audit starts from nothing.
    """
    return database.write_isolated(lambda connection: _audit(connection, now, retried_for, whole=whole))


def _audit(connection: Connection, now: datetime, retried_for: timedelta, *, whole: bool) -> AuditReport:
    if whole and connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")  # a long history takes its time
        connection.exec_driver_sql("SET LOCAL enable_seqscan = on")  # and is read fastest in its own order
    scope = WHOLE_HISTORY if whole else scope_since_marks(connection, retried_for)
    findings = list(find_violations(connection, state_invariants(now)))
    if not whole:
        search_by_index(connection)
    findings += find_violations(connection, history_invariants(scope))
    examined = {table: connection.execute(query).scalar_one() for table, query in examined_counts(scope).items()}
    if whole:
        connection.execute(delete(audit_marks))
        connection.execute(delete(audit_progress))
    if not findings:
        _mark(connection, now, whole=whole)
    return AuditReport(findings, whole, scope.since, examined)


def scope_since_marks(connection: Connection, retried_for: timedelta) -> AuditScope:
    """Return the scope that the marks do not cover."""
    checked_at = connection.execute(select(audit_progress.c.checked_at)).scalar()
    return AuditScope(marked=True, since=checked_at - retried_for - MARGIN if checked_at else None)


def find_violations(connection: Connection, invariants: Sequence[Invariant]) -> Iterator[Finding]:
    """Yield what violates each of these invariants, in the caller's transaction."""
    for invariant in invariants:
        for row in connection.execute(invariant.violations.limit(FINDINGS_MAX)):
            subject, *difference = row
            yield Finding(invariant.name, str(subject), ", ".join(str(part) for part in difference))


def _mark(connection: Connection, now: datetime, *, whole: bool) -> None:
    """Note how far everything was found to hold. Only marks are written, and nothing of the ledger is locked."""
    is_outdated = or_(audit_marks.c.seq.is_(None), audit_marks.c.seq != accounts.c.seq, rolled_since_mark)
    moved = (
        select(
            accounts.c.org_id,
            accounts.c.id,
            accounts.c.seq,
            accounts.c.available,
            accounts.c.debt,
            accounts.c.hash,
            usage_marks.c.seq,
        )
        .outerjoin_from(accounts, audit_marks, same_account(audit_marks))
        .outerjoin(usage_marks, same_account(usage_marks))
        .where(is_outdated)
    )
    columns = ("seq", "balance", "debt", "hash", "usage_seq")
    marks = insert(connection, audit_marks).from_select(["org_id", "account_id", *columns], moved)
    connection.execute(
        marks.on_conflict_do_update(
            index_elements=[audit_marks.c.org_id, audit_marks.c.account_id],
            set_={name: marks.excluded[name] for name in columns},
        )
    )
    progress = {"checked_at": now, **({"whole_at": now} if whole else {})}
    connection.execute(
        insert(connection, audit_progress)
        .values(id=1, **progress)
        .on_conflict_do_update(index_elements=[audit_progress.c.id], set_=progress)
    )
