"""The audit finds nothing after a busy story, and names each invariant that is broken on purpose."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, text

from models.audit import STALE_AFTER, Finding, audit, invariants
from models.carriers import Outcome, Receipt
from models.database import Database
from models.retrying import Patience
from tasks.upkeep import sweep
from tests.factories import buy, email_job, purchase_order, save_people, share, sms_job
from tests.fakes import (
    ACCEPTED,
    NEVER,
    NOBODY,
    NOON,
    NOT_NOW,
    UNSURE,
    Clock,
    FakeCarrier,
    answer,
    make_context,
    run_enqueued,
)


@pytest.fixture
def busy(database: Database) -> Database:
    """Give a database after a day on which nearly everything happened that can."""
    save_people(database)
    clock = Clock()
    partial = Receipt(Outcome.ACCEPTED, refused={"a@b.test": "550"}, deferred={"c@d.test": "451"})
    email = FakeCarrier(ACCEPTED, NEVER, partial, NOT_NOW, NOBODY, UNSURE)
    sms = FakeCarrier(NOT_NOW, UNSURE, ACCEPTED, NOT_NOW, NEVER, honours_job_id=True)
    context = make_context(database, email, sms, clock, Patience(attempts_max=3))
    buy(database, "peter", email=3, sms=1)
    answer(context, "credits.purchase", purchase_order("order-1", "john", email=30, sms=20))
    share(database, "peter", "john")
    for number in range(8):
        sender = "peter" if number % 2 else "john"
        answer(context, "email.send", email_job(f"e{number}", sender, to=["a@b.test", "c@d.test"]))
        answer(context, "sms.send", sms_job(f"s{number}", sender, text="x" * (1 + 80 * number)))
        if number == 5:
            share(database, "peter", "peter")
    recipients = [{"to": f"u{number}@x.test"} for number in range(7)]
    bulk = {"sender": "john", "subject": "Hi", "text": "Hi", "recipients": recipients}
    answer(context, "email.send_many", {"job_id": "bulk-1", **bulk})
    answer(context, "email.send_many", {"job_id": "bulk-2", **bulk, "recipients": recipients * 20})
    answer(context, "email.send", email_job("nobody", "nobody"))
    answer(context, "email.send", email_job("e0", subject="Other"))
    email.script = [ZeroDivisionError("a bug")]
    with pytest.raises(ZeroDivisionError):
        answer(context, "email.send", email_job("held"))
    for _ in range(4):
        run_enqueued(context)
        clock.forward(timedelta(hours=1))
        sweep(context)
    run_enqueued(context)
    answer(context, "email.send", email_job("waits"))
    return database


def found(database: Database, now: Any = NOON) -> list[Finding]:
    with database.read() as connection:
        return list(audit(connection, now))


def test_a_busy_story_leaves_nothing_to_find(busy: Database) -> None:
    assert found(busy, NOON + timedelta(hours=5)) == []


def test_a_busy_story_really_was_busy(busy: Database) -> None:
    with busy.read() as connection:
        states = set(connection.execute(text("SELECT DISTINCT state FROM charges")).scalars())
        refunds = connection.execute(text("SELECT count(*) FROM entries WHERE cause LIKE 'refund:%'")).scalar_one()

    assert {"sent", "failed", "unknown", "refused", "bulk"} <= states
    assert refunds >= 3


def test_a_new_database_has_nothing_to_find(database: Database) -> None:
    assert found(database) == []


@contextmanager
def unguarded(database: Database) -> Iterator[Connection]:
    """Give a transaction that no constraint and no trigger watches, as a broken disk or a clumsy hand would have it."""
    with database.engine.connect() as connection:
        if database.is_sqlite:
            raw: Any = connection.connection.dbapi_connection
            triggers = raw.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
            for pragma in ("foreign_keys = OFF", "ignore_check_constraints = ON"):
                raw.execute(f"PRAGMA {pragma}")
            for (name,) in triggers:
                raw.execute(f"DROP TRIGGER {name}")
        with connection.begin():
            if not database.is_sqlite:
                connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
                checks = connection.exec_driver_sql(
                    "SELECT conrelid::regclass::text, conname FROM pg_constraint "
                    "WHERE contype = 'c' AND connamespace = 'public'::regnamespace"
                ).all()
                for table, name in checks:
                    connection.exec_driver_sql(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
            yield connection
        connection.invalidate()  # its pragmas must not come back from the pool


CASES = {
    "An account's entries add up to its balance, and are counted without a gap": [
        "UPDATE accounts SET available = available + 1 WHERE owner_id = 'john' AND kind = 'sms'",
        "UPDATE accounts SET available = 5 WHERE owner_id = 'mary' AND kind = 'sms'",
        "UPDATE accounts SET seq = seq + 1 WHERE owner_id = 'john' AND kind = 'sms'",
        "UPDATE entries SET seq = seq + 100 WHERE cause = 'charge:waits'",
        "DELETE FROM entries WHERE cause = 'charge:waits'",
    ],
    "Each entry leaves the balance that the one before and its amount make": [
        "UPDATE entries SET balance_after = balance_after + 1 WHERE cause = 'charge:e1'",
        "UPDATE entries SET balance_after = balance_after + 1 WHERE cause = 'purchase:order-1:email'",
    ],
    "No balance is below zero": ["UPDATE accounts SET available = -1 WHERE owner_id = 'mary' AND kind = 'email'"],
    "Each charge has its entry: the payer's account, the whole cost": [
        "DELETE FROM entries WHERE cause = 'charge:e1'",
        "UPDATE entries SET amount = amount - 1 WHERE cause = 'charge:e1'",
        "UPDATE charges SET credits = credits + 1 WHERE job_id = 'e0'",
        (
            "UPDATE charges SET account_id = (SELECT id FROM accounts WHERE owner_id = 'mary' AND kind = 'email') "
            "WHERE job_id = 'e0'"
        ),
    ],
    "Each refund has its entry: the same account, the amount refunded": [
        "DELETE FROM entries WHERE cause = 'refund:e1'",
        "UPDATE charges SET refunded = 1 WHERE job_id = 'e0'",
        (
            "UPDATE entries SET account_id = (SELECT id FROM accounts WHERE owner_id = 'olga' AND kind = 'email') "
            "WHERE cause = 'refund:e1'"
        ),
    ],
    "Each order has its entries: the owner's accounts, what was bought": [
        "DELETE FROM entries WHERE cause = 'purchase:order-1:sms'",
        "UPDATE orders SET sms = sms + 1 WHERE order_id = 'order-1'",
        "UPDATE orders SET owner_id = 'mary' WHERE order_id = 'order-1'",
    ],
    "Each entry has its charge or order": [
        "UPDATE entries SET cause = 'gift:1' WHERE cause = 'charge:e1'",
        "DELETE FROM charges WHERE job_id = 'e0'",
        "DELETE FROM orders WHERE order_id = 'order-1'",
        "UPDATE entries SET cause = 'refund:e0' WHERE cause = 'refund:e1'",
    ],
    "Each user has an account of each kind": [
        "DELETE FROM accounts WHERE owner_id = 'mary' AND kind = 'sms'",
        "DELETE FROM accounts WHERE owner_id = 'mary'",
    ],
    "A credit owner owns their own credits, in the same organization": [
        (
            "UPDATE users SET credit_owner_id = CASE id WHEN 'mary' THEN 'peter' ELSE 'john' END "
            "WHERE id IN ('mary', 'peter')"
        ),
        "UPDATE users SET credit_owner_id = 'olga' WHERE id = 'mary'",
        "UPDATE users SET credit_owner_id = 'ghost' WHERE id = 'mary'",
    ],
    "A bulk job costs what its messages cost": [
        "UPDATE charges SET credits = credits + 1 WHERE job_id = 'bulk-1'",
        "DELETE FROM charges WHERE bulk_id = 'bulk-1'",
    ],
    "No attempt outlives its lease": [
        (
            "UPDATE charges SET state = 'sending', due_at = NULL, lease_until = '2026-01-05 12:00:00' "
            "WHERE job_id = 'waits'"
        ),
    ],
}
"""For each invariant, statements that break it. Some break others too."""


def found_after(database: Database, damage: str) -> set[str]:
    """Give the invariants that the audit names after `damage`, which is undone."""
    with unguarded(database) as connection:
        assert connection.exec_driver_sql(damage).rowcount > 0
        named = {finding.invariant for finding in audit(connection, NOON + timedelta(hours=5))}
        connection.rollback()
    return named


def test_what_is_broken_is_named(busy: Database) -> None:
    missed = [
        (invariant, damage)
        for invariant, damages in CASES.items()
        for damage in damages
        if invariant not in found_after(busy, damage)
    ]

    assert missed == []
    assert found(busy, NOON + timedelta(hours=5)) == []


def test_every_invariant_is_broken_by_some_test() -> None:
    assert [invariant.name for invariant in invariants(NOON)] == list(CASES)


def test_a_finding_says_where_and_what(busy: Database) -> None:
    with unguarded(busy) as connection:
        connection.exec_driver_sql("UPDATE accounts SET available = 5 WHERE owner_id = 'mary' AND kind = 'sms'")

    [finding] = found(busy, NOON + timedelta(hours=5))

    assert finding.subject == "mary/sms"
    assert finding.difference == "balance 5, entries add up to 0, counted 0, entries 0"


def test_a_lease_that_is_over_for_a_while_is_the_sweeper_s_affair_at_first(database: Database) -> None:
    save_people(database)
    buy(database, "john", email=1)
    context = make_context(database, email=FakeCarrier(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        answer(context, "email.send", email_job())
    ends = NOON + context.patience.lease

    assert found(database, ends + STALE_AFTER) == []
    assert [finding.subject for finding in found(database, ends + STALE_AFTER + timedelta(seconds=1))] == ["job-1"]
