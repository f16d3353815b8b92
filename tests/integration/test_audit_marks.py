"""The marks that an audit without findings leaves, and the next audit, which begins there."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from sqlalchemy import text

from models.database.engine import Database
from models.reports.audit import MARGIN
from models.sends.charging import charge_jobs
from tasks import upkeep
from tests.factories import buy, email_job, ledger_job, save_people
from tests.fakes import NOON, make_context
from tests.integration.audited import EVENING, RETRIED_FOR, audit, damage


def marks(database: Database) -> dict[str, tuple[int, int]]:
    """Give how far each account has been checked."""
    with database.snapshot() as connection:
        rows = connection.execute(
            text(
                "SELECT owner_id, kind, audit_marks.seq, balance FROM audit_marks "
                "JOIN accounts ON accounts.org_id = audit_marks.org_id AND accounts.id = audit_marks.account_id"
            )
        )
        return {f"{owner}/{kind}": (seq, balance) for owner, kind, seq, balance in rows}


def test_a_clean_audit_marks_how_far_each_account_was_checked(busy: Database) -> None:
    before = marks(busy)
    report = audit(busy, EVENING)

    empty = {f"{owner}/{kind}": (0, 0) for owner in ("john", "mary", "olga") for kind in ("email", "sms")}
    assert before == {"peter/email": (1, 3), "peter/sms": (1, 1), **empty}
    assert report.findings == []
    with busy.snapshot() as connection:
        rows = connection.execute(text("SELECT owner_id, kind, seq, available FROM accounts"))
        assert marks(busy) == {f"{owner}/{kind}": (seq, available) for owner, kind, seq, available in rows}


def test_an_audit_with_findings_does_not_move_the_marks(busy: Database) -> None:
    before = marks(busy)
    damage(busy, "UPDATE charges SET credits = credits + 1 WHERE job_id = 'e0'")

    first, second = audit(busy, EVENING), audit(busy, EVENING + timedelta(days=1))

    assert first.findings == second.findings != []
    assert marks(busy) == before


def test_a_full_audit_finds_damage_behind_the_marks_and_removes_them(busy: Database) -> None:
    """So the next incremental audit starts from nothing, and finds it too."""
    audit(busy, EVENING)
    later = EVENING + timedelta(days=1)
    damage(busy, "UPDATE entries SET amount = amount - 1 WHERE cause_kind = 'refund'")

    incremental = audit(busy, later)
    full = audit(busy, later, whole=True)
    after = audit(busy, later)

    assert incremental.findings == []
    assert full.findings != []
    assert marks(busy) == {}
    assert after.findings == full.findings
    assert after.since is None


def test_a_full_audit_without_findings_sets_all_marks_anew(busy: Database) -> None:
    full = audit(busy, EVENING, whole=True)
    again = audit(busy, EVENING + timedelta(days=1))

    assert (full.findings, full.since) == ([], None)
    with busy.snapshot() as connection:
        assert full.examined["entries"] == connection.execute(text("SELECT count(*) FROM entries")).scalar_one() > 20
    assert marks(busy)["peter/email"][0] > 1
    assert again.since == EVENING - RETRIED_FOR - MARGIN
    assert again.examined == {"entries": 0, "charges": 0, "orders": 0}


def test_a_balance_that_is_changed_behind_the_marks_is_found(busy: Database) -> None:
    """No entry moved, but every account is compared with its mark."""
    audit(busy, EVENING)
    damage(busy, "UPDATE accounts SET available = available + 1 WHERE owner_id = 'john'")

    assert {finding.subject for finding in audit(busy, EVENING).findings} == {"john/email", "john/sms"}


def test_an_account_that_fell_behind_its_mark_is_found(busy: Database) -> None:
    audit(busy, EVENING)
    damage(
        busy,
        "DELETE FROM entries WHERE seq > 0 AND org_id = 1 "
        "AND account_id IN (SELECT id FROM accounts WHERE owner_id = 'peter')",
        "UPDATE accounts SET seq = 0, available = 0 WHERE owner_id = 'peter'",
    )

    assert {finding.subject for finding in audit(busy, EVENING).findings} >= {"peter/email", "peter/sms"}


def test_usage_that_is_rolled_up_after_an_audit_is_checked_by_the_next(busy: Database) -> None:
    """No account has moved in between."""
    audit(busy, EVENING)
    upkeep.roll_up(make_context(busy))
    damage(busy, "UPDATE usage_days SET credits = credits + 1 WHERE sender = 'john'")

    first, second = audit(busy, EVENING), audit(busy, EVENING)

    assert [finding.subject for finding in first.findings] == ["john/email"]
    assert second.findings == first.findings


# -- at the same time as charges --------------------------------------------------------------------------------------


def test_a_charge_that_appears_late_is_within_the_overlap(database: Database) -> None:
    """Its time was read before a transaction that was retried for as long as is allowed."""
    save_people(database)
    buy(database, "john", email=5)
    audit(database, NOON + RETRIED_FOR + MARGIN)
    with database.engine.begin() as connection:
        charge_jobs(connection, [ledger_job(email_job("late"))], lease_id="h", now=NOON, lease_until=EVENING)
    damage(  # a charge without an entry moves no account
        database,
        "DELETE FROM entries WHERE cause_id = 'h'",
        "UPDATE accounts SET seq = 1, available = 5, hash = (SELECT hash FROM entries WHERE seq = 1) "
        "WHERE owner_id = 'john' AND kind = 'email'",
    )

    assert [finding.subject for finding in audit(database, NOON + RETRIED_FOR + MARGIN).findings] == ["late"]


def test_an_uncommitted_charge_is_checked_by_the_next_audit(stocked_postgres: Database) -> None:
    """Its entry has a higher number than the mark, however long the transaction takes."""
    with stocked_postgres.engine.connect() as slow, slow.begin():
        charge_jobs(slow, [ledger_job(email_job("slow"))], lease_id="h", now=NOON, lease_until=EVENING)
        during = audit(stocked_postgres)
    after = audit(stocked_postgres, NOON + timedelta(days=1))

    assert (during.findings, during.examined["charges"]) == ([], 0)
    assert after.examined["entries"] == 1
    assert [finding.invariant for finding in after.findings] == ["No attempt outlives its lease"]


ACCOUNTS = 8
"""Accounts of the people who are saved, each with its opening entry."""
AUDIT_EVERY = 5
"""How many messages are charged between two audits."""


def test_audits_find_nothing_while_messages_are_charged(database: Database) -> None:
    """Neither waits for the other in vain, and each audit sees one state of everything."""
    save_people(database)
    buy(database, "john", email=200)
    charged = threading.Semaphore(0)

    def charge(start: int) -> None:
        for number in range(start, start + 50):
            job = ledger_job(email_job(f"j{number}"))
            database.write(
                lambda connection, job=job: charge_jobs(  # type: ignore[misc]
                    connection, [job], lease_id=job.job_id, now=NOON, lease_until=EVENING
                )
            )
            charged.release()

    reports = []
    with ThreadPoolExecutor(2) as threads:
        charging = [threads.submit(charge, start) for start in (0, 100)]
        for number in range(100):
            if not charged.acquire(timeout=60):
                break
            if number % AUDIT_EVERY == 0:  # more often, and they would keep the other writers of SQLite out for long
                reports.append(audit(database))
    reports.append(audit(database))

    assert [future.result() for future in charging] == [None, None]
    assert [report.findings for report in reports if report.findings] == []
    assert sum(report.examined["entries"] for report in reports) == ACCOUNTS + 101
