"""Purchases: whose billing information, whose credits, and what is refused."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from models.database.engine import Database
from models.database.schema import entries, orders
from tasks.context import Context, Json
from tests.audits import audit_everything
from tests.factories import BILLING, balance, email_job, purchase_order, save_people, share
from tests.fakes import NOON, Clock, answer, make_context

SMALL = {
    "plan": "small",
    "name": "Small",
    "credits": {"email": 1000, "sms": 100},
    "price": 1999,
    "currency": "EUR",
}


@pytest.fixture
def context(database: Database) -> Context:
    """Give a context in which peter uses the credits of john, and a plan is for sale."""
    save_people(database)
    share(database, "peter", "john")
    context = make_context(database)
    assert answer(context, "plans.save", SMALL)["status"] == "done"
    return context


def purchase(context: Context, order: Json, task_id: str = "task-1") -> Json:
    return answer(context, "credits.purchase", order, task_id)


def balances(context: Context, owner: str) -> tuple[int, int]:
    return balance(context.database, owner, "email"), balance(context.database, owner, "sms")


def stored(context: Context) -> list[Any]:
    with context.database.snapshot() as connection:
        return list(connection.execute(select(orders).order_by(orders.c.order_id)))


def test_a_purchase_by_count_adds_its_credits(context: Context) -> None:
    said = purchase(context, purchase_order(buyer="john", email=100, sms=10))

    assert (said["order_id"], said["status"], said["reason"], said["detail"]) == ("order-1", "done", None, None)
    assert said["credits"] == {"email": 100, "sms": 10}
    assert (said["amount"], said["currency"]) == (1000, "EUR")
    assert (said["buyer"], said["owner"]) == ("john", "john")
    assert balances(context, "john") == (100, 10)
    with context.database.snapshot() as connection:
        causes = set(connection.execute(select(entries.c.cause)).scalars())
        assert audit_everything(connection, NOON) == []
    assert causes == {"purchase:order-1:email", "purchase:order-1:sms"}


def test_a_purchase_of_one_kind_moves_only_that_kind(context: Context) -> None:
    purchase(context, purchase_order(buyer="john", sms=10))

    assert balances(context, "john") == (0, 10)
    with context.database.snapshot() as connection:
        assert connection.execute(select(entries.c.cause)).scalars().all() == ["purchase:order-1:sms"]


def test_a_purchase_by_plan_takes_the_plan_s_terms(context: Context) -> None:
    said = purchase(context, {"order_id": "order-1", "buyer": "john", "plan": "small"})

    assert (said["status"], said["credits"]) == ("done", {"email": 1000, "sms": 100})
    assert (said["amount"], said["currency"]) == (1999, "EUR")
    assert balances(context, "john") == (1000, 100)


def test_an_order_keeps_the_terms_it_was_made_under(context: Context) -> None:
    order = {"order_id": "order-1", "buyer": "john", "plan": "small"}
    first = purchase(context, order)
    answer(context, "plans.save", {**SMALL, "credits": {"email": 1}, "price": 1})

    again = purchase(context, order)

    assert again == first
    assert balances(context, "john") == (1000, 100)


def test_a_credit_user_s_purchase_goes_to_the_owner_with_the_buyer_s_own_billing_information(context: Context) -> None:
    said = purchase(context, {"order_id": "order-1", "buyer": "peter", "plan": "small"})

    assert (said["buyer"], said["owner"]) == ("peter", "john")
    [order] = stored(context)
    assert (order.buyer_id, order.owner_id, order.billing) == ("peter", "john", {"name": "Peter"})
    assert (balances(context, "john"), balances(context, "peter")) == ((1000, 100), (0, 0))


def test_the_billing_information_of_an_order_is_a_snapshot(context: Context) -> None:
    purchase(context, {"order_id": "order-1", "buyer": "peter", "plan": "small"})
    peter = {"user_id": "peter", "organization": "acme", "name": "Peter", "email": "peter@acme.test", "role": "member"}
    answer(context, "users.save", {**peter, "billing": {"name": "Peter BV"}})
    purchase(context, {"order_id": "order-2", "buyer": "peter", "plan": "small"})

    assert [order.billing for order in stored(context)] == [{"name": "Peter"}, {"name": "Peter BV"}]


def test_billing_information_that_comes_with_the_order_is_used_for_it_alone(context: Context) -> None:
    purchase(context, {"order_id": "order-1", "buyer": "peter", "plan": "small", "billing": {"name": "Once"}})

    assert stored(context)[0].billing == {"name": "Once"}
    assert answer(context, "views.billing", {"viewer": "peter"})["billing"] == {"name": "Peter"}


def test_the_owner_at_the_moment_of_crediting_counts(context: Context) -> None:
    share(context.database, "peter", "peter")

    said = purchase(context, purchase_order(buyer="peter", email=5))

    assert said["owner"] == "peter"
    assert (balances(context, "john"), balances(context, "peter")) == ((0, 0), (5, 0))


def test_bought_credits_stay_with_the_pool_they_went_to_when_sharing_stops(context: Context) -> None:
    purchase(context, purchase_order(buyer="peter", email=5))
    share(context.database, "peter", "peter")

    assert (balances(context, "john"), balances(context, "peter")) == ((5, 0), (0, 0))


def test_the_same_order_twice_is_credited_once_even_after_the_owner_changed(context: Context) -> None:
    first = purchase(context, purchase_order(buyer="peter", email=5))
    share(context.database, "peter", "peter")

    again = purchase(context, purchase_order(buyer="peter", email=5), "task-2")

    assert again == first
    assert (balances(context, "john"), balances(context, "peter")) == ((5, 0), (0, 0))


def test_the_same_id_for_another_order_is_refused(context: Context) -> None:
    purchase(context, purchase_order(buyer="john", email=5))

    said = purchase(context, purchase_order(buyer="john", email=6))

    assert (said["order_id"], said["status"], said["reason"]) == ("order-1", "refused", "conflicting_job")
    assert balances(context, "john") == (5, 0)


def test_buying_for_oneself_while_sharing_is_refused_with_what_to_do(context: Context) -> None:
    order = purchase_order(buyer="peter", email=5, credit_to="self")

    said = purchase(context, order)

    assert (said["status"], said["reason"]) == ("refused", "purchase_for_self_while_sharing")
    assert "set the credit owner of peter back to peter first" in said["detail"]
    assert (stored(context), balances(context, "john"), balances(context, "peter")) == ([], (0, 0), (0, 0))


def test_a_refused_order_may_be_sent_again_once_its_cause_is_mended(context: Context) -> None:
    order = purchase_order(buyer="peter", email=5, credit_to="self")
    purchase(context, order)
    share(context.database, "peter", "peter")

    again = purchase(context, order)

    assert (again["status"], again["owner"]) == ("done", "peter")
    assert balances(context, "peter") == (5, 0)


def test_buying_for_oneself_without_sharing_is_buying(context: Context) -> None:
    said = purchase(context, purchase_order(buyer="john", email=5, credit_to="self"))

    assert (said["status"], said["owner"]) == ("done", "john")


@pytest.mark.parametrize(
    ("fields", "reason", "told"),
    [
        ({"buyer": "nobody"}, "unknown_user", "users.save"),
        ({"buyer": "john", "plan": "huge"}, "unknown_plan", "plans.save"),
        ({"buyer": "mary"}, "billing_information_missing", "mary"),
        ({"buyer": "john", "plan": "a b"}, "invalid_job", "plan"),
    ],
)
def test_an_order_that_cannot_be_made_says_what_to_do(context: Context, fields: Json, reason: str, told: str) -> None:
    said = purchase(context, {"order_id": "order-1", "plan": "small", **fields})

    assert (said["order_id"], said["status"], said["reason"]) == ("order-1", "refused", reason)
    assert told in said["detail"]
    assert stored(context) == []


def test_credits_that_were_bought_can_be_spent_at_once(context: Context) -> None:
    before = answer(context, "email.send", email_job("before", sender="peter"))
    purchase(context, purchase_order(buyer="peter", email=1))

    after = answer(context, "email.send", email_job("after", sender="peter"))

    assert (before["reason"], after["status"]) == ("insufficient_credits", "sent")


def test_an_order_says_when_it_was_made(context: Context) -> None:
    clock: Any = context.now
    assert isinstance(clock, Clock)
    clock.forward(timedelta(days=1))

    purchase(context, purchase_order(buyer="john", email=1))

    assert stored(context)[0].at == NOON + timedelta(days=1)


def test_the_largest_order_that_is_valid_can_be_stored_again_and_again(context: Context) -> None:
    """Balances are far from the 64 bits of their column."""
    for number in range(3):
        order = purchase_order(f"order-{number}", "john", email=10**9, sms=10**9, amount=10**15)
        assert purchase(context, order)["status"] == "done"

    assert balances(context, "john") == (3 * 10**9, 3 * 10**9)


def test_billing_information_in_the_order_belongs_to_nobody_s_account(context: Context) -> None:
    """Mary has none of her own, so the order has to bring it; it is not kept for the next one."""
    first = purchase(context, purchase_order("order-1", "mary", email=1, billing=BILLING))
    second = purchase(context, {"order_id": "order-2", "buyer": "mary", "plan": "small"})

    assert (first["status"], second["reason"]) == ("done", "billing_information_missing")
