"""Usage is rolled up bit by bit, and shown exactly however much of it is rolled up. No query reads all charges."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, event, func, outerjoin, select, text

from models.database.engine import Database
from models.database.schema import accounts, charges, usage_days, usage_marks
from models.messages.views import View, ViewUsage
from models.reports.rollup import roll_up_usage, same_account
from models.reports.views import show_orders, show_usage
from models.sends.carrier import Outcome, Receipt
from models.sends.charging import charge_jobs
from tasks import upkeep
from tasks.context import Context
from tests.factories import ACME, balance, buy, email_job, ledger_job, share, sms_job, stock
from tests.fakes import NEVER, NOON, NOT_NOW, Clock, FakeCarrier, answer, later, make_context
from tests.integration.history import SENT, analyze, insert_rows, rows_read, write_sent_emails
from tests.integration.sending import pass_time
from tests.integration.templates import database_filled_by
from tests.spending import usage_of_all_charges, usage_shown

EVENING = NOON + timedelta(hours=6)
DAY = timedelta(days=1)
EACH = timedelta(hours=7)
"""The time from one email of the three days to the next."""


def send_for_three_days(database: Database) -> None:
    """Let john and peter spend the credits of john, and peter in the end his own."""
    stock(database, email=30, sms=30)
    clock = Clock()
    partial = Receipt(Outcome.ACCEPTED, refused={"a@b.test": "550"})
    context = make_context(database, FakeCarrier(*[partial, NEVER, NOT_NOW] * 3), FakeCarrier(), clock)
    for number, sender in enumerate(("john", "peter", "john") * 3):
        answer(context, "email.send", email_job(f"e{number}", sender, to=["a@b.test", "c@d.test"]))
        answer(context, "sms.send", sms_job(f"s{number}", sender))
        clock.forward(EACH)
        if number == 5:
            share(database, "peter", "peter")
            buy(database, "peter", email=10, sms=10)


three_days = database_filled_by(send_for_three_days)


@pytest.fixture
def context(three_days: Database) -> Context:
    """Give a context after three days on which john and peter have sent messages."""
    return make_context(three_days, clock=Clock(NOON + 9 * EACH))


VIEWS = [
    ViewUsage.model_validate({"viewer": viewer, "of": of, "by": by, **between})
    for viewer in ("john", "peter")
    for of in ("owner", "self")
    for by in ("day", "message")
    for between in (
        {},
        {"since": "2026-01-06"},
        {"until": "2026-01-07"},
        {"since": "2026-01-05T13:00:00Z", "until": "2026-01-07T13:00:00Z"},
        {"since": "2026-01-05T12:00:00Z", "until": "2026-01-05T19:00:00Z"},
        {"since": "2026-01-05T20:00:00Z", "until": "2026-01-06T20:00:00Z"},
        {"since": "2026-01-07T00:00:00+09:00", "until": "2026-01-08T00:00:00+09:00"},
        {"since": "2026-01-07", "until": "2026-01-06"},
        {"since": "9999-12-31T23:00:00Z"},
        {"since": "0001-01-02", "until": "9999-12-31T23:00:00Z"},
    )
]


def wrong_views(database: Database) -> list[ViewUsage]:
    """Give the views that show something else than all charges add up to."""
    with database.snapshot() as connection:
        return [view for view in VIEWS if usage_shown(connection, view) != usage_of_all_charges(connection, view)]


def rolled_up(database: Database) -> tuple[list[Any], list[Any]]:
    """Give all days of usage, and all marks."""
    with database.snapshot() as connection:
        days = connection.execute(select(usage_days).order_by(*usage_days.primary_key)).all()
        return [*days], [*connection.execute(select(usage_marks).order_by(usage_marks.c.account_id))]


def test_usage_is_exact_before_between_and_after_roll_ups(context: Context) -> None:
    database = context.database
    wrong = [wrong_views(database)]
    while database.write(lambda connection: roll_up_usage(connection, account_batch=2, entry_batch=8)):
        wrong.append(wrong_views(database))

    assert len(wrong) > 3
    assert wrong == [[]] * len(wrong)


def test_a_roll_up_task_rolls_up_everything(context: Context) -> None:
    answered = upkeep.roll_up(context)
    again = upkeep.roll_up(context)

    with context.database.snapshot() as connection:
        marks = outerjoin(accounts, usage_marks, same_account(usage_marks))
        rolled = func.coalesce(usage_marks.c.seq, 0)
        behind = select(accounts.c.id).select_from(marks).where(accounts.c.seq > rolled)
        count = connection.execute(text("SELECT count(*) FROM entries WHERE seq > 0")).scalar_one()
        assert connection.execute(behind).all() == []
    assert (answered, again) == ({"status": "done", "rolled": count}, {"status": "done", "rolled": 0})


def test_a_roll_up_with_nothing_new_changes_nothing(context: Context) -> None:
    upkeep.roll_up(context)
    before = rolled_up(context.database)

    upkeep.roll_up(context)

    assert rolled_up(context.database) == before


def test_a_transaction_rolls_up_no_more_accounts_and_entries_than_it_may(context: Context) -> None:
    rolled = context.database.write(lambda connection: roll_up_usage(connection, account_batch=1, entry_batch=4))

    [mark] = rolled_up(context.database)[1]
    assert (rolled, mark.seq) == (4, 4)


def test_the_account_that_is_furthest_behind_is_rolled_up_first(context: Context) -> None:
    with context.database.snapshot() as connection:
        longest = connection.execute(select(accounts.c.id).order_by(accounts.c.seq.desc()).limit(1)).scalar_one()

    context.database.write(lambda connection: roll_up_usage(connection, entry_batch=1))

    assert [mark.account_id for mark in rolled_up(context.database)[1] if mark.seq] == [longest]


@pytest.mark.parametrize("statements", range(1, 6))
def test_a_crash_midway_leaves_nothing_and_the_next_roll_up_does_it_all(context: Context, statements: int) -> None:
    database = context.database
    database.write(lambda connection: roll_up_usage(connection, entry_batch=7))
    before = rolled_up(database)
    left = [statements]

    def crash(*_: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise ZeroDivisionError

    event.listen(database.engine, "after_cursor_execute", crash)
    with pytest.raises(ZeroDivisionError):
        database.write(roll_up_usage)
    event.remove(database.engine, "after_cursor_execute", crash)

    assert rolled_up(database) == before
    upkeep.roll_up(context)
    assert wrong_views(database) == []
    assert rolled_up(database)[0] != before[0]


def test_a_refund_reduces_the_day_of_its_charge(stocked: Database) -> None:
    context = make_context(stocked, FakeCarrier(NOT_NOW, NEVER))
    answer(context, "email.send", email_job())
    upkeep.roll_up(context)
    assert len(later(context, DAY)) == 1

    with stocked.snapshot() as connection:
        before_roll_up = show_usage(connection, ViewUsage(viewer="john"))["rows"]
    upkeep.roll_up(context)

    expected = [{"user": "john", "day": "2026-01-05", "kind": "email", "credits": 0, "messages": 1}]
    assert before_roll_up == expected
    with stocked.snapshot() as connection:
        assert show_usage(connection, ViewUsage(viewer="john"))["rows"] == expected
    [day] = rolled_up(stocked)[0]
    assert (str(day.day), day.credits, day.messages) == ("2026-01-05", 0, 1)


def test_an_account_that_is_being_rolled_up_blocks_no_other_worker(stocked_postgres: Database) -> None:
    """Neither the next charge nor the next roll-up waits for the transaction that is open meanwhile."""
    database = stocked_postgres
    database.write(roll_up_usage)
    database.write(lambda connection: charge(connection, "first"))
    with database.engine.connect() as slow, slow.begin():
        rolled = roll_up_usage(slow)
        database.write(lambda connection: charge(connection, "second"))
        meanwhile = database.write(roll_up_usage)
    after = database.write(roll_up_usage)

    assert (rolled, meanwhile, after) == (1, 0, 1)
    assert wrong_views(database) == []


def charge(connection: Connection, job_id: str) -> None:
    job = ledger_job(email_job(job_id))
    charge_jobs(connection, [job], lease_id=job_id, now=NOON, lease_until=NOON + timedelta(hours=1))


def test_days_come_in_pages(context: Context) -> None:
    buy(context.database, "mary", email=120)
    for number in range(120):
        job = ledger_job(email_job(f"m{number}", "mary"))
        context.database.write(
            lambda connection, job=job: charge_jobs(  # type: ignore[misc]
                connection, [job], lease_id=job.job_id, now=context.now(), lease_until=context.now() + DAY
            )
        )
        pass_time(context, DAY)
        if number == 90:
            upkeep.roll_up(context)
    views = [ViewUsage(viewer="mary", page=page, by=by) for page in (1, 2, 3) for by in ("day", "message")]  # type: ignore[arg-type]

    with context.database.snapshot() as connection:
        shown = [usage_shown(connection, view) for view in views]

        assert shown == [usage_of_all_charges(connection, view) for view in views]
    assert [(len(page["rows"]), page["more"]) for page in shown[::2]] == [(100, True), (20, False), (0, False)]


# -- how much is read -------------------------------------------------------------------------------------------------

HISTORY = 10_000
VIEWS_OF_PETER = [view for view in VIEWS if view.viewer == "peter"]


def write_history(database: Database, count: int = HISTORY) -> None:
    """Write emails of peter over 100 days, which john has paid and which are rolled up, and one that is not."""
    stock(database, email=count)
    write_sent_emails(database, "peter", [NOON + number * 100 * DAY / count for number in range(1, count + 1)])
    refused = {"org_id": ACME, "state": "refused", "attempts": 0, "created_at": NOON + 400 * DAY, "final_at": NOON}
    with database.engine.begin() as connection:
        jobs = [{"job_id": f"no-{number}"} for number in range(count)]
        insert_rows(connection, charges, jobs, **{**SENT, **refused, "sender": "peter"})
    upkeep.roll_up(make_context(database))
    buy(database, "john", email=1, now=EVENING)
    answer(make_context(database, clock=Clock(EVENING)), "email.send", email_job("new", "peter"))
    analyze(database)


history_on_postgres = database_filled_by(write_history, "postgresql")
history_on_sqlite = database_filled_by(write_history, "sqlite")


def test_postgresql_reads_days_and_not_messages(history_on_postgres: Database) -> None:
    """As PostgreSQL itself counts rows: 100 days, a page, what is not rolled up yet, and what is left of two days."""
    messages_of_a_day = HISTORY / 100
    counts = {}
    for view in VIEWS_OF_PETER:
        history_on_postgres.engine.dispose()  # a new session has not counted anything yet
        with history_on_postgres.snapshot() as connection:
            show_usage(connection, view)
            read = rows_read(connection)
        counts[str(view)] = sum(read[table] for table in ("entries", "charges", "usage_days", "orders"))

    assert len(counts) == len(VIEWS_OF_PETER)
    assert {view: count for view, count in counts.items() if count > 3 * 2 * messages_of_a_day} == {}


def test_sqlite_searches_the_history_and_does_not_scan_it(history_on_sqlite: Database) -> None:
    with history_on_sqlite.snapshot() as connection:
        statements: list[tuple[str, Any]] = []
        event.listen(connection, "before_cursor_execute", lambda *args: statements.append((args[2], args[3])))
        for view in VIEWS_OF_PETER:
            show_usage(connection, view)
        show_orders(connection, View(viewer="peter"))
        plans = [
            row[3]
            for statement, parameters in list(statements)
            for row in connection.exec_driver_sql("EXPLAIN QUERY PLAN " + statement, parameters)
        ]

    assert len(plans) > len(VIEWS_OF_PETER)
    history = ("SCAN entries", "SCAN charges", "SCAN usage_days", "SCAN orders")
    assert [plan for plan in plans if plan.startswith(history)] == []


def test_usage_agrees_with_the_balance_after_a_long_history(database: Database) -> None:
    write_history(database, 500)

    with database.snapshot() as connection:
        total = show_usage(connection, ViewUsage(viewer="john"))["total"]
    assert total["email"] == 501
    assert balance(database, "john") == 0
