"""What commands print for people who pipe it, and as CSV: nothing is wrapped, cut, or taken for markup."""

import csv
import io

import pytest

from worker.cli import tables
from worker.cli.printing import CsvConsole, PlainConsole

LONG = "a" * 64
NAME = "50% [/x] [bold]sale"


def overview(plan: str) -> dict[str, object]:
    """What `views.overview` answers, for a pool with one plan."""
    plans = [{"plan": LONG, "name": plan, "orders": 1, "last_at": None}]
    return {"owner": LONG, "viewer": LONG, "remaining": {"email": 1, "sms": 0}, "debt": {"email": 0, "sms": 0},
            "reminder": None, "sharing": False, "plans": plans}  # fmt: skip


def orders(buyer: str) -> dict[str, object]:
    """What `views.orders` answers, for one order with long ids."""
    row = {"order_id": LONG, "buyer": buyer, "owner": LONG, "credits": {"email": 1, "sms": -1}, "amount": 1,
           "currency": "EUR", "at": "2026-11-27T10:00:00.000Z", "reversals": []}  # fmt: skip
    return {"owner": LONG, "reminder": "Mary spends the credits of john.", "rows": [row], "more": True, "next": "o:1"}


def test_what_is_piped_is_neither_wrapped_nor_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    tables.orders(PlainConsole(), orders("b" * 64))

    [line] = [line for line in capsys.readouterr().out.splitlines() if "EUR" in line]
    assert line.split() == ["2026-11-27", "10:00:00", LONG, "b" * 64, LONG, "1", "-1", "1", "EUR"]


@pytest.mark.parametrize("name", ["50% [/x]", "[bold]", "[/]", "[link=http://x]", ":smile:", "a\\[b"])
def test_a_name_is_printed_as_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    tables.overview(PlainConsole(), overview(name))
    tables.orders(PlainConsole(), orders(name))
    PlainConsole().heading(name)

    assert capsys.readouterr().out.count(name) == 3


def test_tables_are_csv_and_everything_else_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    console = CsvConsole()
    for buyer in 'quo"te, comma', "=1+1":
        tables.orders(console, orders(buyer))

    shown = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(shown.out)))
    assert [row["buyer"] for row in rows] == ['quo"te, comma', "'=1+1"]
    assert [row["sms"] for row in rows] == ["-1", "-1"]
    assert {row["order"] for row in rows} == {LONG}
    assert "Mary spends" in shown.err
    assert "--next o:1" in shown.err


@pytest.mark.parametrize(
    ("credits_", "words"),
    [
        ({"email": 1, "sms": 0}, "1 email credit"),
        ({"email": 2, "sms": 0}, "2 email credits"),
        ({"email": 2, "sms": 1}, "2 email and 1 SMS credit"),
        ({"email": 0, "sms": 0}, "no credits"),
    ],
)
def test_one_credit_is_a_credit(credits_: dict[str, int], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    tables.purchase(PlainConsole(), {"order_id": "o", "credits": credits_, "owner": "john", "buyer": "mary"})

    assert capsys.readouterr().out == f"o: {words} for john, bought by mary.\n"
