"""Audits: every invariant of the money, over all history or over what is new since the last one.

An audit that finds nothing leaves marks, in the transaction in which it looked: for each account the entry it came to
and the balance there, and the time at which it looked. The next one goes on from them, so its work does not grow with
history. Why that leaves no gap:

* **Entries** go by number, not by time. The ledger numbers them under the account's lock, so they become visible in
  the order of their numbers: an entry that is still uncommitted has a higher number than the mark. With each new entry
  its charge, refund or order is looked up, and the sum of the new entries is the balance's difference.
* **Charges and orders** go by time, for the other direction: a charge without any entry moves no account. They are
  looked at from the last audit's time on, less an overlap. `created_at`, `refunded_at` and `at` are read from a
  worker's clock before the transaction that writes them, so a row may appear later than its time says: by as long as
  a transaction is tried again (`POSTAGE_DATABASE_WAIT_S`), and by `MARGIN` for its last try and for clocks that differ.
  A worker that stood still for longer, between its clock and its commit, can be late with a charge; that is then
  looked up with its entry alone, as above, until an audit of the whole history.
* **Usage** is checked where more was rolled up since the mark, which notes how far that had come: the account's days
  add up to what was spent, and this with what was added to the balance there. That each day and sender has its own is
  checked by an audit that begins at the beginning.
* **A change to what is already marked** is not seen by such an audit. An audit of the whole history sees it.

As long as anything is found the marks stand still, so a fault is found again each time until it is mended.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, delete, or_, select

from models.database import Database, insert, search_by_index
from models.invariants import (
    STALE_AFTER,
    WHOLE,
    Invariant,
    Scope,
    examined,
    invariants,
    of_the_history,
    of_the_state,
    rolled_since_mark,
)
from models.tables import accounts, audit_marks, audit_progress, usage_marks

__all__ = ["MARGIN", "STALE_AFTER", "Audit", "Finding", "audit", "check", "invariants", "scope_since_marks"]

FINDINGS_MAX = 100
"""Findings named for each invariant; more are as bad."""
MARGIN = timedelta(minutes=20)
"""The longest that one transaction of the ledger can take (fewer than ten statements, each ended by the database after
a minute), twice over: beside that the 5 s by which clocks may differ (worker/checks.py) are nothing."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One place where an invariant does not hold."""

    invariant: str
    subject: str
    difference: str


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found, and how much it looked at: rows of each table with history."""

    findings: list[Finding]
    whole: bool
    since: datetime | None
    """From when on charges and orders were looked at; None: all of them."""
    examined: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The answer of an audit."""
        return {
            "status": "failed" if self.findings else "done",
            "full": self.whole,
            "since": self.since.isoformat() if self.since else None,
            "examined": self.examined,
            "findings": [
                {"invariant": one.invariant, "subject": one.subject, "difference": one.difference}
                for one in self.findings
            ],
        }


def audit(connection: Connection, now: datetime) -> Iterator[Finding]:
    """Everything in the whole history that does not hold, at one moment (the caller's transaction); leaves no marks."""
    return _findings(connection, invariants(now))


def check(database: Database, now: datetime, *, patience: timedelta, whole: bool = False) -> Audit:
    """Audit what is new, or the whole history, and move the marks if nothing was found.

    `patience` is how long workers try a transaction again. An audit of the whole history that finds something removes
    the marks: the next one starts from nothing.
    """
    return database.transact(lambda connection: _check(connection, now, patience, whole=whole))


def _check(connection: Connection, now: datetime, patience: timedelta, *, whole: bool) -> Audit:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")  # all of it is of one moment
        if whole:
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")  # a long history takes as long as it takes
            connection.exec_driver_sql("SET LOCAL enable_seqscan = on")  # and is best read as it lies
    scope = WHOLE if whole else scope_since_marks(connection, patience)
    findings = list(_findings(connection, of_the_state(now)))
    if not whole:
        search_by_index(connection)
    findings += _findings(connection, of_the_history(scope))
    counts = {table: connection.execute(query).scalar_one() for table, query in examined(scope).items()}
    if whole:
        connection.execute(delete(audit_marks))
        connection.execute(delete(audit_progress))
    if not findings:
        _mark(connection, now, whole=whole)
    return Audit(findings, whole, scope.since, counts)


def scope_since_marks(connection: Connection, patience: timedelta) -> Scope:
    """What the marks do not cover."""
    checked_at = connection.execute(select(audit_progress.c.checked_at)).scalar()
    return Scope(marked=True, since=checked_at - patience - MARGIN if checked_at else None)


def _findings(connection: Connection, each: list[Invariant]) -> Iterator[Finding]:
    for invariant in each:
        for row in connection.execute(invariant.exceptions.limit(FINDINGS_MAX)):
            yield _finding(invariant, row)


def _finding(invariant: Invariant, row: Row[*tuple[Any, ...]]) -> Finding:
    subject, *difference = row
    return Finding(invariant.name, str(subject), ", ".join(str(part) for part in difference))


def _mark(connection: Connection, now: datetime, *, whole: bool) -> None:
    """Note how far everything was found to hold. Only the marks are written, and nothing of the ledger is locked."""
    stale = or_(audit_marks.c.seq.is_(None), audit_marks.c.seq != accounts.c.seq, rolled_since_mark)
    moved = (
        select(accounts.c.id, accounts.c.seq, accounts.c.available, usage_marks.c.seq)
        .outerjoin_from(accounts, audit_marks, audit_marks.c.account_id == accounts.c.id)
        .outerjoin(usage_marks, usage_marks.c.account_id == accounts.c.id)
        .where(accounts.c.seq > 0, stale)
    )
    made = insert(connection, audit_marks).from_select(["account_id", "seq", "balance", "usage_seq"], moved)
    connection.execute(
        made.on_conflict_do_update(
            index_elements=[audit_marks.c.account_id],
            set_={name: made.excluded[name] for name in ("seq", "balance", "usage_seq")},
        )
    )
    progress = {"checked_at": now, **({"whole_at": now} if whole else {})}
    connection.execute(
        insert(connection, audit_progress)
        .values(id=1, **progress)
        .on_conflict_do_update(index_elements=[audit_progress.c.id], set_=progress)
    )
