"""Purchases: who gets the credits, which billing information is kept, and what is refused."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from models.database.engine import Database
from models.database.schema import orders
from tasks.context import Context, Json
from tests.entries import entries_of
from tests.factories import BILLING, balance, email_job, purchase_order, save_people, share
from tests.fakes import NOON, answer, make_context
from tests.integration.sending import pass_time
from tests.integration.stored import findings
from tests.integration.templates import database_filled_by

SMALL = {
    "plan": "small",
    "name": "Small",
    "credits": {"email": 1000, "sms": 100},
    "price": 1999,
    "currency": "EUR",
}


def open_shop(database: Database) -> None:
    """Let peter use the credits of john, and offer a plan."""
    save_people(database)
    share(database, "peter", "john")
    assert answer(make_context(database), "plans.save", SMALL)["status"] == "done"


shop = database_filled_by(open_shop)


@pytest.fixture
def context(shop: Database) -> Context:
    """Give a context in which peter uses the credits of john, and a plan is for sale."""
    return make_context(shop)


def purchase(context: Context, order: Json, task_id: str = "task-1") -> Json:
    return answer(context, "credits.purchase", order, task_id)


def balances(context: Context, owner: str) -> tuple[int, int]:
    return balance(context.database, owner, "email"), balance(context.database, owner, "sms")


def orders_of(context: Context) -> list[Any]:
    with context.database.snapshot() as connection:
        return list(connection.execute(select(orders).order_by(orders.c.order_id)))


def test_a_purchase_by_count_adds_its_credits(context: Context) -> None:
    answered = purchase(context, purchase_order(buyer="john", email=100, sms=10))

    assert (answered["order_id"], answered["status"], answered["reason"], answered["detail"]) == (
        "order-1",
        "done",
        None,
        None,
    )
    assert answered["credits"] == {"email": 100, "sms": 10}
    assert (answered["amount"], answered["currency"]) == (1000, "EUR")
    assert (answered["buyer"], answered["owner"]) == ("john", "john")
    assert balances(context, "john") == (100, 10)
    with context.database.snapshot() as connection:
        entered = {kind: entries_of(connection, "john", kind) for kind in ("email", "sms")}
    assert findings(context.database) == []
    assert entered == {"email": [(1, 100, 100, "purchase:order-1")], "sms": [(1, 10, 10, "purchase:order-1")]}


def test_a_purchase_of_one_kind_moves_only_that_kind(context: Context) -> None:
    purchase(context, purchase_order(buyer="john", sms=10))

    assert balances(context, "john") == (0, 10)
    with context.database.snapshot() as connection:
        assert entries_of(connection, "john", "email") == []
        assert entries_of(connection, "john", "sms") == [(1, 10, 10, "purchase:order-1")]


def test_a_purchase_by_plan_has_the_terms_of_the_plan(context: Context) -> None:
    answered = purchase(context, {"order_id": "order-1", "buyer": "john", "plan": "small"})

    assert (answered["status"], answered["credits"]) == ("done", {"email": 1000, "sms": 100})
    assert (answered["amount"], answered["currency"]) == (1999, "EUR")
    assert balances(context, "john") == (1000, 100)


def test_an_order_keeps_the_terms_it_was_made_under(context: Context) -> None:
    order = {"order_id": "order-1", "buyer": "john", "plan": "small"}
    first = purchase(context, order)
    answer(context, "plans.save", {**SMALL, "credits": {"email": 1}, "price": 1})

    again = purchase(context, order)

    assert again == first
    assert balances(context, "john") == (1000, 100)


def test_a_purchase_of_a_credit_user_goes_to_the_owner(context: Context) -> None:
    answered = purchase(context, {"order_id": "order-1", "buyer": "peter", "plan": "small"})

    assert (answered["buyer"], answered["owner"]) == ("peter", "john")
    [order] = orders_of(context)
    assert (order.buyer_id, order.owner_id, order.billing) == ("peter", "john", {"name": "Peter"})
    assert (balances(context, "john"), balances(context, "peter")) == ((1000, 100), (0, 0))


def test_an_order_keeps_the_billing_information_it_was_made_with(context: Context) -> None:
    purchase(context, {"order_id": "order-1", "buyer": "peter", "plan": "small"})
    peter = {"user_id": "peter", "organization": "acme", "name": "Peter", "email": "peter@acme.test", "role": "member"}
    answer(context, "users.save", {**peter, "billing": {"name": "Peter BV"}})
    purchase(context, {"order_id": "order-2", "buyer": "peter", "plan": "small"})

    assert [order.billing for order in orders_of(context)] == [{"name": "Peter"}, {"name": "Peter BV"}]


def test_billing_information_of_an_order_is_used_for_it_alone(context: Context) -> None:
    purchase(context, {"order_id": "order-1", "buyer": "peter", "plan": "small", "billing": {"name": "Once"}})

    assert orders_of(context)[0].billing == {"name": "Once"}
    assert answer(context, "views.billing", {"viewer": "peter"})["billing"] == {"name": "Peter"}


def test_the_owner_at_the_moment_of_the_purchase_gets_the_credits(context: Context) -> None:
    share(context.database, "peter", "peter")

    answered = purchase(context, purchase_order(buyer="peter", email=5))

    assert answered["owner"] == "peter"
    assert (balances(context, "john"), balances(context, "peter")) == ((0, 0), (5, 0))


def test_bought_credits_stay_with_the_owner_when_sharing_stops(context: Context) -> None:
    purchase(context, purchase_order(buyer="peter", email=5))
    share(context.database, "peter", "peter")

    assert (balances(context, "john"), balances(context, "peter")) == ((5, 0), (0, 0))


def test_a_repeated_order_is_credited_once_after_a_change_of_owner(context: Context) -> None:
    first = purchase(context, purchase_order(buyer="peter", email=5))
    share(context.database, "peter", "peter")

    again = purchase(context, purchase_order(buyer="peter", email=5), "task-2")

    assert again == first
    assert (balances(context, "john"), balances(context, "peter")) == ((5, 0), (0, 0))


def test_another_order_under_the_same_id_is_refused(context: Context) -> None:
    purchase(context, purchase_order(buyer="john", email=5))

    answered = purchase(context, purchase_order(buyer="john", email=6))

    assert (answered["order_id"], answered["status"], answered["reason"]) == ("order-1", "refused", "conflicting_job")
    assert balances(context, "john") == (5, 0)


def test_a_credit_user_cannot_buy_for_themselves(context: Context) -> None:
    order = purchase_order(buyer="peter", email=5, credit_to="self")

    answered = purchase(context, order)

    assert (answered["status"], answered["reason"]) == ("refused", "purchase_for_self_while_sharing")
    assert "set the credit owner of peter back to peter first" in answered["detail"]
    assert (orders_of(context), balances(context, "john"), balances(context, "peter")) == ([], (0, 0), (0, 0))


def test_a_refused_order_may_be_sent_again_under_its_id(context: Context) -> None:
    order = purchase_order(buyer="peter", email=5, credit_to="self")
    purchase(context, order)
    share(context.database, "peter", "peter")

    again = purchase(context, order)

    assert (again["status"], again["owner"]) == ("done", "peter")
    assert balances(context, "peter") == (5, 0)


def test_a_credit_owner_can_buy_for_themselves(context: Context) -> None:
    answered = purchase(context, purchase_order(buyer="john", email=5, credit_to="self"))

    assert (answered["status"], answered["owner"]) == ("done", "john")


@pytest.mark.parametrize(
    ("fields", "reason", "advice"),
    [
        ({"buyer": "nobody"}, "unknown_user", "users.save"),
        ({"buyer": "john", "plan": "huge"}, "unknown_plan", "plans.save"),
        ({"buyer": "mary"}, "billing_information_missing", "mary"),
        ({"buyer": "john", "plan": "a b"}, "invalid_job", "plan"),
    ],
)
def test_an_order_that_cannot_be_made_says_what_to_do(context: Context, fields: Json, reason: str, advice: str) -> None:
    answered = purchase(context, {"order_id": "order-1", "plan": "small", **fields})

    assert (answered["order_id"], answered["status"], answered["reason"]) == ("order-1", "refused", reason)
    assert advice in answered["detail"]
    assert orders_of(context) == []


def test_bought_credits_can_be_spent_at_once(context: Context) -> None:
    before = answer(context, "email.send", email_job("before", sender="peter"))
    purchase(context, purchase_order(buyer="peter", email=1))

    after = answer(context, "email.send", email_job("after", sender="peter"))

    assert (before["reason"], after["status"]) == ("insufficient_credits", "sent")


def test_an_order_has_the_time_at_which_it_was_made(context: Context) -> None:
    pass_time(context, timedelta(days=1))

    purchase(context, purchase_order(buyer="john", email=1))

    assert orders_of(context)[0].at == NOON + timedelta(days=1)


def test_the_largest_valid_order_can_be_made_several_times(context: Context) -> None:
    """Balances are far from the 64 bits of their column."""
    for number in range(3):
        order = purchase_order(f"order-{number}", "john", email=10**9, sms=10**9, amount=10**15)
        assert purchase(context, order)["status"] == "done"

    assert balances(context, "john") == (3 * 10**9, 3 * 10**9)


def test_billing_information_of_an_order_is_not_kept_for_the_next_one(context: Context) -> None:
    """Mary has none of her own, so each of her orders must bring it."""
    first = purchase(context, purchase_order("order-1", "mary", email=1, billing=BILLING))
    second = purchase(context, {"order_id": "order-2", "buyer": "mary", "plan": "small"})

    assert (first["status"], second["reason"]) == ("done", "billing_information_missing")
