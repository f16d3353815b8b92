"""A database after a busy day, audits of it, and damage for them to find."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection

from models.database.engine import Database
from models.reports.audit import AuditReport, AuditRules, run_audit
from models.sends.carrier import Outcome, Receipt
from models.sends.retry_policy import RetryPolicy
from tasks import upkeep
from tests.audits import LONGEST_WAIT, UNKNOWN_FOR
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

EVENING = NOON + timedelta(hours=5)
"""When the busy day is over."""


RULES = AuditRules(longest_wait=LONGEST_WAIT, unknown_for=UNKNOWN_FOR, again=20_000)
"""What audits have to know. They check everything again that tests write."""


def audit(database: Database, now: datetime = NOON, *, whole: bool = False, again: int = RULES.again) -> AuditReport:
    """Audit what is new and something again, or the whole history."""
    return run_audit(database, now, replace(RULES, again=again), whole=whole)


def have_a_busy_day(database: Database) -> None:
    """Let nearly everything happen that can.

    An audit leaves marks after the first purchase, so nearly everything is new to the next audit.
    """
    save_people(database)
    clock = Clock()
    partial = Receipt(Outcome.ACCEPTED, refused={"a@b.test": "550"}, deferred={"c@d.test": "451"})
    email = FakeCarrier(ACCEPTED, NEVER, partial, NOT_NOW, NOBODY, UNSURE)
    sms = FakeCarrier(NOT_NOW, UNSURE, ACCEPTED, NOT_NOW, NEVER, is_idempotent=True)
    context = make_context(database, email, sms, clock, RetryPolicy(attempts_max=3))
    buy(database, "peter", email=3, sms=1)
    assert audit(database).findings == []
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


@contextmanager
def unguarded(database: Database, *, checks: bool = True) -> Iterator[Connection]:
    """Give a transaction without triggers and foreign keys, to do the damage of a broken disk or a careless hand.

    Without `checks`, CHECK constraints are off too. Everything is in place again afterwards.
    """
    with database.engine.connect() as connection:
        off = _off_on_sqlite if database.is_sqlite else _off_on_postgresql
        with connection.begin(), off(connection, checks=checks):
            yield connection
        connection.invalidate()  # its pragmas must not come back from the pool


@contextmanager
def _off_on_sqlite(connection: Connection, *, checks: bool) -> Iterator[None]:
    raw: Any = connection.connection.dbapi_connection
    raw.execute("ROLLBACK")  # foreign keys can be turned off outside of a transaction only
    raw.execute("PRAGMA foreign_keys = OFF")
    raw.execute(f"PRAGMA ignore_check_constraints = {'OFF' if checks else 'ON'}")
    raw.execute("BEGIN IMMEDIATE")
    triggers = raw.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        raw.execute(f"DROP TRIGGER {name}")
    yield
    for _, statement in triggers:
        raw.execute(statement)


@contextmanager
def _off_on_postgresql(connection: Connection, *, checks: bool) -> Iterator[None]:
    connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
    dropped = [] if checks else connection.exec_driver_sql(
        "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE contype = 'c' AND connamespace = 'public'::regnamespace"
    ).all()  # fmt: skip
    for table, name, _ in dropped:
        connection.exec_driver_sql(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
    yield
    for table, name, definition in dropped:
        connection.exec_driver_sql(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition} NOT VALID")
    if dropped:
        connection.exec_driver_sql("UPDATE pg_constraint SET convalidated = true WHERE contype = 'c'")


def damage(database: Database, *statements: str, checks: bool = True) -> None:
    """Run statements that no trigger and no foreign key prevents, and no CHECK constraint without `checks`."""
    with unguarded(database, checks=checks) as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
