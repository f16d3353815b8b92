"""What audits find: nothing after a busy day, and each invariant that is broken on purpose."""

from datetime import timedelta

import pytest
from sqlalchemy import Connection, text

from models.database.engine import Database
from models.reports.audit import find_violations, scope_since_marks
from models.reports.audit_scope import WHOLE_HISTORY
from models.reports.corrections_invariants import corrections_invariants
from models.reports.invariants import STALE_AFTER
from tasks import upkeep
from tests.audits import all_invariants, audit_everything
from tests.factories import buy, email_job, save_people
from tests.fakes import NOON, Clock, FakeCarrier, answer, make_context
from tests.integration.audited import EVENING, RETRIED_FOR, damage, unguarded
from tests.integration.stored import findings


def test_an_audit_finds_nothing_after_a_busy_day(busy: Database) -> None:
    assert findings(busy, EVENING) == []


def test_the_busy_day_was_really_busy(busy: Database) -> None:
    with busy.snapshot() as connection:
        states = set(connection.execute(text("SELECT DISTINCT state FROM charges")).scalars())
        refunds = connection.execute(text("SELECT count(*) FROM entries WHERE cause_kind = 'refund'")).scalar_one()

    assert {"sent", "failed", "unknown", "refused", "bulk"} <= states
    assert refunds >= 3


def test_an_audit_finds_nothing_in_a_new_database(database: Database) -> None:
    assert findings(database) == []


EVERY_DAY = "Each day of usage, with what is not rolled up yet, is what its charges cost"
"""The only invariant that is checked for the whole history alone."""
CHARGE = "cause_kind = 'charge' AND cause_id = (SELECT charged_by FROM charges WHERE job_id = '{}')"
"""The entry that paid for a job."""
REFUND = "cause_kind = 'refund' AND cause_id = (SELECT refunded_by FROM charges WHERE job_id = '{}')"
"""The entry that gave back what a job had cost."""
PURCHASE = "cause_kind = 'purchase' AND cause_id = 'order-1'"
ACCOUNT = "(SELECT id FROM accounts WHERE owner_id = '{}' AND kind = '{}')"
BREAKING = {
    "No balance is below zero": ["UPDATE accounts SET available = -1 WHERE owner_id = 'mary' AND kind = 'email'"],
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
    "No attempt outlives its lease": [
        (
            "UPDATE charges SET state = 'sending', due_at = NULL, lease_until = '2026-01-05 12:00:00' "
            "WHERE job_id = 'waits'; INSERT INTO leases VALUES (1, 'h', '2026-01-05 12:00:00', '[\"waits\"]')"
        ),
    ],
    "An account's entries add up to its balance, and are counted without a gap": [
        "UPDATE accounts SET available = available + 1 WHERE owner_id = 'john' AND kind = 'sms'",
        "UPDATE accounts SET available = 5 WHERE owner_id = 'mary' AND kind = 'sms'",
        "UPDATE accounts SET seq = seq + 1 WHERE owner_id = 'john' AND kind = 'sms'",
        f"UPDATE entries SET seq = seq + 100 WHERE {CHARGE.format('waits')}",
        f"DELETE FROM entries WHERE {CHARGE.format('waits')}",
    ],
    "Each entry leaves the balance that the one before and its amount make": [
        f"UPDATE entries SET balance_after = balance_after + 1 WHERE {CHARGE.format('e1')}",
        f"UPDATE entries SET balance_after = balance_after + 1 WHERE {PURCHASE}",
    ],
    "Each entry moves what it was made for: charges, refunds, an order, …": [
        f"UPDATE entries SET cause_kind = 'gift' WHERE {CHARGE.format('e1')}",
        f"UPDATE entries SET amount = amount - 1 WHERE {CHARGE.format('e1')}",
        f"UPDATE entries SET amount = amount - 1 WHERE {CHARGE.format('bulk-1/0')}",
        f"UPDATE entries SET cause_id = 'another' WHERE {REFUND.format('e1')}",
        "DELETE FROM charges WHERE job_id = 'e0'",
        "DELETE FROM charges WHERE job_id = 'bulk-1/0'",
        "UPDATE charges SET credits = credits + 1 WHERE job_id = 'e0'",
        "UPDATE charges SET charged_by = 'another' WHERE job_id = 'bulk-1/0'",
        "UPDATE charges SET refunded = refunded + 1 WHERE job_id = 'e1'",
        "UPDATE charges SET created_at = '2026-01-05 11:00:00' WHERE job_id = 'e1'",
        "DELETE FROM orders WHERE order_id = 'order-1'",
        "UPDATE orders SET sms = sms + 1 WHERE order_id = 'order-1'",
    ],
    "Each charge has its entry: of the payer's account, made when it was": [
        f"DELETE FROM entries WHERE {CHARGE.format('e1')}",
        f"DELETE FROM entries WHERE {CHARGE.format('bulk-1/0')}",
        f"UPDATE charges SET account_id = {ACCOUNT.format('mary', 'email')} WHERE job_id = 'e0'",
        f"UPDATE charges SET account_id = {ACCOUNT.format('mary', 'email')} WHERE job_id = 'bulk-1/1'",
        "UPDATE charges SET charged_by = 'another' WHERE job_id = 'bulk-1/0'",
        "UPDATE charges SET created_at = '2026-01-05 11:59:00' WHERE job_id = 'e1'",
    ],
    "Each refund has its entry: of the payer's account, made when it was": [
        f"DELETE FROM entries WHERE {REFUND.format('e1')}",
        "UPDATE charges SET refunded = 1 WHERE job_id = 'e0'",
        "UPDATE charges SET refunded_at = '2026-01-05 13:30:00' WHERE job_id = 'e1'",
        f"UPDATE entries SET account_id = {ACCOUNT.format('mary', 'email')} WHERE {REFUND.format('e1')}",
    ],
    "Each order has its entries: of the owner's accounts": [
        f"DELETE FROM entries WHERE {PURCHASE} AND account_id = {ACCOUNT.format('john', 'sms')}",
        "UPDATE orders SET owner_id = 'mary' WHERE order_id = 'order-1'",
    ],
    "Each charge is paid by the sender's credit owner of that time, in its kind": [
        f"UPDATE charges SET account_id = {ACCOUNT.format('mary', 'email')} WHERE job_id = 'e1'",
        f"UPDATE charges SET account_id = {ACCOUNT.format('john', 'sms')} WHERE job_id = 'e0'",
        "UPDATE charges SET kind = 'sms' WHERE job_id = 'e1'",
        "UPDATE charges SET owner_version = owner_version + 1 WHERE job_id = 'e1'",
        "UPDATE charges SET owner_version = 99 WHERE job_id = 'e0'",
    ],
    "Each order is credited to the buyer's credit owner of that time": [
        "UPDATE orders SET owner_id = 'mary' WHERE order_id = 'order-1'",
        "UPDATE orders SET owner_version = owner_version + 1 WHERE order_id = 'order-1'",
    ],
    "A bulk job costs what its messages cost": [
        "UPDATE charges SET credits = credits + 1 WHERE job_id = 'bulk-1'",
        "DELETE FROM charges WHERE job_id = 'bulk-1/0'",
        "DELETE FROM charges WHERE bulk_id = 'bulk-1'",
    ],
    "What waits is due, itself or by its bulk job": [
        "UPDATE charges SET state = 'waiting', due_at = NULL WHERE job_id = 'waits'",
        "UPDATE charges SET state = 'waiting', final_at = NULL WHERE job_id = 'bulk-1/0'",
    ],
    "What is being sent is held under a lease": [
        (
            "UPDATE charges SET state = 'sending', lease_until = '2026-01-05 20:00:00', lease_id = 'h' "
            "WHERE job_id = 'waits'"
        ),
        "UPDATE charges SET state = 'sending', lease_until = NULL, lease_id = NULL WHERE job_id = 'waits'",
    ],
    "An account's days of usage add up to its entries, as far as they were rolled up": [
        "UPDATE usage_days SET credits = credits + 1 WHERE sender = 'peter'",
        "DELETE FROM usage_days WHERE sender = 'john'",
        "UPDATE usage_marks SET spent = spent + 1",
        "UPDATE usage_marks SET added = added + 1",
        "UPDATE usage_marks SET seq = seq - 1",
    ],
    EVERY_DAY: [
        "UPDATE usage_days SET credits = credits + 1 WHERE sender = 'peter'",
        "UPDATE usage_days SET messages = messages + 1 WHERE sender = 'peter'",
        "UPDATE usage_days SET sender = 'mary' WHERE sender = 'john'",
        "UPDATE usage_days SET day = '2026-01-04'",
        "UPDATE usage_marks SET seq = seq - 1",
        "DELETE FROM usage_marks",
    ],
}
"""For each invariant, statements that break it. Some break others too."""


@pytest.fixture(params=["incremental", "full", "without marks"])
def form(request: pytest.FixtureRequest) -> str:
    """Give each form of audit once."""
    form: str = request.param
    return form


def names_of_broken(connection: Connection, form: str) -> set[str]:
    """Give the invariants that an audit of this form finds broken, in the transaction of the damage."""
    if form == "without marks":
        return {finding.invariant for finding in audit_everything(connection, EVENING)}
    scope = scope_since_marks(connection, RETRIED_FOR) if form == "incremental" else WHOLE_HISTORY
    assert scope.marked is (form == "incremental")
    return {finding.invariant for finding in find_violations(connection, all_invariants(EVENING, scope))}


def names_of_broken_by(connection: Connection, breaking: str, form: str) -> set[str]:
    """Give the invariants that an audit of this form finds broken after some statements, which are undone."""
    with connection.begin_nested() as savepoint:
        for statement in breaking.split("; "):
            assert connection.exec_driver_sql(statement).rowcount > 0
        names = names_of_broken(connection, form)
        savepoint.rollback()
    return names


def test_each_broken_invariant_is_named(busy: Database, form: str) -> None:
    asked = [
        (invariant, breaking)
        for invariant, statements in BREAKING.items()
        for breaking in statements
        if form != "incremental" or invariant != EVERY_DAY
    ]

    with unguarded(busy) as connection:
        missed = [
            (invariant, breaking)
            for invariant, breaking in asked
            if invariant not in names_of_broken_by(connection, breaking, form)
        ]
        connection.rollback()

    assert missed == []
    assert findings(busy, EVENING) == []


def test_every_invariant_is_broken_by_a_statement() -> None:
    corrections = {invariant.name for invariant in corrections_invariants(WHOLE_HISTORY)}  # test_corrections_audit.py

    assert [invariant.name for invariant in all_invariants(NOON) if invariant.name not in corrections] == list(BREAKING)


def test_a_finding_names_the_account_and_the_difference(busy: Database) -> None:
    damage(busy, "UPDATE accounts SET available = 5 WHERE owner_id = 'mary' AND kind = 'sms'")

    [finding] = findings(busy, EVENING)

    assert finding.subject == "mary/sms"
    assert finding.difference == "balance 5, entries add up to 0, counted 0, entries 0"


def test_an_expired_lease_is_left_to_the_sweeper_for_ten_minutes(database: Database) -> None:
    save_people(database)
    buy(database, "john", email=1)
    context = make_context(database, email=FakeCarrier(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        answer(context, "email.send", email_job())
    lease_end = NOON + context.retry_policy.lease

    assert findings(database, lease_end + STALE_AFTER) == []
    [finding] = findings(database, lease_end + STALE_AFTER + timedelta(seconds=1))
    assert finding.subject == "job-1"


def test_the_audit_task_answers_with_all_findings(busy: Database) -> None:
    context = make_context(busy, clock=Clock(EVENING))
    clean = upkeep.audit(context)
    damage(busy, "UPDATE accounts SET available = 5 WHERE owner_id = 'mary' AND kind = 'sms'")

    failed = upkeep.audit(context)

    assert (clean["status"], clean["findings"]) == ("done", [])
    assert failed["status"] == "failed"
    assert [finding["subject"] for finding in failed["findings"]] == ["mary/sms"]
