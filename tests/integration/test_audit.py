"""The audit finds nothing after a busy story, and names each invariant that is broken on purpose."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select, text, update
from sqlalchemy.dialects import sqlite

from models.database.engine import Database
from models.database.schema import accounts, charges, entries
from models.reports.audit import (
    MARGIN,
    AuditReport,
    Finding,
    _audit,
    run_audit,
    scope_since_marks,
)
from models.reports.audit_scope import WHOLE_HISTORY
from models.reports.invariants import STALE_AFTER
from models.sends.carrier import Outcome, Receipt
from models.sends.charging import charge_jobs
from models.sends.retry_policy import RetryPolicy
from tasks import upkeep
from tests.audits import all_invariants, audit_everything
from tests.conftest import TEMPLATE, gather
from tests.factories import buy, email_job, ledger_job, purchase_order, save_people, share, sms_job
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
from tests.servers import PostgresServer

PATIENCE = timedelta(seconds=300)
EVENING = NOON + timedelta(hours=5)


@pytest.fixture(scope="session")
def busy_sqlite(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a file to copy, of a database that was busy."""
    file: Path = shutil.copyfile(migrated_sqlite, tmp_path_factory.mktemp("busy") / "busy.db")
    keep_busy(f"sqlite:///{file}")
    gather(file)
    return file


@pytest.fixture(scope="session")
def busy_postgres(migrated_postgres: PostgresServer) -> str:
    """Give the name of a database to copy, which was busy."""
    migrated_postgres.create_database("template_busy", template=TEMPLATE)
    keep_busy(migrated_postgres.url("template_busy"))
    return "template_busy"


@pytest.fixture(params=["sqlite", "postgresql"])
def busy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """Give a database after a day on which nearly everything happened that can, once of either kind."""
    with ExitStack() as stack:
        if request.param == "sqlite":
            url = f"sqlite:///{shutil.copyfile(request.getfixturevalue('busy_sqlite'), tmp_path / 'busy.db')}"
        else:
            template = request.getfixturevalue("busy_postgres")
            url = stack.enter_context(request.getfixturevalue("postgres").copy_of(template))
        database = Database(url)
        stack.callback(database.close)
        yield database


def keep_busy(url: str) -> None:
    """Let nearly everything happen that can, as on a busy day.

    An audit has left marks after its first purchase, so nearly all of it is new to the next one.
    """
    database = Database(url)
    save_people(database)
    clock = Clock()
    partial = Receipt(Outcome.ACCEPTED, refused={"a@b.test": "550"}, deferred={"c@d.test": "451"})
    email = FakeCarrier(ACCEPTED, NEVER, partial, NOT_NOW, NOBODY, UNSURE)
    sms = FakeCarrier(NOT_NOW, UNSURE, ACCEPTED, NOT_NOW, NEVER, is_idempotent=True)
    context = make_context(database, email, sms, clock, RetryPolicy(attempts_max=3))
    buy(database, "peter", email=3, sms=1)
    assert run_audit(database, NOON, retried_for=PATIENCE).findings == []
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
        upkeep.sweep(context)
    run_enqueued(context)
    upkeep.roll_up(context)
    answer(context, "email.send", email_job("waits"))
    database.close()


def found(database: Database, now: Any = NOON) -> list[Finding]:
    with database.snapshot() as connection:
        return audit_everything(connection, now)


def test_a_busy_story_leaves_nothing_to_find(busy: Database) -> None:
    assert found(busy, NOON + timedelta(hours=5)) == []


def test_a_busy_story_really_was_busy(busy: Database) -> None:
    with busy.snapshot() as connection:
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


EVERY_DAY = "Each day of usage, with what is not rolled up yet, is what its charges cost"
"""The one invariant that is asked only of the whole history."""
CASES = {
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
            "WHERE job_id = 'waits'; INSERT INTO leases VALUES ('h', '2026-01-05 12:00:00', '[\"waits\"]')"
        ),
    ],
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
    "Each entry has its charge, refund or order: the same account and amount": [
        "UPDATE entries SET cause = 'gift:1' WHERE cause = 'charge:e1'",
        "DELETE FROM charges WHERE job_id = 'e0'",
        "DELETE FROM orders WHERE order_id = 'order-1'",
        "UPDATE entries SET cause = 'refund:e0' WHERE cause = 'refund:e1'",
        "UPDATE entries SET amount = amount - 1 WHERE cause = 'charge:bulk-1'",
        "UPDATE entries SET cause = 'charge:bulk-1/0' WHERE cause = 'charge:e1'",
        "UPDATE charges SET messages = NULL WHERE job_id = 'bulk-1'",
    ],
    "Each charge has its entry, or its bulk job has: the payer's account, the whole cost": [
        "DELETE FROM entries WHERE cause = 'charge:e1'",
        "UPDATE entries SET amount = amount - 1 WHERE cause = 'charge:e1'",
        "UPDATE charges SET credits = credits + 1 WHERE job_id = 'e0'",
        (
            "UPDATE charges SET account_id = (SELECT id FROM accounts WHERE owner_id = 'mary' AND kind = 'email') "
            "WHERE job_id = 'e0'"
        ),
        "DELETE FROM entries WHERE cause = 'charge:bulk-1'",
        (
            "UPDATE charges SET account_id = (SELECT id FROM accounts WHERE owner_id = 'mary' AND kind = 'email') "
            "WHERE job_id = 'bulk-1/1'"
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
    "A bulk job costs what its messages cost, and knows how many they are": [
        "UPDATE charges SET credits = credits + 1 WHERE job_id = 'bulk-1'",
        "UPDATE charges SET messages = messages + 1 WHERE job_id = 'bulk-1'",
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


def found_by(connection: Connection, form: str) -> list[Finding]:
    """Give what an audit of this form finds, in the transaction of the damage."""
    if form == "without marks":
        return audit_everything(connection, EVENING)
    scope = scope_since_marks(connection, PATIENCE) if form == "incremental" else WHOLE_HISTORY
    assert scope.marked is (form == "incremental")
    return [
        Finding(invariant.name, *(str(part) for part in (row[0], row[1:])))
        for invariant in all_invariants(EVENING, scope)
        for row in connection.execute(invariant.violations)
    ]


def found_after(database: Database, damage: str, form: str) -> set[str]:
    """Give the invariants that the audit names after `damage`, which is undone."""
    with unguarded(database) as connection:
        for statement in damage.split("; "):
            assert connection.exec_driver_sql(statement).rowcount > 0
        named = {finding.invariant for finding in found_by(connection, form)}
        connection.rollback()
    return named


def test_what_is_broken_is_named(busy: Database, form: str) -> None:
    missed = [
        (invariant, damage)
        for invariant, damages in CASES.items()
        for damage in damages
        if (form != "incremental" or invariant != EVERY_DAY) and invariant not in found_after(busy, damage, form)
    ]

    assert missed == []
    assert found(busy, EVENING) == []


def test_every_invariant_is_broken_by_some_test() -> None:
    assert [invariant.name for invariant in all_invariants(NOON)] == list(CASES)


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
    ends = NOON + context.retry_policy.lease

    assert found(database, ends + STALE_AFTER) == []
    assert [finding.subject for finding in found(database, ends + STALE_AFTER + timedelta(seconds=1))] == ["job-1"]


# -- marks ------------------------------------------------------------------------------------------------------------


def marks(database: Database) -> dict[str, tuple[int, int]]:
    """Give how far each account has been checked."""
    with database.snapshot() as connection:
        rows = connection.execute(
            text(
                "SELECT owner_id, kind, audit_marks.seq, balance FROM audit_marks "
                "JOIN accounts ON accounts.id = audit_marks.account_id"
            )
        )
        return {f"{owner}/{kind}": (seq, balance) for owner, kind, seq, balance in rows}


def looked(database: Database, now: datetime = NOON, *, whole: bool = False) -> AuditReport:
    return run_audit(database, now, retried_for=PATIENCE, whole=whole)


def test_a_clean_audit_marks_how_far_each_account_was_checked(busy: Database) -> None:
    before = marks(busy)
    audited = looked(busy, EVENING)

    assert before == {"peter/email": (1, 3), "peter/sms": (1, 1)}
    assert audited.findings == []
    with busy.snapshot() as connection:
        rows = connection.execute(text("SELECT owner_id, kind, seq, available FROM accounts WHERE seq > 0"))
        assert marks(busy) == {f"{owner}/{kind}": (seq, available) for owner, kind, seq, available in rows}


def test_an_audit_that_finds_something_leaves_the_marks_and_finds_it_again(busy: Database) -> None:
    before = marks(busy)
    with unguarded(busy) as connection:
        connection.exec_driver_sql("UPDATE charges SET credits = credits + 1 WHERE job_id = 'e0'")

    first, second = looked(busy, EVENING), looked(busy, EVENING + timedelta(days=1))

    assert first.findings == second.findings != []
    assert marks(busy) == before


def test_damage_behind_the_marks_is_found_by_a_full_audit_which_takes_the_marks_away(busy: Database) -> None:
    """And so the next incremental one starts from nothing, and finds it too."""
    looked(busy, EVENING)
    later = EVENING + timedelta(days=1)
    with unguarded(busy) as connection:
        connection.exec_driver_sql("UPDATE entries SET amount = amount - 1 WHERE cause = 'charge:e1'")

    behind = looked(busy, later)
    full = looked(busy, later, whole=True)
    after = looked(busy, later)

    assert behind.findings == []
    assert full.findings != []
    assert marks(busy) == {}
    assert after.findings == full.findings
    assert after.since is None


def test_a_full_audit_that_finds_nothing_marks_everything_anew(busy: Database) -> None:
    full = looked(busy, EVENING, whole=True)
    again = looked(busy, EVENING + timedelta(days=1))

    assert (full.findings, full.since) == ([], None)
    with busy.snapshot() as connection:
        assert full.examined["entries"] == connection.execute(text("SELECT count(*) FROM entries")).scalar_one() > 20
    assert marks(busy)["peter/email"][0] > 1
    assert again.since == EVENING - PATIENCE - MARGIN
    assert again.examined == {"entries": 0, "charges": 0, "orders": 0}


def test_a_balance_that_is_changed_behind_the_marks_is_found(busy: Database) -> None:
    """No entry moved, but every account is compared with its mark."""
    looked(busy, EVENING)
    with unguarded(busy) as connection:
        connection.exec_driver_sql("UPDATE accounts SET available = available + 1 WHERE owner_id = 'john'")

    assert {one.subject for one in looked(busy, EVENING).findings} == {"john/email", "john/sms"}


def test_an_account_that_fell_behind_its_mark_is_found(busy: Database) -> None:
    looked(busy, EVENING)
    with unguarded(busy) as connection:
        connection.exec_driver_sql(
            "DELETE FROM entries WHERE account_id IN (SELECT id FROM accounts WHERE owner_id = 'peter')"
        )
        connection.exec_driver_sql("UPDATE accounts SET seq = 0, available = 0 WHERE owner_id = 'peter'")

    assert {one.subject for one in looked(busy, EVENING).findings} >= {"peter/email", "peter/sms"}


def test_a_charge_that_appears_late_is_within_the_overlap(database: Database) -> None:
    """Its time was read before a transaction that was tried again for as long as is allowed."""
    save_people(database)
    buy(database, "john", email=5)
    began = NOON
    looked(database, began + PATIENCE + MARGIN)
    with database.engine.begin() as connection:
        charge_jobs(connection, [ledger_job(email_job("late"))], lease_id="h", now=began, lease_until=EVENING)
    with unguarded(database) as connection:  # a charge without an entry: no account moves
        connection.exec_driver_sql("DELETE FROM entries WHERE cause = 'charge:late'")
        connection.exec_driver_sql(
            "UPDATE accounts SET seq = 1, available = 5 WHERE owner_id = 'john' AND kind = 'email'"
        )

    assert [one.subject for one in looked(database, began + PATIENCE + MARGIN).findings] == ["late"]


def test_an_uncommitted_charge_is_checked_by_the_next_audit(postgres_url: str) -> None:
    """It has a higher number than the mark, however long it takes."""
    database = Database(postgres_url)
    save_people(database)
    buy(database, "john", email=5)
    with database.engine.connect() as slow, slow.begin():
        charge_jobs(slow, [ledger_job(email_job("slow"))], lease_id="h", now=NOON, lease_until=EVENING)
        during = looked(database)
    after = looked(database, NOON + timedelta(days=1))
    database.close()

    assert (during.findings, during.examined["charges"]) == ([], 0)
    assert after.examined["entries"] == 1
    assert [one.invariant for one in after.findings] == ["No attempt outlives its lease"]


def test_audits_and_charges_side_by_side_find_nothing(database: Database) -> None:
    """Neither waits for the other in vain, and each audit sees one state of things."""
    save_people(database)
    buy(database, "john", email=200)
    faults: list[BaseException] = []

    def charge(start: int) -> None:
        try:
            for number in range(start, start + 50):
                job = ledger_job(email_job(f"j{number}"))
                database.write(
                    lambda connection, job=job: charge_jobs(  # type: ignore[misc]
                        connection, [job], lease_id=job.job_id, now=NOON, lease_until=EVENING
                    )
                )
        except BaseException as fault:  # noqa: BLE001  shown by the assertion
            faults.append(fault)

    threads = [threading.Thread(target=charge, args=(start,)) for start in (0, 100)]
    for thread in threads:
        thread.start()
    audits = []
    while any(thread.is_alive() for thread in threads):
        audits.append(looked(database))
        threads[0].join(0.05)  # on SQLite each audit keeps the writers out, who look again only now and then
    audits.append(looked(database))

    assert faults == []
    assert [one.findings for one in audits if one.findings] == []
    assert sum(one.examined["entries"] for one in audits) == 101


def test_usage_that_is_rolled_up_after_an_audit_is_checked_by_the_next(busy: Database) -> None:
    """Though no account has moved in between."""
    looked(busy, EVENING)
    upkeep.roll_up(make_context(busy))
    with unguarded(busy) as connection:
        connection.exec_driver_sql("UPDATE usage_days SET credits = credits + 1 WHERE sender = 'john'")

    first, second = looked(busy, EVENING), looked(busy, EVENING)

    assert [one.subject for one in first.findings] == ["john/email"]
    assert second.findings == first.findings


def test_the_task_logs_each_finding_and_answers_with_all(busy: Database) -> None:
    context = make_context(busy, clock=Clock(EVENING))
    clean = upkeep.audit(context)
    with unguarded(busy) as connection:
        connection.exec_driver_sql("UPDATE accounts SET available = 5 WHERE owner_id = 'mary' AND kind = 'sms'")

    failed = upkeep.audit(context)

    assert (clean["status"], clean["findings"]) == ("done", [])
    assert failed["status"] == "failed"
    assert [one["subject"] for one in failed["findings"]] == ["mary/sms"]


# -- how much is read -------------------------------------------------------------------------------------------------

HISTORY = 20_000
AFTERNOON = NOON + timedelta(hours=1)
"""When history is older than the overlap."""


@pytest.fixture
def long_history(database: Database) -> Database:
    """Give a database with 20,000 sent messages of one pool."""
    save_people(database)
    buy(database, "john", email=HISTORY)
    write_history(database, HISTORY)
    return database


def write_history(database: Database, count: int) -> None:
    """Write sent messages of john, as the ledger would have written them one by one."""
    numbers = range(1, count + 1)
    mine = (accounts.c.owner_id == "john") & (accounts.c.kind == "email")
    sent = {"task": "email.send", "kind": "email", "sender": "john", "digest": "d", "credits": 1, "refunded": 0,
            "state": "sent", "attempts": 1, "crashes": 0, "created_at": NOON, "final_at": NOON}  # fmt: skip
    with database.engine.begin() as connection:
        account = connection.execute(select(accounts.c.id).where(mine)).scalar_one()
        connection.execute(insert(charges), [{**sent, "job_id": f"job-{n}", "account_id": account} for n in numbers])
        spent = [{"seq": n + 1, "balance_after": count - n, "cause": f"charge:job-{n}"} for n in numbers]
        connection.execute(insert(entries), [{**one, "account_id": account, "amount": -1, "at": NOON} for one in spent])
        connection.execute(update(accounts).where(mine).values(seq=count + 1, available=0))
    with database.engine.begin() as connection:
        connection.exec_driver_sql("ANALYZE")


def test_an_audit_looks_only_at_what_is_new(long_history: Database) -> None:
    first = looked(long_history, AFTERNOON)
    nothing_new = looked(long_history, EVENING)
    buy(long_history, "john", email=1, now=EVENING)
    answer(make_context(long_history, clock=Clock(EVENING)), "email.send", email_job("new"))
    one_new = looked(long_history, EVENING + timedelta(minutes=1))

    assert first.examined == {"entries": HISTORY + 1, "charges": HISTORY, "orders": 1}
    assert nothing_new.examined == {"entries": 0, "charges": 0, "orders": 0}
    assert one_new.examined == {"entries": 2, "charges": 1, "orders": 1}
    assert [one for audited in (first, nothing_new, one_new) for one in audited.findings] == []


def test_postgresql_reads_only_rows_that_are_new(postgres_url: str) -> None:
    """As PostgreSQL itself counts them in the audit's transaction."""
    database = Database(postgres_url)
    save_people(database)
    buy(database, "john", email=HISTORY)
    write_history(database, HISTORY)
    looked(database, AFTERNOON)
    buy(database, "john", email=1, now=EVENING)
    answer(make_context(database, clock=Clock(EVENING)), "email.send", email_job("new"))
    database.engine.dispose()  # a new session has not counted anything yet

    with database.engine.begin() as connection:
        audited = _audit(connection, EVENING, PATIENCE, whole=False)
        after = rows_read(connection)
    database.close()

    assert audited.examined == {"entries": 2, "charges": 1, "orders": 1}
    assert all(count < 100 for count in after.values()), after


def rows_read(connection: Connection) -> dict[str, int]:
    """Give how many rows of each table with history this session has read so far."""
    counts = connection.execute(
        text(
            "SELECT relname, coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) "
            "FROM pg_stat_xact_user_tables WHERE relname IN ('entries', 'charges', 'orders')"
        )
    )
    return {table: count for table, count in counts}  # noqa: C416  a Row is a tuple


def test_sqlite_searches_history_and_does_not_scan_it(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    save_people(database)
    buy(database, "john", email=HISTORY)
    write_history(database, HISTORY)
    looked(database, AFTERNOON)
    with database.snapshot() as connection:
        scope = scope_since_marks(connection, PATIENCE)
        plans = [
            (invariant.name, row[3])
            for invariant in all_invariants(EVENING, scope)
            for row in connection.exec_driver_sql("EXPLAIN QUERY PLAN " + as_text(invariant.violations))
        ]
    database.close()

    assert [plan for plan in plans if plan[1].startswith(("SCAN entries", "SCAN charges"))] == []
    assert any("SEARCH entries" in plan for _, plan in plans)


def as_text(query: Any) -> str:
    return str(query.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True}))
