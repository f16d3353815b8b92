"""How far audits have checked, what they check again, and what holds them where they are."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, select, update

from models.database.engine import Database
from models.database.schema import accounts, audit_marks, charges, entries, findings
from models.money.chain import GENESIS, entry_hash
from models.reports.audit import OVERLAP
from models.sends.charging import charge_jobs
from tasks import upkeep
from tasks.operating import acknowledge, show_findings
from tests.factories import balance, buy, email_job, ledger_job, save_people
from tests.fakes import NOON, Clock, make_context
from tests.integration.audited import EVENING, audit, damage, unguarded
from tests.integration.faults import CHAIN, LAST_ENTRY, STAYED
from tests.integration.test_audit_matrix import undone

JOHNS = "account_id = (SELECT id FROM accounts WHERE owner_id = 'john' AND kind = 'email')"
A_CREDIT_MORE = "UPDATE charges SET credits = credits + 1 WHERE job_id = 'e0'"
A_CREDIT_LESS = "UPDATE charges SET credits = credits - 1 WHERE job_id = 'e0'"


def marks(database: Database) -> dict[str, tuple[int, int]]:
    """Give how far each account has been checked, and the balance there, without those that are empty."""
    query = select(accounts.c.owner_id, accounts.c.kind, audit_marks.c.seq, audit_marks.c.balance).join(
        audit_marks, (audit_marks.c.org_id == accounts.c.org_id) & (audit_marks.c.account_id == accounts.c.id)
    )
    with database.snapshot() as connection:
        return {f"{owner}/{kind}": (seq, left) for owner, kind, seq, left in connection.execute(query) if seq}


def last_entries(database: Database) -> dict[str, tuple[int, int]]:
    """Give the number and the balance of each account's last entry, without those that are empty."""
    with database.snapshot() as connection:
        rows = connection.execute(select(accounts).where(accounts.c.seq > 0))
        return {f"{row.owner_id}/{row.kind}": (row.seq, row.available) for row in rows}


def whole_times(database: Database) -> list[datetime]:
    """Give when each account was last checked as a whole, the longest ago first."""
    with database.snapshot() as connection:
        return sorted(connection.execute(select(audit_marks.c.whole_at)).scalars())


def subjects(report: Any) -> list[str]:
    return [finding.subject for finding in report.findings]


# -- marks ------------------------------------------------------------------------------------------------------------


def test_an_audit_marks_how_far_each_account_was_checked(busy: Database) -> None:
    before = marks(busy)
    report = audit(busy, EVENING)

    assert before == {"peter/email": (1, 3), "peter/sms": (1, 1)}
    assert report.findings == []
    assert marks(busy) == last_entries(busy)


def test_a_finding_holds_its_own_account_only(busy: Database) -> None:
    before = marks(busy)
    damage(busy, A_CREDIT_MORE)

    first, second = audit(busy, EVENING), audit(busy, EVENING + timedelta(days=1))

    assert first.findings == second.findings != []
    assert "john/email" not in marks(busy)
    assert "john/email" not in before
    assert {name: mark for name, mark in last_entries(busy).items() if name != "john/email"} == marks(busy)


def test_a_held_account_moves_on_when_the_fault_is_mended(busy: Database) -> None:
    damage(busy, A_CREDIT_MORE)
    audit(busy, EVENING)
    damage(busy, A_CREDIT_LESS)

    assert audit(busy, EVENING + timedelta(days=1)).findings == []
    assert marks(busy) == last_entries(busy)


def test_a_held_account_moves_on_when_its_finding_is_acknowledged(busy: Database) -> None:
    damage(busy, A_CREDIT_MORE)
    audit(busy, EVENING)
    context = make_context(busy, clock=Clock(EVENING))
    acknowledge(context, None, operator="ann", note="known")

    for number in range(1, 4):
        assert audit(busy, EVENING + timedelta(days=number)).findings == []
    assert marks(busy) == last_entries(busy)


def test_a_charge_without_entry_is_found_as_long_as_it_stands(busy: Database) -> None:
    """Charges are found by time: the account is held at the time of its mark."""
    audit(busy, EVENING)
    later = EVENING + timedelta(hours=1)
    damage(
        busy,
        "INSERT INTO charges (org_id, job_id, task, kind, sender, owner_version, digest, account_id, credits, "
        "charged_by, refunded, state, attempts, crashes, created_at, final_at) SELECT org_id, 'free', task, kind, "
        "sender, owner_version, digest, account_id, credits, 'nothing', 0, 'sent', 1, 0, '2026-01-05 17:30:00.000000', "
        "final_at FROM charges WHERE job_id = 'e0'",
    )

    found = [subjects(audit(busy, later + timedelta(days=number), again=1)) for number in range(5)]

    assert all("free" in each for each in found)


# -- the circle -------------------------------------------------------------------------------------------------------


def test_every_account_comes_to_its_turn(busy: Database) -> None:
    audit(busy, EVENING)
    begun = max(whole_times(busy))
    rounds = 0
    while whole_times(busy)[0] <= begun:
        rounds += 1
        assert audit(busy, EVENING + timedelta(minutes=rounds), again=7).findings == []

    assert 8 < rounds < 40


def test_a_turn_goes_on_where_the_last_one_ended(busy: Database) -> None:
    """Each entry is checked again once a circle, however small the budget is."""
    audit(busy, EVENING)
    with busy.snapshot() as connection:
        count = len(connection.execute(select(entries)).all())

    again = [audit(busy, EVENING + timedelta(minutes=number), again=1).again["entries"] for number in range(1, count)]

    assert set(again) == {1}


def test_a_clock_that_was_put_back_starves_no_account(busy: Database) -> None:
    audit(busy, EVENING + timedelta(days=365))
    for number in range(30):
        audit(busy, EVENING + timedelta(minutes=number), again=7)
    damage(busy, "UPDATE charges SET digest = 'other' WHERE job_id IN ('e0', 's0')")

    assert any(audit(busy, EVENING + timedelta(hours=1), again=7).findings for _ in range(30))


def test_an_old_fault_is_found_again_until_it_is_mended(busy: Database) -> None:
    for _ in range(2):
        audit(busy, EVENING)
    damage(busy, "UPDATE charges SET digest = 'x' || digest WHERE job_id = 'e0'")

    found = [subjects(audit(busy, EVENING + timedelta(minutes=number), again=10)) for number in range(20)]
    damage(busy, "UPDATE charges SET digest = substr(digest, 2) WHERE job_id = 'e0'")

    first = next(number for number, each in enumerate(found) if each)
    assert all(each == found[-1] for each in found[first:])
    assert audit(busy, EVENING + timedelta(hours=1), again=10).findings == []
    assert show_findings(make_context(busy), everything=True)["rows"][0]["resolved_at"] is not None


def test_an_acknowledged_fault_that_is_mended_is_resolved_by_the_circle(busy: Database) -> None:
    audit(busy, EVENING)
    context = make_context(busy, clock=Clock(EVENING))
    damage(busy, A_CREDIT_MORE)
    audit(busy, EVENING + timedelta(minutes=1))
    acknowledge(context, None, operator="ann", note="known")
    audit(busy, EVENING + timedelta(minutes=2))
    damage(busy, A_CREDIT_LESS)

    for number in range(3, 6):
        assert audit(busy, EVENING + timedelta(minutes=number)).findings == []

    assert show_findings(context, everything=False)["rows"] == []


# -- the past ---------------------------------------------------------------------------------------------------------


def rewrite_past(connection: Connection) -> None:
    """Make an old message of john's cheaper, and everything after it agree, with all hashes: a consistent forgery."""
    johns = (accounts.c.owner_id == "john") & (accounts.c.kind == "email")
    account = connection.execute(select(accounts).where(johns)).one()
    of_account = (entries.c.org_id == account.org_id) & (entries.c.account_id == account.id)
    before, left = GENESIS, 0
    for entry in connection.execute(select(entries).where(of_account).order_by(entries.c.seq)).all():
        fields = {name: value for name, value in entry._asdict().items() if name != "hash"}
        if entry.cause_kind == "purchase":
            fields["amount"] += 5
            connection.exec_driver_sql(f"UPDATE orders SET email = email + 5 WHERE order_id = '{entry.cause_id}'")
            fields["content"] = "forged"
        left += fields["amount"]
        fields["balance_after"] = left
        before = entry_hash(before, **fields)
        connection.execute(
            update(entries).where(of_account, entries.c.seq == entry.seq).values(**fields, hash=before)
        )  # fmt: skip
    connection.execute(update(accounts).where(johns).values(available=left, hash=before))


def test_a_past_that_is_rewritten_with_all_its_hashes_is_found_by_the_next_audit(busy: Database) -> None:
    """The mark keeps the hash."""
    audit(busy, EVENING)
    with unguarded(busy) as connection:
        rewrite_past(connection)

    found = {finding.invariant for finding in audit(busy, EVENING, again=1).findings}

    assert STAYED in found


def test_a_past_that_is_rewritten_before_a_new_entry_is_found_by_the_next_audit(busy: Database) -> None:
    audit(busy, EVENING)
    with unguarded(busy) as connection:
        rewrite_past(connection)
    buy(busy, "john", email=1, now=EVENING)

    found = {finding.invariant for finding in audit(busy, EVENING, again=1).findings}

    assert CHAIN in found


def test_a_full_audit_finds_damage_behind_the_marks(busy: Database) -> None:
    audit(busy, EVENING)
    damage(busy, f"UPDATE entries SET amount = amount - 1 WHERE {JOHNS} AND cause_id = 'order-1'")

    full = audit(busy, EVENING + timedelta(days=1), whole=True)

    assert full.findings != []


def test_what_a_full_audit_has_found_is_checked_first_by_the_next(busy: Database) -> None:
    audit(busy, EVENING)
    damage(busy, "UPDATE charges SET digest = 'other' WHERE job_id = 's0'")
    full = audit(busy, EVENING + timedelta(minutes=1), whole=True)

    after = [audit(busy, EVENING + timedelta(minutes=number), again=5) for number in range(2, 30)]

    assert subjects(full) != []
    assert all(subjects(report) == subjects(full) for report in after)


def test_a_full_audit_without_findings_sets_all_marks_anew(busy: Database) -> None:
    full = audit(busy, EVENING, whole=True)
    again = audit(busy, EVENING + timedelta(days=1))

    assert (full.findings, full.since) == ([], None)
    with busy.snapshot() as connection:
        assert full.examined["entries"] == len(connection.execute(select(entries)).all()) > 20
    assert marks(busy) == last_entries(busy)
    assert again.since == EVENING - OVERLAP
    assert again.examined == {"entries": 0, "charges": 0, "orders": 0}


def test_a_balance_that_is_changed_behind_the_marks_is_found(busy: Database) -> None:
    audit(busy, EVENING)
    damage(busy, "UPDATE accounts SET available = available + 1 WHERE owner_id = 'john'")

    found = audit(busy, EVENING).findings

    assert {finding.subject for finding in found if finding.invariant == LAST_ENTRY} == {"john/email", "john/sms"}


def test_an_account_that_fell_behind_its_mark_is_found(busy: Database) -> None:
    audit(busy, EVENING)
    damage(
        busy,
        "DELETE FROM entries WHERE seq > 0 AND account_id IN (SELECT id FROM accounts WHERE owner_id = 'peter')",
        "UPDATE accounts SET seq = 0, available = 0, hash = (SELECT hash FROM entries "
        "WHERE account_id = accounts.id AND org_id = accounts.org_id AND seq = 0) WHERE owner_id = 'peter'",
    )

    found = audit(busy, EVENING).findings

    assert {finding.subject for finding in found if finding.invariant == STAYED} == {"peter/email", "peter/sms"}


def test_usage_that_is_rolled_up_after_an_audit_is_checked_by_the_next(busy: Database) -> None:
    """No account has moved in between."""
    audit(busy, EVENING)
    upkeep.roll_up(make_context(busy))
    damage(busy, f"UPDATE usage_days SET credits = credits + 1 WHERE sender = 'john' AND {JOHNS}")

    first, second = audit(busy, EVENING, again=1), audit(busy, EVENING, again=1)

    assert subjects(first) == ["john/email"]
    assert second.findings == first.findings


def test_too_many_findings_move_nothing(busy: Database) -> None:
    """Those that were not read would be forgotten."""
    save = "INSERT INTO charges (org_id, job_id, task, kind, sender, owner_version, digest, account_id, credits, "
    damage(
        busy,
        *(
            save + "charged_by, refunded, state, attempts, crashes, created_at, final_at) SELECT org_id, "
            f"'free-{number}', task, kind, sender, owner_version, digest, account_id, credits, 'nothing', 0, 'sent', "
            "1, 0, created_at, final_at FROM charges WHERE job_id = 'e0'"
            for number in range(120)
        ),
    )
    before = marks(busy)

    first, second = audit(busy, EVENING), audit(busy, EVENING)

    assert len(first.findings) >= 50
    assert second.findings != []
    assert marks(busy) == before


# -- at the same time as charges --------------------------------------------------------------------------------------


def test_a_charge_that_appears_late_is_within_the_overlap(database: Database) -> None:
    """Its transaction took as long as it may."""
    save_people(database)
    buy(database, "john", email=5)
    audit(database, NOON + OVERLAP)
    with unguarded(database) as connection:
        with undone(connection):  # a charge without an entry moves no account
            charge_jobs(connection, [ledger_job(email_job("late"))], lease_id="h", now=NOON, lease_until=EVENING)
            late = connection.execute(select(charges)).one()._asdict()
        late |= {"state": "sent", "lease_until": None, "content": None, "final_at": NOON}
        connection.execute(charges.insert().values(late))

    assert "late" in subjects(audit(database, NOON + OVERLAP, again=1))


def test_an_uncommitted_charge_is_checked_by_the_next_audit(stocked_postgres: Database) -> None:
    """Its entry has a higher number than the mark, however long the transaction takes."""
    audit(stocked_postgres)
    with stocked_postgres.engine.connect() as slow, slow.begin():
        charge_jobs(slow, [ledger_job(email_job("slow"))], lease_id="h", now=NOON, lease_until=EVENING)
        during = audit(stocked_postgres)
    after = audit(stocked_postgres, NOON + timedelta(days=1))

    assert (during.findings, during.examined["charges"]) == ([], 0)
    assert after.examined["entries"] == 1
    assert [finding.invariant for finding in after.findings] == ["No attempt outlives its lease"]


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
    assert sum(report.examined["entries"] for report in reports) == 109
    assert balance(database, "john") == 100
    with database.snapshot() as connection:
        assert connection.execute(select(findings)).all() == []
