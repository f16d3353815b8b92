"""Statements: every entry, newest first, page by page, with what is behind it, and enough to check the chain."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from models.database.engine import Database
from models.database.paging import PAGE_SIZE
from models.database.schema import entries
from models.money.chain import entry_hash
from tasks.context import Context, Json
from tests.factories import buy, email_job, save_people, share, sms_job
from tests.fakes import ACCEPTED, NEVER, Clock, FakeCarrier, answer, make_context
from tests.integration.sending import pass_time
from tests.integration.templates import database_filled_by


def move_in_every_way(database: Database) -> None:
    """Let the account of john move for every cause there is, each an hour after the other."""
    save_people(database)
    clock = Clock()
    context = make_context(database, email=FakeCarrier(ACCEPTED, NEVER), clock=clock)
    rights = ["view_user_list", "edit_user", "adjust_credits"]
    answer(context, "roles.save", {"organization": "acme", "role": "admin", "rights": rights})
    buy(database, "john", email=10, sms=2, order_id="order-1", now=clock())
    share(database, "peter", "john")
    for task, job in (
        ("email.send", email_job("job-1", sender="peter", to=["a@b.test", "c@d.test"])),
        ("email.send", email_job("job-2", sender="john")),
        ("sms.send", sms_job("job-3", sender="john")),
        ("credits.adjust", {"adjustment_id": "adjustment-1", "actor": "john", "owner": "john",
                            "credits": {"email": -1}, "reason": "A test."}),
        ("credits.reverse", {"reversal_id": "reversal-1", "order_id": "order-1", "kind": "chargeback",
                             "reason": "The bank."}),
    ):  # fmt: skip
        clock.forward(timedelta(hours=1))
        answer(context, task, job)


moved = database_filled_by(move_in_every_way)


@pytest.fixture
def context(moved: Database) -> Context:
    """Give a context in which the account of john has moved for every cause there is."""
    return make_context(moved)


def statement(context: Context, viewer: str = "john", **fields: Any) -> Json:
    return answer(context, "views.statement", {"viewer": viewer, **fields})


def account(seen: Json, kind: str = "email") -> Json:
    [found] = [each for each in seen["accounts"] if each["kind"] == kind]
    return found  # type: ignore[no-any-return]


def causes(seen: Json, kind: str = "email") -> list[tuple[int, str, int, int, int]]:
    return [
        (row["seq"], row["cause_kind"], row["amount"], row["balance_after"], row["debt_after"])
        for row in account(seen, kind)["entries"]
    ]


def test_a_statement_has_every_entry_newest_first(context: Context) -> None:
    seen = statement(context)

    assert causes(seen) == [
        (6, "reversal", -7, 0, 3),
        (5, "adjustment", -1, 7, 0),
        (4, "refund", 1, 8, 0),
        (3, "charge", -1, 7, 0),
        (2, "charge", -2, 8, 0),
        (1, "purchase", 10, 10, 0),
        (0, "opening", 0, 0, 0),
    ]
    assert causes(seen, "sms")[:2] == [(3, "reversal", -1, 0, 1), (2, "charge", -1, 1, 0)]
    assert (account(seen)["balance"], account(seen)["debt"], seen["next"]) == (0, 3, None)


def test_a_credit_user_sees_the_statement_of_the_pool_with_a_reminder(context: Context) -> None:
    of_john, of_peter = statement(context), statement(context, "peter")

    assert of_peter["accounts"] == of_john["accounts"]
    assert (of_john["reminder"], of_peter["owner"]) == (None, "john")
    assert "john" in of_peter["reminder"]


def test_a_statement_of_oneself_shows_ones_own_accounts(context: Context) -> None:
    seen = statement(context, "peter", of="self")

    assert {each["owner"] for each in seen["accounts"]} == {"peter"}
    assert causes(seen) == [(0, "opening", 0, 0, 0)]


def test_a_stranger_is_not_shown_anything(context: Context) -> None:
    assert statement(context, "nobody")["reason"] == "unknown_user"
    assert {each["owner"] for each in statement(context, "mary")["accounts"]} == {"mary"}


def is_chained(of: Json) -> bool:
    """Whether the entries of an account follow one another, as anybody can compute from the answer alone."""
    before, listed = of["hash_before"], of["entries"][::-1]
    for row in listed:
        fields = {name: row[name] for name in ("seq", "amount", "balance_after", "debt_after", "cause_kind", "cause_id",
                                               "content")}  # fmt: skip
        at = datetime.fromisoformat(row["at"])
        before = entry_hash(before, org_id=of["org_id"], account_id=of["account_id"], at=at, **fields)
        if before != row["hash"]:
            return False
    return [row["seq"] for row in listed] == list(range(listed[0]["seq"], listed[0]["seq"] + len(listed)))


def test_a_statement_can_be_checked_without_the_database(context: Context) -> None:
    seen = statement(context)

    assert all(is_chained(each) for each in seen["accounts"])
    account(seen)["entries"][2]["amount"] += 1
    assert not is_chained(account(seen))


@pytest.mark.parametrize(("since", "until"), [(1, 4), (0, 2), (3, None), (None, 3), (1.5, 1.7)])
def test_the_part_of_a_statement_in_a_period_can_be_checked_too(
    context: Context, since: float | None, until: float | None
) -> None:
    hours = {"since": since, "until": until}
    start = account(statement(context))["entries"][-1]["at"]
    period = {name: str(datetime.fromisoformat(start) + timedelta(hours=hour)) for name, hour in hours.items()
              if hour is not None}  # fmt: skip

    seen = account(statement(context, **period))

    assert all(row["at"] >= period.get("since", "").replace(" ", "T") for row in seen["entries"])
    assert all(row["at"] < period.get("until", "9").replace(" ", "T") for row in seen["entries"])
    assert not seen["entries"] or is_chained(seen)
    assert len(seen["entries"]) == {(1, 4): 3, (0, 2): 3, (3, None): 2, (None, 3): 5, (1.5, 1.7): 0}[since, until]


def test_pages_neither_skip_nor_repeat_while_entries_are_made(context: Context) -> None:
    """A page begins below the last one, not at a number of rows from the newest."""
    for number in range(PAGE_SIZE + 20):
        buy(context.database, "john", email=1, order_id=f"more-{number}")
    first = statement(context)
    for number in range(15):
        buy(context.database, "john", email=1, order_id=f"meanwhile-{number}")

    second = statement(context, next=first["next"])

    seqs = [seq for page in (first, second) for seq, *_ in causes(page)]
    assert seqs == list(range(PAGE_SIZE + 26, -1, -1))
    assert len(causes(first)) == PAGE_SIZE
    assert causes(second, "sms") == []
    assert second["next"] is None
    assert account(first)["hash_before"] == account(second)["entries"][0]["hash"]
    assert is_chained(account(first))
    assert is_chained(account(second))


@pytest.mark.parametrize("cursor", ["2", "email:1", "email:-1,sms:0", "email:1,sms:x", ""])
def test_only_a_cursor_that_was_given_is_a_cursor(context: Context, cursor: str) -> None:
    assert statement(context, next=cursor)["reason"] == "invalid_job"


def test_behind_a_charge_are_its_messages(context: Context) -> None:
    seen = statement(context, entry="email/2")

    assert (seen["entry"]["cause_kind"], seen["entry"]["owner"]) == ("charge", "john")
    [message] = seen["messages"]
    assert (message["job_id"], message["user"], message["credits"], message["status"]) == ("job-1", "peter", 2, "sent")
    assert seen["order"] == seen["reversal"] == seen["adjustment"] is None


def test_behind_a_refund_are_the_messages_that_were_given_back(context: Context) -> None:
    [message] = statement(context, entry="email/4")["messages"]

    assert (message["job_id"], message["credits"], message["status"]) == ("job-2", 1, "failed")


def test_behind_a_bulk_jobs_charge_are_all_its_messages(context: Context) -> None:
    buy(context.database, "john", email=200)
    recipients = [{"to": f"{number}@b.test"} for number in range(150)]
    job = {"job_id": "bulk", "sender": "peter", "subject": "Hello", "text": "Hello", "recipients": recipients}
    answer(context, "email.send_many", job)
    newest = account(statement(context))["entries"][0]

    messages = statement(context, entry=f"email/{newest['seq']}")["messages"]

    assert len(messages) == 150 == -newest["amount"]


def test_behind_a_purchase_is_its_order(context: Context) -> None:
    seen = statement(context, entry="email/1")

    assert seen["order"]["order_id"] == "order-1"
    assert seen["order"]["reversed"] == {"email": 10, "sms": 2}
    assert seen["messages"] == []


def test_behind_a_reversal_is_its_reason_and_its_order(context: Context) -> None:
    seen = statement(context, "peter", entry="email/6")

    assert (seen["reversal"]["kind"], seen["reversal"]["reason"], seen["reversal"]["order_id"]) == (
        "chargeback",
        "The bank.",
        "order-1",
    )
    assert seen["reversal"]["debt"] == {"email": 3, "sms": 1}
    assert seen["order"]["order_id"] == "order-1"


def test_behind_an_adjustment_is_who_made_it_and_why(context: Context) -> None:
    made = statement(context, entry="email/5")["adjustment"]

    assert (made["actor"], made["reason"], made["credits"]) == ("john", "A test.", {"email": -1, "sms": 0})


@pytest.mark.parametrize("name", ["email/7", "sms/999999999999999999"])
def test_an_entry_that_is_not_there_is_not_found(context: Context, name: str) -> None:
    answered = statement(context, entry=name)

    assert (answered["status"], answered["reason"]) == ("refused", "not_found")


def test_an_entry_of_another_pool_cannot_be_named(context: Context) -> None:
    """A viewer's entries are those of the accounts that they spend from, so there is no name for another one."""
    assert statement(context, "mary", entry="email/1")["reason"] == "not_found"
    assert statement(context, "olga", entry="email/0")["entry"]["owner"] == "olga"


def test_billing_information_is_not_shown(context: Context) -> None:
    assert "billing" not in str([statement(context, "peter", entry=f"email/{seq}") for seq in range(7)])


def test_orders_show_what_was_reversed_of_them(context: Context) -> None:
    buy(context.database, "john", email=1, order_id="order-2")

    rows = answer(context, "views.orders", {"viewer": "peter"})["rows"]

    reversed_ = {row["order_id"]: (row["reversed"], len(row["reversals"])) for row in rows}
    assert reversed_ == {"order-1": ({"email": 10, "sms": 2}, 1), "order-2": ({"email": 0, "sms": 0}, 0)}
    [made] = next(row["reversals"] for row in rows if row["order_id"] == "order-1")
    assert (made["kind"], made["credits"], made["debt"]) == (
        "chargeback",
        {"email": 10, "sms": 2},
        {"email": 3, "sms": 1},
    )


def test_entries_are_shown_as_they_are_stored(context: Context) -> None:
    pass_time(context, timedelta(days=1))
    with context.database.snapshot() as connection:
        stored = {row.hash: row.at for row in connection.execute(select(entries))}

    shown = [row for each in statement(context)["accounts"] for row in each["entries"]]

    assert {row["hash"]: datetime.fromisoformat(row["at"]) for row in shown}.items() <= stored.items()
