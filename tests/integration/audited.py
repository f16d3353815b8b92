"""A database after a busy day, audits of it, and damage for them to find."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection

from models.database.engine import Database
from models.reports.audit import AuditReport, run_audit
from models.sends.carrier import Outcome, Receipt
from models.sends.retry_policy import RetryPolicy
from tasks import upkeep
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

RETRIED_FOR = timedelta(seconds=300)
"""How long workers retry a transaction."""
EVENING = NOON + timedelta(hours=5)
"""When the busy day is over."""


def audit(database: Database, now: datetime = NOON, *, whole: bool = False) -> AuditReport:
    """Audit what is new, or the whole history."""
    return run_audit(database, now, retried_for=RETRIED_FOR, whole=whole)


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
def unguarded(database: Database) -> Iterator[Connection]:
    """Give a transaction without constraints and triggers, to do the damage of a broken disk or a careless hand."""
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


def damage(database: Database, *statements: str) -> None:
    """Run statements that no constraint and no trigger prevents."""
    with unguarded(database) as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
