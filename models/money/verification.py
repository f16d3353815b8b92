"""Checking a statement without the database, by the hash chain of each account (chain.py).

A statement lists entries with what the chain needs. If somebody kept the hash of an entry from an earlier statement,
all entries before it are proven by the chain up to that hash.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from models.messages.base import Json
from models.money.chain import GENESIS, Paid, content_of, entry_hash

Entry = Mapping[str, Any]
_NUMBERS = ("seq", "amount", "balance_after", "debt_after")
_TEXTS = ("cause_kind", "cause_id", "at", "content", "hash")
PAID_BY_MESSAGES = {"charge": -1, "refund": 1}
"""The kinds of entries that are made for messages, and the sign with which their credits count."""


@dataclass(slots=True)
class Verification:
    """How many entries and accounts were checked, what is wrong with them, and what could not be checked."""

    accounts: int = 0
    entries: int = 0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> Json:
        """Return it as an answer."""
        return {
            "status": "failed" if self.faults else "done",
            "accounts": self.accounts,
            "entries": self.entries,
            "faults": self.faults,
            "notes": self.notes,
        }


def verify_statement(statement: object) -> Verification:
    """Check all entries of a statement, in whatever order it lists them."""
    found = Verification()
    accounts = statement.get("accounts") if isinstance(statement, Mapping) else None
    if not isinstance(accounts, Sequence) or isinstance(accounts, str):
        found.faults.append("This is no statement: it has no list of accounts.")
        return found
    for account in accounts:
        found.accounts += 1
        if not _is_account(account):
            found.faults.append(f"Account {found.accounts} of the file is not one of a statement.")
            continue
        found.entries += len(account["entries"])
        found.faults += _faults(account)
        found.notes += _notes(account)
    if not found.entries and not found.faults:
        found.notes.append("There are no entries, so there was nothing to check.")
    return found


def _is_account(account: object) -> bool:
    return (
        isinstance(account, Mapping)
        and all(_is_number(account.get(name)) for name in ("org_id", "account_id"))
        and isinstance(account.get("hash_before", GENESIS), str)
        and isinstance(account.get("entries"), list)
        and all(_is_entry(entry) for entry in account["entries"])
    )


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, Mapping)
        and all(_is_number(entry.get(name)) for name in _NUMBERS)
        and all(isinstance(entry.get(name), str) for name in _TEXTS)
        and _time(entry["at"]) is not None
        and (entry.get("paid") is None or _is_paid(entry["paid"]))
    )


def _is_paid(paid: object) -> bool:
    return isinstance(paid, list) and all(
        isinstance(one, Mapping)
        and all(isinstance(one.get(name), str) for name in ("job_id", "digest", "sender"))
        and _is_number(one.get("credits"))
        for one in paid
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _time(text: str) -> datetime | None:
    try:
        at = datetime.fromisoformat(text)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _faults(account: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each fault of an account's entries."""
    name = f"{account.get('owner')}/{account.get('kind')}"
    before: Entry | None = None
    for entry in sorted(account["entries"], key=lambda entry: entry["seq"]):
        place = f"{name}, entry {entry['seq']} ({entry['cause_kind']} {entry['cause_id']})"
        yield from (f"{place}: {fault}." for fault in _entry_faults(account, entry, before))
        before = entry


def _entry_faults(account: Mapping[str, Any], entry: Entry, before: Entry | None) -> Iterator[str]:
    if entry["balance_after"] < 0 or entry["debt_after"] < 0:
        yield "it leaves less than nothing"
    if before is not None and entry["seq"] != before["seq"] + 1:
        yield f"the entry before it has the number {before['seq']}"
    elif before is not None and entry["balance_after"] != before["balance_after"] + entry["amount"]:
        yield (
            f"{before['balance_after']} and {entry['amount']} make {before['balance_after'] + entry['amount']}, "
            f"and not {entry['balance_after']}"
        )
    if before is None and entry["seq"] == 0 and (entry["amount"], entry["balance_after"]) != (0, 0):
        yield "an account begins with nothing"
    hash_before = before["hash"] if before is not None else _hash_before(account, entry)
    if hash_before is not None and entry["hash"] != _hash(account, entry, hash_before):
        yield "its hash is not that of the one before and of itself"
    yield from _paid_faults(entry)


def _hash_before(account: Mapping[str, Any], first: Entry) -> str | None:
    """Return the hash before the first entry of a statement, if it is known."""
    known: str | None = account.get("hash_before")
    return GENESIS if first["seq"] == 0 else known


def _hash(account: Mapping[str, Any], entry: Entry, before: str) -> str:
    at = _time(entry["at"])
    assert at is not None  # noqa: S101  checked before
    return entry_hash(
        before,
        org_id=account["org_id"],
        account_id=account["account_id"],
        at=at,
        **{name: entry[name] for name in (*_NUMBERS, "cause_kind", "cause_id", "content")},
    )


def _paid_faults(entry: Entry) -> Iterator[str]:
    sign = PAID_BY_MESSAGES.get(entry["cause_kind"])
    if entry.get("paid") is None or sign is None:
        return
    paid = [Paid(one["job_id"], one["digest"], one["sender"], one["credits"]) for one in entry["paid"]]
    total = sign * sum(one.credits for one in paid)
    if total != entry["amount"]:
        yield f"its messages make {total}, and not {entry['amount']}"
    if content_of(paid) != entry["content"]:
        yield "its content is not that of its messages"


def _notes(account: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for what of an account could not be checked."""
    if not account["entries"]:
        return
    first = min(account["entries"], key=lambda entry: entry["seq"])
    if _hash_before(account, first) is None:
        yield (
            f"{account.get('owner')}/{account.get('kind')} begins with entry {first['seq']}, and without the hash "
            "before it: the hash of that entry could not be checked."
        )
