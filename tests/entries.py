"""The entries of an account as tests look at them: with the jobs that they charge or give back."""

from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, select

from models.database.schema import accounts, charges, entries
from models.reports.rollup import is_charged_by, is_refunded_by, same_account


class Entry(NamedTuple):
    """An entry. The cause of a charge or a refund is given by its jobs in order, as in `charge:job-1+job-2`."""

    seq: int
    amount: int
    balance_after: int
    cause: str


def entries_of(connection: Connection, owner: str, kind: str) -> list[Entry]:
    """Give the entries of an account after its opening, in order."""
    query = (
        select(entries)
        .join(accounts, same_account(entries))
        .where(accounts.c.owner_id == owner, accounts.c.kind == kind, entries.c.seq > 0)
        .order_by(entries.c.seq)
    )
    return [
        Entry(row.seq, row.amount, row.balance_after, f"{row.cause_kind}:{_cause(connection, row)}")
        for row in connection.execute(query).all()
    ]


def _cause(connection: Connection, entry: Row[Any]) -> str:
    """Give the jobs that an entry charged or gave back, or the id of what else it was made for."""
    its_own = {"charge": is_charged_by, "refund": is_refunded_by}.get(entry.cause_kind)
    if its_own is None:
        return str(entry.cause_id)
    this_one = entries.c.org_id == entry.org_id, entries.c.account_id == entry.account_id, entries.c.seq == entry.seq
    jobs = select(charges.c.job_id).join_from(entries, charges, its_own(entries)).where(*this_one)
    return "+".join(connection.execute(jobs.order_by(charges.c.job_id)).scalars())
