"""Reversals: what is taken back of a purchase that was paid back, what becomes debt, and what is refused."""

from typing import Any

import pytest
from sqlalchemy import select

from models.database.engine import Database
from models.database.schema import accounts, reversals
from tasks.context import Context, Json
from tests.factories import balance, buy, email_job, purchase_order, save_people, share
from tests.fakes import NEVER, FakeCarrier, answer, make_context
from tests.integration.stored import findings
from tests.integration.templates import database_filled_by

REFUND = {"reversal_id": "reversal-1", "order_id": "order-1", "kind": "refund", "reason": "Bought by mistake."}


def sell_one_order(database: Database) -> None:
    """Let peter, who uses the credits of john, buy 10 email and 5 SMS credits."""
    save_people(database)
    share(database, "peter", "john")
    buy(database, "peter", email=10, sms=5, order_id="order-1")


sold = database_filled_by(sell_one_order)


@pytest.fixture
def context(sold: Database) -> Context:
    """Give a context in which peter has bought 10 email and 5 SMS credits for john."""
    return make_context(sold)


def reverse(context: Context, **fields: Any) -> Json:
    return answer(context, "credits.reverse", {**REFUND, **fields})


def spend(context: Context, count: int, prefix: str = "job") -> None:
    for number in range(count):
        answer(context, "email.send", email_job(f"{prefix}-{number}", sender="peter"))


def debt(context: Context, owner: str = "john", kind: str = "email") -> int:
    with context.database.snapshot() as connection:
        query = select(accounts.c.debt).where(accounts.c.owner_id == owner, accounts.c.kind == kind)
        return int(connection.execute(query).scalar_one())


def holds_and_owes(context: Context) -> tuple[int, int]:
    return balance(context.database, "john"), debt(context)


def test_a_reversal_takes_back_all_that_an_order_brought(context: Context) -> None:
    answered = reverse(context)

    assert answered == {
        "reversal_id": "reversal-1",
        "status": "done",
        "reason": None,
        "detail": None,
        "order_id": "order-1",
        "kind": "refund",
        "buyer": "peter",
        "owner": "john",
        "credits": {"email": 10, "sms": 5},
        "debt": {"email": 0, "sms": 0},
    }
    assert (balance(context.database, "john", "email"), balance(context.database, "john", "sms")) == (0, 0)
    assert findings(context.database) == []


def test_what_was_spent_becomes_a_debt(context: Context) -> None:
    spend(context, 7)

    answered = reverse(context)

    assert (answered["credits"]["email"], answered["debt"]) == (10, {"email": 7, "sms": 0})
    assert holds_and_owes(context) == (0, 7)
    assert findings(context.database) == []


def test_a_purchase_pays_the_debt_first(context: Context) -> None:
    spend(context, 7)
    reverse(context)

    buy(context.database, "john", email=4)
    paid_some = holds_and_owes(context)
    buy(context.database, "peter", email=5, sms=1)

    assert paid_some == (0, 3)
    assert holds_and_owes(context) == (2, 0)
    assert findings(context.database) == []


def test_a_refund_of_a_message_does_not_pay_the_debt(context: Context) -> None:
    """The credits of a message that failed go back to the pool, and can be spent."""
    spend(context, 6)
    held = make_context(context.database, email=FakeCarrier(lambda _message: (reverse(context), NEVER)[1]))

    answer(held, "email.send", email_job("fails", sender="john"))

    assert holds_and_owes(context) == (1, 7)
    assert findings(context.database) == []


def test_it_is_the_pool_that_was_credited_that_gives_the_credits_back(context: Context) -> None:
    share(context.database, "peter", "peter")
    buy(context.database, "peter", email=3)

    answered = reverse(context)

    assert answered["owner"] == "john"
    assert (balance(context.database, "john"), balance(context.database, "peter")) == (0, 3)


def test_an_order_can_be_reversed_in_parts(context: Context) -> None:
    first = reverse(context, credits={"email": 4})
    second = reverse(context, reversal_id="reversal-2", credits={"email": 4, "sms": 5})
    third = reverse(context, reversal_id="reversal-3")

    taken = [answered["credits"] for answered in (first, second, third)]
    assert taken == [{"email": 4, "sms": 0}, {"email": 4, "sms": 5}, {"email": 2, "sms": 0}]
    assert findings(context.database) == []


def test_a_refund_and_a_chargeback_take_an_order_back_once(context: Context) -> None:
    spend(context, 3)
    reverse(context)

    again = reverse(context, reversal_id="reversal-2", kind="chargeback", reason="The bank says so.")

    assert (again["status"], again["reason"]) == ("refused", "nothing_remaining")
    assert "10 email and 5 SMS" in again["detail"]
    assert holds_and_owes(context) == (0, 3)
    assert findings(context.database) == []


def test_more_than_is_left_takes_what_is_left(context: Context) -> None:
    reverse(context, credits={"email": 8})

    answered = reverse(context, reversal_id="reversal-2", credits={"email": 8})

    assert answered["credits"] == {"email": 2, "sms": 0}


def test_a_kind_that_the_order_did_not_bring_cannot_be_reversed(context: Context) -> None:
    buy(context.database, "john", email=1, order_id="order-2")

    answered = reverse(context, order_id="order-2", credits={"sms": 1})

    assert (answered["status"], answered["reason"]) == ("refused", "nothing_remaining")


def test_a_repeated_reversal_gets_the_first_answer_and_takes_nothing(context: Context) -> None:
    first = reverse(context, credits={"email": 4})
    spend(context, 3)

    again = reverse(context, credits={"email": 4})

    assert again == first
    assert holds_and_owes(context) == (3, 0)


@pytest.mark.parametrize("fields", [{"kind": "chargeback"}, {"credits": {"email": 1}}, {"reason": "Another."}])
def test_another_reversal_under_the_same_id_is_refused(context: Context, fields: Json) -> None:
    reverse(context)

    answered = reverse(context, **fields)

    assert (answered["status"], answered["reason"]) == ("refused", "conflicting_job")


def test_another_order_under_the_same_id_is_refused(context: Context) -> None:
    buy(context.database, "john", email=1, order_id="order-2")
    reverse(context)

    answered = reverse(context, order_id="order-2")

    assert (answered["status"], answered["reason"]) == ("refused", "conflicting_job")


def test_a_refused_reversal_may_come_again_under_its_id(context: Context) -> None:
    before = reverse(context, order_id="order-2")
    buy(context.database, "john", email=1, order_id="order-2")

    after = reverse(context, order_id="order-2")

    assert (before["reason"], after["status"]) == ("not_found", "done")


def test_the_buyer_says_which_of_two_orders_of_the_same_id_is_meant(context: Context) -> None:
    buy(context.database, "olga", email=3, order_id="order-1")

    ambiguous = reverse(context)
    of_olga = reverse(context, buyer="olga")
    of_peter = reverse(context, buyer="peter")

    assert (ambiguous["reason"], ambiguous["status"]) == ("invalid_job", "refused")
    assert "`buyer`" in ambiguous["detail"]
    assert (of_olga["owner"], of_olga["credits"]) == ("olga", {"email": 3, "sms": 0})
    assert (of_peter["owner"], of_peter["credits"]) == ("john", {"email": 10, "sms": 5})
    assert findings(context.database) == []


def test_a_repeated_reversal_is_recognized_after_a_stranger_has_used_the_order_id(context: Context) -> None:
    first = reverse(context)
    buy(context.database, "olga", email=3, order_id="order-1")

    assert reverse(context) == first
    assert balance(context.database, "olga") == 3


@pytest.mark.parametrize(("buyer", "reason"), [("mary", "not_found"), ("olga", "not_found"), ("zoe", "unknown_user")])
def test_an_order_of_somebody_else_is_not_reversed(context: Context, buyer: str, reason: str) -> None:
    answered = reverse(context, buyer=buyer)

    assert (answered["status"], answered["reason"]) == ("refused", reason)
    assert holds_and_owes(context) == (10, 0)


def test_the_ids_of_strangers_are_free(context: Context) -> None:
    """Another organization has its own reversal ids too."""
    buy(context.database, "olga", email=3, order_id="order-of-olga")
    reverse(context)

    answered = reverse(context, order_id="order-of-olga")

    assert (answered["status"], answered["owner"]) == ("done", "olga")


def test_a_reversal_is_kept_with_its_reason(context: Context) -> None:
    spend(context, 7)
    reverse(context)

    with context.database.snapshot() as connection:
        [row] = connection.execute(select(reversals)).all()
    assert (row.kind, row.email, row.email_debt, row.sms, row.sms_debt) == ("refund", 10, 7, 5, 0)
    assert row.reason == "Bought by mistake."


def test_the_largest_order_can_be_reversed(context: Context) -> None:
    order = purchase_order("large", "john", email=10**9, sms=10**9)
    answer(context, "credits.purchase", order)

    answered = reverse(context, order_id="large")

    assert answered["credits"] == {"email": 10**9, "sms": 10**9}
