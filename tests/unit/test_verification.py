"""A statement is checked without the database, and says which entry is wrong."""

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from models.money.chain import GENESIS, Paid, content_of, content_of_fields, entry_hash
from models.money.verification import verify_statement

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
PAID = [Paid("job-1", "d1", "john", 2), Paid("job-2", "d2", "peter", 1)]


def statement() -> dict[str, Any]:
    """Give a statement of one account: opened, ten credits bought, three spent, one given back."""
    steps: list[tuple[str, str, int, str, list[Paid] | None]] = [
        ("opening", "", 0, "", None),
        ("purchase", "order-1", 10, content_of_fields("order-1"), None),
        ("charge", "batch-1", -3, content_of(PAID), PAID),
        ("refund", "batch-2", 1, content_of(PAID[1:]), PAID[1:]),
    ]
    entries, before, left = [], GENESIS, 0
    for seq, (cause_kind, cause_id, amount, content, paid) in enumerate(steps):
        at, left = NOON + timedelta(microseconds=seq), left + amount
        entry = {"seq": seq, "amount": amount, "balance_after": left, "debt_after": 0, "cause_kind": cause_kind,
                 "cause_id": cause_id, "content": content}  # fmt: skip
        before = entry_hash(before, org_id=1, account_id=7, at=at, **entry)  # type: ignore[arg-type]
        messages = None if paid is None else [one._asdict() for one in paid]
        entries.append({**entry, "at": at.isoformat(timespec="microseconds"), "hash": before, "paid": messages})
    return {"accounts": [{"org_id": 1, "account_id": 7, "owner": "john", "kind": "email", "entries": entries}]}


def faults(changed: object) -> list[str]:
    return verify_statement(changed).faults


def test_a_true_statement_has_no_fault() -> None:
    found = verify_statement(statement())

    assert (found.accounts, found.entries, found.faults, found.notes) == (1, 4, [], [])


def test_the_order_of_the_entries_does_not_matter() -> None:
    newest_first = statement()
    newest_first["accounts"][0]["entries"].reverse()

    assert faults(newest_first) == []


@pytest.mark.parametrize("field", ["amount", "balance_after", "debt_after", "cause_id", "at", "content", "hash"])
@pytest.mark.parametrize("seq", [1, 2, 3])
def test_a_changed_entry_is_named(seq: int, field: str) -> None:
    changed = statement()
    entry = changed["accounts"][0]["entries"][seq]
    entry[field] = {"at": "2026-01-05T12:00:01+00:00"}.get(
        field, entry[field] + (1 if isinstance(entry[field], int) else "0")
    )

    assert any(f"john/email, entry {seq} " in fault for fault in faults(changed))


@pytest.mark.parametrize("field", ["job_id", "digest", "sender", "credits"])
def test_a_changed_message_is_named_with_its_entry(field: str) -> None:
    changed = statement()
    message = changed["accounts"][0]["entries"][2]["paid"][0]
    message[field] = message[field] + 1 if field == "credits" else "other"

    assert any("entry 2 (charge batch-1)" in fault for fault in faults(changed))


def test_a_missing_entry_is_noticed() -> None:
    changed = statement()
    del changed["accounts"][0]["entries"][1]

    assert any("entry 2" in fault and "number 0" in fault for fault in faults(changed))


def test_a_repeated_entry_is_noticed() -> None:
    changed = statement()
    changed["accounts"][0]["entries"].append(copy.deepcopy(changed["accounts"][0]["entries"][2]))

    assert faults(changed) != []


def test_a_page_is_checked_from_the_hash_before_it() -> None:
    page = statement()
    account = page["accounts"][0]
    before, account["entries"] = account["entries"][1], account["entries"][2:]

    unknown = verify_statement(page)
    account["hash_before"] = before["hash"]
    known = verify_statement(page)
    account["hash_before"] = "other"

    assert (unknown.faults, len(unknown.notes)) == ([], 1)
    assert (known.faults, known.notes) == ([], [])
    assert any("entry 2" in fault for fault in faults(page))


@pytest.mark.parametrize(
    "strange",
    [None, [], {}, {"accounts": 1}, {"accounts": "x"}, {"accounts": [1]}, {"accounts": [{"entries": [{}]}]},
     {"accounts": [{"org_id": True, "account_id": 1, "entries": []}]}],
)  # fmt: skip
def test_what_is_no_statement_is_refused(strange: object) -> None:
    assert faults(strange) != []


@pytest.mark.parametrize(("field", "value"), [("seq", "1"), ("at", "noon"), ("at", 5), ("paid", {}), ("paid", [1]),
                                              ("hash", None), ("amount", 1.5)])  # fmt: skip
def test_an_entry_of_other_types_is_refused(field: str, value: object) -> None:
    changed = statement()
    changed["accounts"][0]["entries"][1][field] = value

    assert faults(changed) == ["Account 1 of the file is not one of a statement."]


def test_an_empty_statement_says_that_nothing_was_checked() -> None:
    found = verify_statement({"accounts": []})

    assert (found.faults, len(found.notes)) == ([], 1)
