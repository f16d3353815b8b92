"""What a database holds, as tests look at it."""

from datetime import datetime
from typing import Any

from sqlalchemy import select

from models.database.engine import Database
from models.database.schema import dead_letters, decisions, handovers, leases
from models.reports.findings import Finding
from models.sends.attempts import NotedTry, find_tries
from models.sends.charges import Charge, find_charges
from tests import entries
from tests.audits import audit_everything
from tests.entries import Entry
from tests.factories import acme
from tests.fakes import NOON


def findings(database: Database, now: datetime = NOON) -> list[Finding]:
    """Give everything that violates an invariant."""
    with database.snapshot() as connection:
        return audit_everything(connection, now)


def charge_of(database: Database, job_id: str = "job-1") -> Charge:
    """Give the charge of a job."""
    [key] = acme(job_id)
    with database.snapshot() as connection:
        return find_charges(connection, [key])[key]


def entries_of(database: Database, owner: str, kind: str = "email") -> list[Entry]:
    """Give the entries of an account after its opening."""
    with database.snapshot() as connection:
        return entries.entries_of(connection, owner, kind)


def lease_ids(database: Database) -> list[str]:
    """Give the ids of all leases, in order."""
    with database.snapshot() as connection:
        return sorted(connection.execute(select(leases.c.lease_id)).scalars())


def letters_of(database: Database) -> list[Any]:
    """Give all dead letters, the oldest first."""
    with database.snapshot() as connection:
        return list(connection.execute(select(dead_letters).order_by(dead_letters.c.id)))


def only_letter_of(database: Database) -> Any:
    """Give the only dead letter there is."""
    [letter] = letters_of(database)
    return letter


def decisions_of(database: Database) -> list[tuple[str, str, str, str | None]]:
    """Give all decisions about unknown messages as (job, decision, operator, note), the oldest first."""
    with database.snapshot() as connection:
        rows = connection.execute(select(decisions).order_by(decisions.c.id))
        return [(row.job_id, row.decision, row.operator, row.note) for row in rows]


def tries_of(database: Database, job_id: str = "job-1") -> list[NotedTry]:
    """Give what carriers said of a job, the oldest first."""
    [key] = acme(job_id)
    with database.snapshot() as connection:
        return find_tries(connection, key)


def handovers_of(database: Database) -> list[str]:
    """Give the jobs that carriers may have while attempts run, in order."""
    with database.snapshot() as connection:
        return sorted(job_id for (job_ids,) in connection.execute(select(handovers.c.job_ids)) for job_id in job_ids)
