"""How much an audit reads: not the history, only what is new since the last audit, and a part of what is not."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy.dialects import sqlite

from models.database.engine import Database
from models.reports.audit import audit_once
from models.reports.audit_marks import new_stretches, next_again
from models.reports.audit_scope import BEGINNING, given_stretches, stretch_params
from models.reports.invariants import history_invariants
from tests.factories import buy, email_job, save_people
from tests.fakes import NOON, Clock, answer, make_context
from tests.integration.audited import EVENING, RULES, audit
from tests.integration.history import analyze, rows_read, write_sent_emails
from tests.integration.templates import database_filled_by

HISTORY = 20_000
AFTERNOON = NOON + timedelta(hours=1)
"""When the history is older than the overlap."""
AGAIN = 50
"""How much each audit checks again here."""
ACCOUNTS = 8


def write_history(database: Database) -> None:
    """Write 20,000 emails that john has sent and paid."""
    save_people(database)
    buy(database, "john", email=HISTORY)
    write_sent_emails(database, "john", [NOON + timedelta(microseconds=number) for number in range(HISTORY)])
    analyze(database)


long_history = database_filled_by(write_history)
long_history_on_postgres = database_filled_by(write_history, "postgresql")
long_history_on_sqlite = database_filled_by(write_history, "sqlite")


def test_an_audit_examines_only_what_is_new(long_history: Database) -> None:
    first = audit(long_history, AFTERNOON)
    nothing_new = audit(long_history, EVENING, again=AGAIN)
    buy(long_history, "john", email=1, now=EVENING)
    answer(make_context(long_history, clock=Clock(EVENING)), "email.send", email_job("new"))
    one_new = audit(long_history, EVENING + timedelta(minutes=1), again=AGAIN)

    assert first.examined == {"entries": HISTORY + 1 + ACCOUNTS, "charges": HISTORY, "orders": 1}
    assert nothing_new.examined == {"entries": 0, "charges": 0, "orders": 0}
    assert one_new.examined == {"entries": 2, "charges": 1, "orders": 1}
    assert first.findings + nothing_new.findings + one_new.findings == []


def test_an_audit_checks_no_more_again_than_it_may(long_history: Database) -> None:
    """An entry of one credit counts two: itself, and its message."""
    audit(long_history, AFTERNOON)

    reports = [audit(long_history, EVENING + timedelta(minutes=number), again=AGAIN) for number in range(5)]

    assert all(0 < report.again["entries"] <= AGAIN for report in reports)
    assert all(report.again["charges"] <= AGAIN for report in reports)
    assert sum(report.again["charges"] for report in reports) > AGAIN
    assert all(report.findings == [] for report in reports)


def test_postgresql_reads_only_new_rows(long_history_on_postgres: Database) -> None:
    """As PostgreSQL itself counts the rows that the audit's transaction reads."""
    database = long_history_on_postgres
    audit(database, AFTERNOON)
    buy(database, "john", email=1, now=EVENING)
    answer(make_context(database, clock=Clock(EVENING)), "email.send", email_job("new"))
    database.engine.dispose()  # a new session has not counted anything yet

    with database.engine.begin() as connection:
        report = audit_once(connection, EVENING, replace(RULES, again=AGAIN))
        counts = rows_read(connection)

    assert report.examined == {"entries": 2, "charges": 1, "orders": 1}
    assert all(counts[table] < 40 * AGAIN for table in ("entries", "charges", "orders")), counts


def test_sqlite_searches_the_history_and_does_not_scan_it(long_history_on_sqlite: Database) -> None:
    audit(long_history_on_sqlite, AFTERNOON)
    with long_history_on_sqlite.snapshot() as connection:
        stretches = [
            *new_stretches(connection, BEGINNING),
            *(again.stretch for again in next_again(connection, AGAIN)),
        ]
        given = stretch_params(connection, stretches, AFTERNOON)
        plans = [
            (invariant.name, row[3])
            for invariant in history_invariants(given_stretches("sqlite"))
            for row in connection.exec_driver_sql("EXPLAIN QUERY PLAN " + as_text(invariant.violations.params(**given)))
        ]

    assert [plan for plan in plans if f"{plan[1]} ".startswith(("SCAN entries ", "SCAN charges "))] == []
    assert any("SEARCH entries" in plan for _, plan in plans)


def as_text(query: Any) -> str:
    return str(query.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True}))
