"""PostgreSQL writes the end of an attempt in place, without touching an index (docs/decisions/0018)."""

import uuid

from sqlalchemy import text

from models.database.engine import Database
from models.sends.charges import Charge, State
from models.sends.outcomes import Settlement
from tests.factories import buy, email_job, ledger_job
from tests.integration.ledger_steps import charge, settle

BATCH = 50


def charge_batch(database: Database, name: str) -> list[Charge]:
    """Charge a batch of jobs, with ids in no order and messages of a usual length."""
    job_ids = (str(uuid.uuid5(uuid.NAMESPACE_OID, f"{name} {number}")) for number in range(BATCH))
    jobs = [ledger_job(email_job(job_id, text="A message. " * 30)) for job_id in job_ids]
    return charge(database, *jobs, lease_id=name)


def count_updates(database: Database) -> tuple[int, int]:
    """Give how many rows of charges were updated, and how many of those in place, as PostgreSQL counts them."""
    with database.engine.begin() as connection:
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
    with database.snapshot() as connection:
        counts = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'charges'"
        all_of_them, in_place = connection.execute(text(counts)).one()
    return all_of_them, in_place


def test_the_usual_end_of_an_attempt_touches_no_index(stocked_postgres: Database) -> None:
    buy(stocked_postgres, "john", email=10_000)
    updated_before, in_place_before = count_updates(stocked_postgres)
    for batch in range(10):
        held = charge_batch(stocked_postgres, f"batch-{batch}")
        settle(
            stocked_postgres,
            *(Settlement(charge=charged, state=State.SENT, carrier_reference="250 2.0.0 Ok") for charged in held),
        )

    updated, in_place = count_updates(stocked_postgres)

    assert updated - updated_before == 10 * BATCH
    assert in_place - in_place_before > 0.95 * (updated - updated_before)
