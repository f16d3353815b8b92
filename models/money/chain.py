"""The hash chain of an account: each entry carries a hash over the one before it, itself, and what it was made for.

Whoever changes, removes or inserts an entry later has to change the hash of every entry after it. A statement that
lists entries can be checked by these functions alone, without the database (`postage verify`).
"""

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

GENESIS = ""
"""What stands for the hash before an account's first entry."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Paid(NamedTuple):
    """One message that an entry pays for, or gives back: its job, the job's digest, its sender, and the credits."""

    job_id: str
    digest: str
    sender: str
    credits: int


def content_of(paid: Iterable[Paid]) -> str:
    """Return the digest (SHA-256, hex) of what an entry pays for or gives back, whatever order it comes in."""
    lines = sorted(f"{one.job_id} {one.digest} {one.sender} {one.credits}" for one in paid)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def content_of_fields(*fields: object) -> str:
    """Return the digest of an order, a reversal or an adjustment, given by its fields in their order."""
    return hashlib.sha256("\n".join(str(field) for field in fields).encode()).hexdigest()


def microseconds(at: datetime) -> int:
    """Return a time as the chain has it: microseconds since 1970 in UTC."""
    since = at - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def entry_hash(
    before: str,
    *,
    org_id: int,
    account_id: int,
    seq: int,
    amount: int,
    balance_after: int,
    debt_after: int,
    cause_kind: str,
    cause_id: str,
    at: datetime,
    content: str,
) -> str:
    """Return the hash (SHA-256, hex) of an entry. `before` is the hash of the entry before it.

    `ledger.post` computes the same within its statement, where the balance is known.
    """
    fields = (before, org_id, account_id, seq, amount, balance_after, debt_after, cause_kind, cause_id,
              microseconds(at), content)  # fmt: skip
    return hashlib.sha256("|".join(str(field) for field in fields).encode()).hexdigest()
