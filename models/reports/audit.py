"""Audits: every invariant of the money is checked, on what is new and on a part of what was checked before.

An audit leaves marks, in its own transaction: for each account its last entry, and what it left; and the time of the
audit. The next one continues from the marks, so its work does not grow with the history. Why this leaves no gap:

* **Entries** are found by number, not by time. The ledger numbers them while the account is locked, so they become
  visible in that order: an entry that is not committed yet has a higher number than the mark. For each new entry its
  charges, refunds, order or correction is looked up, and its hash must follow from the one that the mark has.
* **Charges and orders** are found by time, for the opposite direction: a charge without an entry moves no account. They
  are read from the time of the last audit on, with an overlap. `created_at`, `refunded_at` and `at` are when the
  transaction that writes them began, by the database's clock, so a row may appear later than its time says: by as long
  as that transaction takes. A worker that stood still for longer within it may be late with a charge. That is looked up
  with its entry, as above, and by the circle.
* **What was checked before** is checked again in a circle (audit_marks.py), by the same queries.
* **How things stand now** is checked as a whole: users, accounts, leases, what waits, and the database's own guards.

What is found is kept (findings.py). The marks of its account stay until it is resolved or acknowledged; all others move
on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, select

from models.database.engine import Database
from models.database.guards import broken_guards
from models.database.schema import audit_progress
from models.database.statements import insert, search_by_index
from models.messages.base import Json
from models.reports.audit_marks import check_first, move_circle, move_marks, new_stretches, next_again
from models.reports.audit_scope import (
    BEGINNING,
    END,
    AuditScope,
    Stretch,
    examined_counts,
    given_stretches,
    stretch_params,
    whole_history,
)
from models.reports.findings import (
    SUBJECT_MAX,
    Finding,
    alarming_findings,
    holding_accounts,
    record_findings,
    resolve_checked,
)
from models.reports.invariants import FINDINGS_MAX, Invariant, history_invariants, state_invariants
from models.reports.state_invariants import state_params

OVERLAP = timedelta(minutes=20)
"""How much later than its time says a row may appear: twice the longest that one transaction of the ledger can take
(fewer than ten statements, each ended by the database after a minute)."""
NO_PARAMETERS: Mapping[str, Any] = {}
GUARDS = "The database has its constraints and triggers"
"""The invariant that is checked by the database's catalogue (database/guards.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRules:
    """What an audit has to know: the longest that a job waits for an attempt, and what operators have set.

    A message may be unknown for `unknown_for`. `again` is how much of what was checked before is checked again:
    entries, and credits charged and given back.
    """

    longest_wait: timedelta
    unknown_for: timedelta
    again: int


@dataclass(frozen=True, slots=True)
class AuditReport:
    """All findings that alarm now, and how many rows of each table with history were examined, and examined again."""

    findings: list[Finding]
    whole: bool
    since: datetime | None
    """The time from which on charges and orders were examined; None: all of them."""
    examined: dict[str, int] = field(default_factory=dict)
    again: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> Json:
        """Return the report as an answer."""
        return {
            "status": "failed" if self.findings else "done",
            "full": self.whole,
            "since": self.since.isoformat() if self.since else None,
            "examined": self.examined,
            "again": self.again,
            "findings": [
                {"invariant": finding.invariant, "subject": finding.subject, "difference": finding.difference}
                for finding in self.findings
            ],
        }


def run_audit(database: Database, now: datetime, rules: AuditRules, *, whole: bool = False) -> AuditReport:
    """Audit what is new and a part of what is not, or the whole history; keep what is found, and move the marks."""
    return database.write_isolated(lambda connection: audit_once(connection, now, rules, whole=whole))


def audit_once(connection: Connection, now: datetime, rules: AuditRules, *, whole: bool = False) -> AuditReport:
    """Do the same in the caller's transaction."""
    checked_at = connection.execute(select(audit_progress.c.checked_at)).scalar()
    if whole or checked_at is None:
        return _audit_whole(connection, now, rules)
    return _audit_next(connection, now, rules, checked_at - OVERLAP)


def _audit_whole(connection: Connection, now: datetime, rules: AuditRules) -> AuditReport:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")  # a long history takes its time
        connection.exec_driver_sql("SET LOCAL enable_seqscan = on")  # and is read fastest in its own order
    scope = whole_history()
    found, cut = _find(connection, [*state_invariants(), *history_invariants(scope)], _state_params(now, rules))
    found += find_broken_guards(connection)
    record_findings(connection, found, now, cut=cut, by_whole=True)
    move_marks(connection, now, now - OVERLAP, whole=True)
    check_first(connection)
    _note_progress(connection, now, whole=not found)
    return AuditReport(alarming_findings(connection), whole=True, since=None, examined=_count(connection, scope))


def _audit_next(connection: Connection, now: datetime, rules: AuditRules, since: datetime) -> AuditReport:
    search_by_index(connection)
    found, cut = _find(connection, state_invariants(), _state_params(now, rules))
    found += find_broken_guards(connection)
    new = new_stretches(connection, since)
    again = next_again(connection, rules.again)
    repeated = [each.stretch for each in again]
    scope = given_stretches(connection.dialect.name)
    everything = stretch_params(connection, [*new, *repeated], _recent(new, since))
    found_in_history, cut_in_history = _find(connection, history_invariants(scope), everything)
    record_findings(connection, [*found, *found_in_history], now, cut=cut | cut_in_history, by_whole=False)
    if not cut_in_history:
        held = holding_accounts(connection)
        resolve_checked(connection, move_circle(connection, again, held, now), now)
        move_marks(connection, now, now - OVERLAP, whole=False)
        _note_progress(connection, now, whole=False)
    examined = _count(connection, scope, stretch_params(connection, new, since))
    counted_again = _count(connection, scope, stretch_params(connection, repeated, END))
    return AuditReport(
        alarming_findings(connection),
        whole=False,
        since=since,
        examined=examined,
        again={"accounts": len(again), **counted_again},
    )


def _recent(new: Sequence[Stretch], since: datetime) -> datetime:
    """Return the time from which on refunds are looked at: that of the account that is held for the longest time."""
    return min([since, *(stretch.since for stretch in new if stretch.since > BEGINNING)])


def _state_params(now: datetime, rules: AuditRules) -> dict[str, datetime]:
    return state_params(now, longest_wait=rules.longest_wait + OVERLAP, unknown_for=rules.unknown_for)


def _find(
    connection: Connection, invariants: Sequence[Invariant], parameters: Mapping[str, Any]
) -> tuple[list[Finding], set[str]]:
    """Return what violates the invariants, and the invariants with more violations than are read."""
    found = list(find_violations(connection, invariants, parameters))
    names = [finding.invariant for finding in found]
    return found, {name for name in set(names) if names.count(name) >= FINDINGS_MAX}


def _count(connection: Connection, scope: AuditScope, parameters: Mapping[str, Any] = NO_PARAMETERS) -> dict[str, int]:
    return {
        table: connection.execute(query, parameters).scalar_one() for table, query in examined_counts(scope).items()
    }


def find_violations(
    connection: Connection, invariants: Sequence[Invariant], parameters: Mapping[str, Any]
) -> Iterator[Finding]:
    """Yield what violates each of these invariants, in the caller's transaction."""
    for invariant in invariants:
        for row in connection.execute(invariant.violations, parameters):
            org_id, account_id, subject, *difference = row
            words = ", ".join(str(part) for part in difference)
            yield Finding(invariant.name, str(subject)[:SUBJECT_MAX], words, org_id, account_id)


def find_broken_guards(connection: Connection) -> Iterator[Finding]:
    """Yield the constraints and triggers of the database that are missing or do not work."""
    for guard, difference in broken_guards(connection):
        yield Finding(GUARDS, guard, difference)


def _note_progress(connection: Connection, now: datetime, *, whole: bool) -> None:
    progress = {"checked_at": now, **({"whole_at": now} if whole else {})}
    connection.execute(
        insert(connection, audit_progress)
        .values(id=1, **progress)
        .on_conflict_do_update(index_elements=[audit_progress.c.id], set_=progress)
    )
