"""Each fault that was seeded by hand is found: by the next audit while it is new, within one circle if it is old."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

from sqlalchemy import Connection, func, select

from models.database.engine import Database
from models.database.schema import entries
from models.reports.audit import GUARDS, audit_once
from models.reports.rollup import is_usage_entry
from tests.audits import all_invariants
from tests.integration.audited import EVENING, RULES, audit, unguarded
from tests.integration.faults import BELOW_ZERO, DEBTS, FAULTS, GUARD_FAULTS, ORDERS, STAYED, Fault

AGAIN = 25
"""How much each audit checks again here: so little that a circle takes several audits."""


@contextmanager
def undone(connection: Connection) -> Iterator[None]:
    """Undo what the block does to the database."""
    with connection.begin_nested() as savepoint:
        yield
        savepoint.rollback()


def names_found(connection: Connection, audits: int) -> Iterator[str]:
    """Give the invariants that some audits in a row find broken."""
    for number in range(audits):
        report = audit_once(connection, EVENING + timedelta(minutes=number), replace(RULES, again=AGAIN))
        yield from (finding.invariant for finding in report.findings)


def circle(connection: Connection) -> int:
    """Give how many audits a circle takes: the formula in docs/operating.md."""
    weigh = select(func.count(), func.sum(func.abs(entries.c.amount)).filter(is_usage_entry))
    count, credits_ = connection.execute(weigh.select_from(entries)).one()
    return math.ceil((count + credits_) / AGAIN) + 1


def missed(connection: Connection, faults: list[Fault], audits: int) -> list[str]:
    """Give the faults that so many audits do not find. What they break may be noticed by another invariant first."""
    found = []
    for fault in faults:
        with undone(connection):
            fault.seed(connection)
            if any(name != GUARDS for name in names_found(connection, audits)):
                found.append(fault.name)
    return [fault.name for fault in faults if fault.name not in found]


def test_the_next_audit_finds_every_new_fault(busy: Database) -> None:
    """Nearly all of the day is new to it."""
    with unguarded(busy) as connection:
        silent = []
        for fault in FAULTS:
            with undone(connection):
                fault.seed(connection)
                if fault.breaks not in names_found(connection, audits=1):
                    silent.append(fault.name)

    assert silent == []


def test_a_circle_of_audits_finds_every_old_fault(busy: Database) -> None:
    for _ in range(3):
        assert audit(busy, EVENING).findings == []

    with unguarded(busy) as connection:
        audits = circle(connection)
        assert 3 < audits < 10
        assert missed(connection, FAULTS, audits) == []


def test_a_whole_audit_finds_every_fault(busy: Database) -> None:
    audit(busy, EVENING)
    found = set()

    with unguarded(busy) as connection:
        for fault in FAULTS:
            with undone(connection):
                fault.seed(connection)
                report = audit_once(connection, EVENING, RULES, whole=True)
                if fault.breaks in {finding.invariant for finding in report.findings}:
                    found.add(fault.name)

    assert {fault.name for fault in FAULTS} - found == set()


def test_the_next_audit_finds_every_missing_guard(busy: Database) -> None:
    audit(busy, EVENING)
    silent = []

    with busy.engine.begin() as connection:
        for statements in GUARD_FAULTS[connection.dialect.name]:
            with undone(connection):
                for statement in statements.split("; "):
                    connection.exec_driver_sql(statement)
                if {finding.invariant for finding in audit_once(connection, EVENING, RULES).findings} != {GUARDS}:
                    silent.append(statements)

    assert silent == []


def test_the_matrix_breaks_every_invariant() -> None:
    """A balance below zero, which the schema refuses, a rewritten past, and corrections have tests of their own."""
    names = {invariant.name for invariant in all_invariants()}

    assert {fault.breaks for fault in FAULTS} == names - {BELOW_ZERO, STAYED, DEBTS, ORDERS}
