"""The entries of an account as tests look at them: with the jobs that they charge or give back."""

from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, select

from models.database.schema import accounts, charges, entries
from models.reports.rollup import is_charged_by, is_refunded_by, same_account

BY_CHARGES = {"charge": is_charged_by, "refund": is_refunded_by}
"""How the charges behind an entry are found."""


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
    if entry.cause_kind not in BY_CHARGES:
        return str(entry.cause_id)
    return "+".join(row.job_id for row in _charges_behind(connection, entry))


def _charges_behind(connection: Connection, entry: Row[Any]) -> list[Row[Any]]:
    this_one = entries.c.org_id == entry.org_id, entries.c.account_id == entry.account_id, entries.c.seq == entry.seq
    joined = select(charges).join_from(entries, charges, BY_CHARGES[entry.cause_kind](entries))
    return list(connection.execute(joined.where(*this_one).order_by(charges.c.job_id)))
