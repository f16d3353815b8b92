"""What the transactions of a send job consist of: how often they ask the database, and what an account waits for."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event

from models.database.engine import Database, transaction_time, utc_now
from models.messages.sends import SendEmail
from models.sends.carrier import NEVER_SENDS
from models.sends.outcomes import CRASHES_MAX
from tasks import operating, upkeep
from tasks.context import Context
from tests.factories import buy, email_job, purchase_order
from tests.fakes import ACCEPTED, NEVER, FakeCarrier, answer, answer_together, later, make_context, send
from tests.integration.sending import CRASH, bulk_job, crash, crash_later, leave_unknown, pass_time, scripted_context

LOCKS_ACCOUNTS = re.compile(r"\bUPDATE accounts\b|\bFROM accounts\b.*FOR NO KEY UPDATE", re.DOTALL)
SELECTS_TO_LOCK = "SELECT accounts.id, accounts.available, accounts.debt"
"""How SQLite, which has no FOR UPDATE, reads the accounts that are to be locked."""


@contextmanager
def recorded_transactions(database: Database) -> Iterator[list[list[str]]]:
    """Give the statements of each transaction that is committed meanwhile."""
    transactions: list[list[str]] = []
    statements: list[str] = []

    def begin(_: Connection) -> None:
        statements.clear()

    def execute(*arguments: Any) -> None:
        statements.append(arguments[2])

    def commit(_: Connection) -> None:
        transactions.append(statements.copy())

    listeners: list[tuple[str, Callable[..., None]]] = [
        ("begin", begin), ("before_cursor_execute", execute), ("commit", commit),
    ]  # fmt: skip
    for name, listener in listeners:
        event.listen(database.engine, name, listener)
    yield transactions
    for name, listener in listeners:
        event.remove(database.engine, name, listener)


def after_the_lock(transactions: list[list[str]]) -> list[list[str]]:
    """Give, for each transaction that locks accounts, what it does from then on."""
    return [
        statements[place:]
        for statements in transactions
        for place in [next((n for n, one in enumerate(statements) if _locks(one)), None)]
        if place is not None
    ]


def _locks(statement: str) -> bool:
    return LOCKS_ACCOUNTS.search(statement) is not None or statement.startswith(SELECTS_TO_LOCK)


def _is_of_the_ledger(statement: str) -> bool:
    return _locks(statement) or "INSERT INTO entries" in statement


def charge_known_and_unknown(context: Context) -> None:
    """A batch in which nearly everything is that can be."""
    jobs = [email_job("known"), email_job("new"), email_job("new"), email_job("stranger", sender="stranger")]
    answer_together(context, "email.send", [*jobs, email_job("of-peter", "peter")])


def refund(context: Context) -> None:
    answer_together(context, "email.send", [email_job("never"), email_job("sent")])


def purchase(context: Context) -> None:
    answer(context, "credits.purchase", purchase_order("order-1", "john", email=5, sms=5))


def charge_bulk(context: Context) -> None:
    answer(context, "email.send_many", bulk_job())


def decide(context: Context) -> None:
    leave_unknown(context.database, "doubt-1", "doubt-2")
    operating.decide(context, "refund", None, operator="ops", note=None)


@pytest.mark.parametrize("do", [charge_known_and_unknown, refund, purchase, charge_bulk, decide])
def test_nothing_but_the_ledger_is_written_while_an_account_is_locked(
    stocked: Database, do: Callable[[Context], None]
) -> None:
    answer(scripted_context(stocked), "email.send", email_job("known"))
    context = scripted_context(stocked, *([NEVER, ACCEPTED] if do is refund else []))

    with recorded_transactions(stocked) as transactions:
        do(context)

    locked = after_the_lock(transactions)
    assert locked
    assert [one for statements in locked for one in statements if not _is_of_the_ledger(one)] == []


def test_a_crash_that_ends_in_a_refund_keeps_no_account_locked(stocked: Database) -> None:
    """After three crashes the job is set aside, its letter is kept and its lease is deleted."""
    context = scripted_context(stocked, *[CRASH] * CRASHES_MAX)
    crash(context, "email.send", email_job())
    for _ in range(CRASHES_MAX - 1):
        later(context)
        crash_later(context)
    pass_time(context)

    with recorded_transactions(stocked) as transactions:
        upkeep.sweep(context)

    locked = after_the_lock(transactions)
    assert len(locked) == 1
    assert all(map(_is_of_the_ledger, locked[0]))


def test_a_transaction_is_told_the_database_s_time_with_its_begin(stocked: Database) -> None:
    """It is the same for all its statements, whatever it does meanwhile."""
    with recorded_transactions(stocked) as transactions:
        first, second = stocked.write(lambda connection: (transaction_time(connection), transaction_time(connection)))

    assert first == second
    assert abs(first - utc_now()) < timedelta(minutes=1)
    assert len(transactions[0]) <= 1


def test_readers_and_audits_are_told_the_time_as_well(stocked: Database) -> None:
    told = [stocked.read(transaction_time), stocked.write_isolated(transaction_time), stocked.write(transaction_time)]

    assert told == sorted(told)
    assert len(set(told)) == len(told)


@pytest.mark.parametrize("jobs", [1, 100])
def test_a_batch_is_charged_and_settled_in_nine_round_trips(
    stocked_postgres: Database, tmp_path: Path, jobs: int
) -> None:
    """BEGIN, the fence, the payers, the charges, the ledger, COMMIT; BEGIN, the ends of attempts, COMMIT.

    The carrier sends nothing, so no handover is noted.
    """
    context = make_context(stocked_postgres, email=FakeCarrier(key_window=NEVER_SENDS))
    buy(stocked_postgres, "john", email=jobs)
    send(context, [SendEmail.model_validate(email_job("warm"))])
    messages = [SendEmail.model_validate(email_job(f"job-{number}")) for number in range(jobs)]

    with traced(stocked_postgres, tmp_path / "trace") as trace:
        send(context, messages)

    assert len(round_trips(trace)) == 9


@contextmanager
def traced(database: Database, file: Path) -> Iterator[Path]:
    """Let libpq write down what the pooled connection sends and gets."""
    with database.engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        connection.rollback()
    with file.open("wb") as trace:
        driver.pgconn.trace(trace.fileno())
        yield file
        driver.pgconn.untrace()


def round_trips(trace: Path) -> list[str]:
    """Give the messages after which the client waits for the server: each ends a request."""
    lines = (line.split("\t") for line in trace.read_text(errors="replace").splitlines())
    return [line[3] for line in lines if len(line) > 3 and line[1] == "F" and line[3] in {"Query", "Sync"}]
