"""What audits find: nothing after a busy day; and what becomes of a finding."""

from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from models.database.engine import Database
from models.reports.state_invariants import STALE_AFTER
from tasks import upkeep
from tasks.operating import acknowledge, show_findings
from tests.factories import buy, email_job, save_people
from tests.fakes import NOON, Clock, FakeCarrier, answer, make_context
from tests.integration.audited import EVENING, audit, damage
from tests.integration.faults import BELOW_ZERO, LAST_ENTRY
from tests.integration.stored import findings

WRONG = "UPDATE charges SET digest = 'x' || digest WHERE job_id = 'e0'"
MENDED = "UPDATE charges SET digest = substr(digest, 2) WHERE job_id = 'e0'"


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


def test_a_balance_below_zero_is_refused_by_the_schema_and_found_without_it(busy: Database) -> None:
    audit(busy, EVENING)
    overdrawn = "UPDATE accounts SET available = -1 WHERE owner_id = 'mary' AND kind = 'email'"

    with pytest.raises(IntegrityError):
        damage(busy, overdrawn)
    damage(busy, overdrawn, checks=False)

    assert BELOW_ZERO in {finding.invariant for finding in audit(busy, EVENING).findings}


def test_a_finding_names_the_account_and_the_difference(busy: Database) -> None:
    audit(busy, EVENING)
    damage(busy, "UPDATE accounts SET available = 5 WHERE owner_id = 'mary' AND kind = 'sms'")

    [finding] = [finding for finding in findings(busy, EVENING) if finding.invariant == LAST_ENTRY]

    assert finding.subject == "mary/sms"
    assert finding.difference == "balance 5, debt 0, entry 0 says 0, debt 0"


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
    damage(busy, WRONG)

    failed = upkeep.audit(context)

    assert (clean["status"], clean["findings"]) == ("done", [])
    assert failed["status"] == "failed"
    assert [finding["difference"] for finding in failed["findings"]] != []


# -- what becomes of them ---------------------------------------------------------------------------------------------


def test_a_finding_is_one_row_however_often_it_is_found(busy: Database) -> None:
    damage(busy, WRONG)
    for number in range(3):
        audit(busy, EVENING + timedelta(minutes=number))

    [row] = show_findings(make_context(busy), everything=True)["rows"]

    assert (row["first_at"], row["last_at"]) == ("2026-01-05T17:00:00.000+00:00", "2026-01-05T17:02:00.000+00:00")


def test_a_finding_that_comes_back_alarms_again(busy: Database) -> None:
    context = make_context(busy, clock=Clock(EVENING))
    damage(busy, WRONG)
    audit(busy, EVENING)
    acknowledge(context, None, operator="ann", note="known")
    damage(busy, MENDED)
    for number in range(1, 4):
        audit(busy, EVENING + timedelta(minutes=number))
    damage(busy, WRONG)

    assert audit(busy, EVENING + timedelta(minutes=5)).findings != []


def test_acknowledging_twice_keeps_who_was_first(busy: Database) -> None:
    context = make_context(busy, clock=Clock(EVENING))
    damage(busy, WRONG)
    audit(busy, EVENING)

    first = acknowledge(context, None, operator="ann", note="known")
    second = acknowledge(context, [first["rows"][0]["id"]], operator="bob", note="mine")

    assert (first["status"], second["status"]) == ("done", "failed")
    assert show_findings(context, everything=False)["rows"][0]["acknowledged_by"] == "ann"
