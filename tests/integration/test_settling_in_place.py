"""How PostgreSQL writes the end of an attempt: in place, whatever indexes there are (docs/decisions/0018)."""

import uuid
from datetime import timedelta

from sqlalchemy import text

from models.database.engine import Database
from models.sends.charges import Charge, State
from models.sends.charging import charge_jobs
from models.sends.leases import mark_handover
from models.sends.outcomes import Settlement
from models.sends.settling import settle
from tests.factories import email_job, ledger_job, stock
from tests.fakes import NOON

BATCH = 50


def charged(database: Database, name: str) -> list[Charge]:
    """Charge a batch of jobs, with ids in no order and messages of a usual length."""
    jobs = [
        ledger_job(email_job(str(uuid.uuid5(uuid.NAMESPACE_OID, f"{name} {n}")), text="A message. " * 30))
        for n in range(BATCH)
    ]
    return database.write(
        lambda connection: charge_jobs(
            connection, jobs, lease_id=name, now=NOON, lease_until=NOON + timedelta(minutes=5)
        )
    )


def updates(database: Database) -> tuple[int, int]:
    """Give how many rows of charges were updated, and how many of those in place, as PostgreSQL counts."""
    with database.engine.begin() as connection:
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
    with database.snapshot() as connection:
        counts = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'charges'"
        all_of_them, in_place = connection.execute(text(counts)).one()
    return all_of_them, in_place


def test_the_usual_end_of_an_attempt_touches_no_index(postgres_url: str) -> None:
    database = stock(Database(postgres_url), email=10_000)
    for batch in range(10):
        held = charged(database, f"batch-{batch}")
        ends = [Settlement(charge=one, state=State.SENT, carrier_reference="250 2.0.0 Ok") for one in held]
        if batch % 2:
            database.write(lambda connection, held=held: mark_handover(connection, held, NOON))  # type: ignore[misc]
        database.write(lambda connection, ends=ends: settle(connection, ends, NOON, keep_dead=False))  # type: ignore[misc]

    updated, in_place = updates(database)
    database.close()

    assert updated == 10 * BATCH + 5 * BATCH
    assert in_place > 0.95 * updated
