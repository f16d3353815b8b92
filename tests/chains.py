"""The hash chains of accounts, computed anew in plain Python from what the database holds."""

from collections import defaultdict
from collections.abc import Iterable

from sqlalchemy import Connection, Row, select

from models.database.schema import accounts, charges, entries, orders
from models.money.chain import GENESIS, Paid, content_of, entry_hash
from models.money.orders import order_content

HASHED = ("org_id", "account_id", "seq", "amount", "balance_after", "debt_after", "cause_kind", "cause_id", "at",
          "content")  # fmt: skip
Cause = tuple[int, int | None, str, str]
"""What an entry was made for: organization, account, and the kind and id of the cause."""


def broken_hashes(connection: Connection) -> list[str]:
    """Give entries whose hash is not that of the one before and their own fields, or that name what they were not for.

    An account whose hash is not that of its last entry is given too.
    """
    contents = _contents_of_charges(connection)
    purchases = {(order.org_id, order.order_id): order_content(order) for order in connection.execute(select(orders))}
    before: defaultdict[tuple[int, int], str] = defaultdict(lambda: GENESIS)
    broken = []
    query = select(entries).order_by(entries.c.org_id, entries.c.account_id, entries.c.seq)
    for entry in connection.execute(query):
        account = entry.org_id, entry.account_id
        fields = {name: getattr(entry, name) for name in HASHED}
        hashed = entry_hash(before[account], **fields)
        content = entry.content
        if entry.cause_kind in ("charge", "refund"):
            content = contents.get((*account, entry.cause_kind, entry.cause_id), "")
        elif entry.cause_kind == "purchase":
            content = purchases[entry.org_id, entry.cause_id]
        if (entry.hash, entry.content) != (hashed, content):
            broken.append(f"{entry.cause_kind} {entry.cause_id}, entry {entry.seq} of account {account}")
        before[account] = entry.hash
    last = {(row.org_id, row.id): row.hash for row in connection.execute(select(accounts))}
    return [*broken, *(f"account {account}" for account in last if last[account] != before[account])]


def _contents_of_charges(connection: Connection) -> dict[Cause, str]:
    paid: defaultdict[Cause, list[Paid]] = defaultdict(list)
    for charge in connection.execute(select(charges).where(charges.c.account_id.is_not(None))):
        account = charge.org_id, charge.account_id
        paid[*account, "charge", charge.charged_by].append(_paid(charge, charge.credits))
        if charge.refunded:
            paid[*account, "refund", charge.refunded_by].append(_paid(charge, charge.refunded))
    return {cause: content_of(parts) for cause, parts in paid.items()}


def _paid(charge: Row[tuple[object, ...]], credits_: int) -> Paid:
    return Paid(charge.job_id, charge.digest, charge.sender, credits_)


def parts_of_charges(rows: Iterable[Row[tuple[object, ...]]]) -> dict[Cause, dict[str, int]]:
    """Give what each job has in the entry that charged it, and in the one that gave back, by the causes of these."""
    parts: defaultdict[Cause, dict[str, int]] = defaultdict(dict)
    for row in rows:
        if row.account_id is not None:
            parts[row.org_id, row.account_id, "charge", row.charged_by][row.job_id] = -row.credits
        if row.refunded:
            parts[row.org_id, row.account_id, "refund", row.refunded_by][row.job_id] = row.refunded
    return dict(parts)
