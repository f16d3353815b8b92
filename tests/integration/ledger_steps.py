"""The steps of a send job as models/ makes them, each in a transaction of its own and without a carrier."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from models.database.engine import Database
from models.messages.sends import Content
from models.sends import leases, settling
from models.sends.charges import Charge, SendJob, State
from models.sends.charging import charge_bulk_job, charge_jobs
from models.sends.outcomes import Settlement
from tests.factories import ACME, email_job, ledger_job
from tests.fakes import NOON

LEASE_END = NOON + timedelta(minutes=5)
AT_ONCE = timedelta(0)


def email(job_id: str = "job-1", credits_: int = 1, **fields: Any) -> SendJob:
    """Give an email that costs so many credits."""
    return replace(ledger_job(email_job(job_id, **fields)), credits=credits_)


def charge(database: Database, *jobs: SendJob, lease_id: str = "first") -> list[Charge]:
    """Charge jobs and lease them until `LEASE_END`."""
    return database.write(
        lambda connection: charge_jobs(connection, jobs, lease_id=lease_id, now=NOON, lease_until=LEASE_END)
    )


def charge_waiting(database: Database, *job_ids: str) -> None:
    """Charge emails that wait after their first attempt."""
    for charged in charge(database, *map(email, job_ids)):
        settle(database, Settlement(charge=charged, state=State.WAITING, retry_after=AT_ONCE))


def bulk_email(
    credits_each: int, count: int, job_id: str = "bulk", sender: str = "john"
) -> tuple[SendJob, list[Content]]:
    """Give a bulk job and its messages."""
    messages = [Content({"to": [f"{number}@example.test"]}, credits_each) for number in range(count)]
    return replace(email(job_id, credits_each * count, sender=sender), content={}), messages


def charge_bulk(database: Database, bulk: SendJob, messages: list[Content]) -> Charge:
    """Charge a bulk job that is due at `LEASE_END`."""
    return database.write(lambda connection: charge_bulk_job(connection, bulk, messages, now=NOON, due_at=LEASE_END))


def claim(
    database: Database, attempts: dict[str, int], lease_id: str = "second", until: datetime = LEASE_END
) -> list[Charge]:
    """Begin the next attempts of jobs."""
    return database.write(
        lambda connection: leases.claim_jobs(connection, ACME, attempts, lease_id=lease_id, lease_until=until)
    )


def release(database: Database, *held: Charge) -> None:
    """Release jobs that were not attempted."""
    database.write(lambda connection: leases.release_jobs(connection, held, NOON))


def note_handover(database: Database, held: Charge, now: datetime = NOON) -> bool:
    """Note that the carrier may have a message from now on; tells whether its lease was still held."""
    lease = leases.LeaseKey(held.org_id, held.lease_id or "")
    note = leases.HandoverNote(lease, "main", (held.job_id,))
    return lease in database.write(lambda connection: leases.note_handovers(connection, [note], now))


def settle(
    database: Database, *settlements: Settlement, now: datetime = NOON, settled_before: int = 0
) -> list[Settlement]:
    """Write how attempts ended; gives the settlements that counted.

    `settled_before` is how many jobs of their lease were settled before.
    """
    before = dict.fromkeys(leases.count_by_lease(one.charge for one in settlements), settled_before)
    return database.write(
        lambda connection: settling.settle(connection, settlements, now, keep_dead=False, settled_before=before)
    )


def lock_orphaned(database: Database, now: datetime, limit: int = 9) -> list[str]:
    """Give the ids of the jobs that are held under expired leases."""

    def lock(connection: Connection) -> list[Charge]:
        return leases.lock_orphaned(connection, leases.end_expired(connection, now, limit))

    return [charged.job_id for charged in database.write(lock)]
