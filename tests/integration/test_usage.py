"""Usage is rolled up bit by bit, and shown exactly whatever was rolled up; nothing reads all charges."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert, select, text, update

from models.database.engine import Database
from models.database.schema import accounts, charges, entries, usage_days, usage_marks
from models.messages.views import View, ViewUsage
from models.reports.rollup import roll_up_usage
from models.reports.views import show_orders, show_usage
from models.sends.carrier import Outcome, Receipt
from models.sends.charging import charge_jobs
from tasks import upkeep
from tasks.context import Context
from tests.factories import balance, buy, email_job, ledger_job, share, sms_job, stock
from tests.fakes import NEVER, NOON, NOT_NOW, Clock, FakeCarrier, answer, make_context
from tests.spending import usage_of_all_charges, usage_shown

EVENING = NOON + timedelta(hours=6)
DAY = timedelta(days=1)


@pytest.fixture
def context(database: Database) -> Context:
    """Give a context after three days on which john and peter spent what john owns, and peter also his own."""
    stock(database, email=30, sms=30)
    clock = Clock()
    partial = Receipt(Outcome.ACCEPTED, refused={"a@b.test": "550"})
    context = make_context(database, FakeCarrier(*[partial, NEVER, NOT_NOW] * 3), FakeCarrier(), clock)
    for day in range(3):
        for sender in ("john", "peter", "john"):
            number = len(context.carriers["email"].messages)  # type: ignore[attr-defined]
            answer(context, "email.send", email_job(f"e{number}", sender, to=["a@b.test", "c@d.test"]))
            answer(context, "sms.send", sms_job(f"s{number}", sender))
            clock.forward(timedelta(hours=7))
        if day == 1:
            share(database, "peter", "peter")
            buy(database, "peter", email=10, sms=10)
    return context


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


def different(database: Database) -> list[ViewUsage]:
    """Give the views that show something else than all charges add up to."""
    with database.snapshot() as connection:
        return [view for view in VIEWS if usage_shown(connection, view) != usage_of_all_charges(connection, view)]


def state(database: Database) -> tuple[list[Any], list[Any]]:
    with database.snapshot() as connection:
        days = connection.execute(select(usage_days).order_by(*usage_days.primary_key)).all()
        return [*days], [*connection.execute(select(usage_marks).order_by(usage_marks.c.account_id))]


def test_usage_is_exact_before_between_and_after_rounds(context: Context) -> None:
    database = context.database
    wrong = [different(database)]
    while database.write(lambda connection: roll_up_usage(connection, account_batch=2, entry_batch=8)):
        wrong.append(different(database))

    assert len(wrong) > 4
    assert wrong == [[]] * len(wrong)


def test_a_round_of_upkeep_rolls_up_all_there_is(context: Context) -> None:
    answered = upkeep.roll_up(context)
    again = upkeep.roll_up(context)

    with context.database.snapshot() as connection:
        behind = select(accounts.c.id).where(accounts.c.seq > 0, accounts.c.id.not_in(select(usage_marks.c.account_id)))
        count = connection.execute(text("SELECT count(*) FROM entries")).scalar_one()
        assert connection.execute(behind).all() == []
    assert (answered, again) == ({"status": "done", "rolled": count}, {"status": "done", "rolled": 0})


def test_a_round_with_nothing_new_changes_nothing(context: Context) -> None:
    upkeep.roll_up(context)
    before = state(context.database)

    upkeep.roll_up(context)

    assert state(context.database) == before


def test_a_transaction_takes_no_more_accounts_and_entries_than_it_may(context: Context) -> None:
    rolled = context.database.write(lambda connection: roll_up_usage(connection, account_batch=1, entry_batch=4))

    [mark] = state(context.database)[1]
    assert (rolled, mark.seq) == (4, 4)


def test_the_account_that_is_furthest_behind_comes_first(context: Context) -> None:
    with context.database.snapshot() as connection:
        longest = connection.execute(select(accounts.c.id).order_by(accounts.c.seq.desc()).limit(1)).scalar_one()

    context.database.write(lambda connection: roll_up_usage(connection, entry_batch=1))

    assert [mark.account_id for mark in state(context.database)[1] if mark.seq] == [longest]


@pytest.mark.parametrize("statements", range(1, 6))
def test_a_worker_that_dies_midway_leaves_nothing_and_the_next_does_it_all(context: Context, statements: int) -> None:
    database = context.database
    database.write(lambda connection: roll_up_usage(connection, entry_batch=7))
    before = state(database)
    left = [statements]

    def die(*_: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise ZeroDivisionError

    event.listen(database.engine, "after_cursor_execute", die)
    with pytest.raises(ZeroDivisionError):
        database.write(roll_up_usage)
    event.remove(database.engine, "after_cursor_execute", die)

    assert state(database) == before
    upkeep.roll_up(context)
    assert different(database) == []
    assert state(database)[0] != before[0]


def test_a_refund_reduces_the_day_of_its_charge(database: Database) -> None:
    stock(database, email=5)
    clock = Clock()
    context = make_context(database, FakeCarrier(NOT_NOW, NEVER), clock=clock)
    answer(context, "email.send", email_job())
    upkeep.roll_up(context)
    clock.forward(DAY)
    upkeep.sweep(context)
    [(task, given)] = context.enqueue.take()  # type: ignore[attr-defined]
    answer(context, task, given)

    with database.snapshot() as connection:
        waiting = show_usage(connection, ViewUsage(viewer="john"))["rows"]
    upkeep.roll_up(context)

    expected = [{"user": "john", "day": "2026-01-05", "kind": "email", "credits": 0, "messages": 1}]
    assert waiting == expected
    with database.snapshot() as connection:
        assert show_usage(connection, ViewUsage(viewer="john"))["rows"] == expected
    [day] = state(database)[0]
    assert (str(day.day), day.credits, day.messages) == ("2026-01-05", 0, 1)


def test_what_one_worker_rolls_up_another_leaves_alone_and_charges_go_on(postgres_url: str) -> None:
    """Neither waits: it would wait for ever, as the other goes on only after it."""
    database = Database(postgres_url)
    stock(database, email=5)
    database.write(roll_up_usage)
    database.write(lambda connection: charge(connection, "first"))
    with database.engine.connect() as slow, slow.begin():
        rolled = roll_up_usage(slow)
        database.write(lambda connection: charge(connection, "second"))
        meanwhile = database.write(roll_up_usage)
    after = database.write(roll_up_usage)

    assert (rolled, meanwhile, after) == (1, 0, 1)
    assert different(database) == []
    database.close()


def charge(connection: Connection, job_id: str) -> None:
    job = ledger_job(email_job(job_id))
    charge_jobs(connection, [job], lease_id=job_id, now=NOON, lease_until=NOON + timedelta(hours=1))


def test_days_come_in_pages(context: Context) -> None:
    clock: Any = context.now
    buy(context.database, "mary", email=120)
    for number in range(120):
        job = ledger_job(email_job(f"m{number}", "mary"))
        context.database.write(
            lambda connection, job=job: charge_jobs(  # type: ignore[misc]
                connection, [job], lease_id=job.job_id, now=clock(), lease_until=clock() + DAY
            )
        )
        clock.forward(DAY)
        if number == 90:
            upkeep.roll_up(context)
    asked = [ViewUsage(viewer="mary", page=page, by=by) for page in (1, 2, 3) for by in ("day", "message")]  # type: ignore[arg-type]

    with context.database.snapshot() as connection:
        shown = [usage_shown(connection, view) for view in asked]

        assert shown == [usage_of_all_charges(connection, view) for view in asked]
    assert [(len(page["rows"]), page["more"]) for page in shown[::2]] == [(100, True), (20, False), (0, False)]


# -- how much is read -------------------------------------------------------------------------------------------------

HISTORY = 10_000
ASKED = [view for view in VIEWS if view.viewer == "peter"]


def write_history(database: Database, count: int) -> None:
    """Write sent messages of peter that john paid, over 100 days, as the ledger would have written them one by one."""
    stock(database, email=count)
    mine = (accounts.c.owner_id == "john") & (accounts.c.kind == "email")
    sent = {"task": "email.send", "kind": "email", "sender": "peter", "digest": "d", "credits": 1, "refunded": 0,
            "state": "sent", "attempts": 1, "crashes": 0}  # fmt: skip
    refused = {**sent, "state": "refused", "attempts": 0, "created_at": NOON + 400 * DAY, "final_at": NOON}
    times = {number: NOON + number * 100 * DAY / count for number in range(1, count + 1)}
    with database.engine.begin() as connection:
        account = connection.execute(select(accounts.c.id).where(mine)).scalar_one()
        paid = {**sent, "account_id": account}
        connection.execute(
            insert(charges),
            [{**paid, "job_id": f"job-{n}", "created_at": at, "final_at": at} for n, at in times.items()],
        )
        connection.execute(insert(charges), [{**refused, "job_id": f"no-{n}"} for n in range(count)])
        spent = [{"seq": n + 1, "balance_after": count - n, "cause": f"charge:job-{n}", "at": at}
                 for n, at in times.items()]  # fmt: skip
        connection.execute(insert(entries), [{**one, "account_id": account, "amount": -1} for one in spent])
        connection.execute(update(accounts).where(mine).values(seq=count + 1, available=0))
    upkeep.roll_up(make_context(database))
    buy(database, "john", email=1, now=EVENING)
    answer(make_context(database, clock=Clock(EVENING)), "email.send", email_job("new", "peter"))
    with database.engine.begin() as connection:
        connection.exec_driver_sql("ANALYZE")


def test_postgresql_reads_days_and_not_messages(postgres_url: str) -> None:
    """As PostgreSQL itself counts rows: 100 days, a page, what is not rolled up yet, and what is left of two days."""
    database = Database(postgres_url)
    write_history(database, HISTORY)
    a_day = HISTORY / 100
    read = {}
    for view in ASKED:
        database.engine.dispose()  # a new session has not counted anything yet
        with database.snapshot() as connection:
            show_usage(connection, view)
            read[str(view)] = rows_read(connection)
    database.close()

    assert len(read) == len(ASKED)
    assert {view: count for view, count in read.items() if count > 3 * 2 * a_day} == {}


def rows_read(connection: Connection) -> int:
    """Give how many rows of tables with history this session has read so far."""
    query = (
        "SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables "
        "WHERE relname IN ('entries', 'charges', 'usage_days', 'orders')"
    )
    return int(connection.exec_driver_sql(query).scalar_one())


def test_sqlite_searches_history_and_does_not_scan_it(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    write_history(database, HISTORY)
    with database.snapshot() as connection:
        statements: list[tuple[str, Any]] = []
        event.listen(connection, "before_cursor_execute", lambda *args: statements.append((args[2], args[3])))
        for view in ASKED:
            show_usage(connection, view)
        show_orders(connection, View(viewer="peter"))
        plans = [
            row[3]
            for statement, parameters in list(statements)
            for row in connection.exec_driver_sql("EXPLAIN QUERY PLAN " + statement, parameters)
        ]
    database.close()

    assert len(plans) > len(ASKED)
    history = ("SCAN entries", "SCAN charges", "SCAN usage_days", "SCAN orders")
    assert [plan for plan in plans if plan.startswith(history)] == []


def test_usage_agrees_with_the_balance_after_a_long_history(database: Database) -> None:
    write_history(database, 500)

    with database.snapshot() as connection:
        total = show_usage(connection, ViewUsage(viewer="john"))["total"]
    assert total["email"] == 501
    assert balance(database, "john") == 0
