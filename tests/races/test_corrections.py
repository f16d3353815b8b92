"""Reversals, adjustments, purchases and charges of one pool at once: each is done once, and no credit is lost."""

import random
from collections import Counter

import pytest
from sqlalchemy import func, select

from models.database.schema import accounts, adjustments, changes, reversals
from models.errors import Refused
from models.messages.billing import Adjustment, Credits, Reversal, SaveRole, SignedCredits
from tasks import billing
from tasks.context import Context, Json
from tests.fakes import send
from tests.races.racing import Start, balance, buy, email_from, findings, race, save_users, share, states, worker

OWNER, CREDIT_USERS = "olga", ["anna", "bert", "lena"]
ORDERS = [f"order-{number}" for number in range(12)]
BOUGHT = 50
"""Credits of each order: 600 in all, for 1,200 messages, so that much of it is spent when it is reversed."""


def save_pool(context: Context) -> None:
    """Let olga, who may adjust balances, share the credits of twelve orders with three users."""
    save_users(context, OWNER, *CREDIT_USERS)
    rights = ["view_user_list", "edit_user", "adjust_credits"]
    billing.save_role(context, SaveRole(organization="north", role="admin", rights=rights))  # type: ignore[arg-type]
    share(context, OWNER, *CREDIT_USERS)
    for order_id in ORDERS:
        buy(context, OWNER, email=BOUGHT, order_id=order_id)


def reversal(order_id: str, reversal_id: str, email: int | None = None) -> Reversal:
    """Give a reversal of an order, or of so many of its credits."""
    part = None if email is None else Credits(email=email)
    return Reversal(reversal_id=reversal_id, order_id=order_id, kind="refund", credits=part, reason="So.")


def debt(context: Context) -> int:
    """Give what the pool owes."""
    with context.database.snapshot() as connection:
        query = select(accounts.c.debt).where(accounts.c.owner_id == OWNER, accounts.c.kind == "email")
        return int(connection.execute(query).scalar_one())


@pytest.mark.timeout(600)
def test_reversals_of_one_order_take_it_back_once(postgres_url: str) -> None:
    """Eight processes reverse the same orders, in parts and whole, under ids of their own and under common ones."""
    with worker(postgres_url) as context:
        save_pool(context)

        answered = race(*((_reverse_all, postgres_url, number) for number in range(8)))

        assert findings(context) == []
        assert (balance(context, OWNER), debt(context)) == (0, 0)
        done = [answer for answers in answered for answer in answers if answer["status"] == "done"]
        by_id: dict[str, Json] = {}
        for answer in done:
            assert by_id.setdefault(answer["reversal_id"], answer) == answer
        assert sum(answer["credits"]["email"] for answer in by_id.values()) == len(ORDERS) * BOUGHT
        with context.database.snapshot() as connection:
            taken = select(reversals.c.order_id, func.sum(reversals.c.email)).group_by(reversals.c.order_id)
            assert {order_id: int(email) for order_id, email in connection.execute(taken)} == dict.fromkeys(
                ORDERS, BOUGHT
            )
    assert {answer["reason"] for answers in answered for answer in answers} == {None, "nothing_remaining"}


def _reverse_all(start: Start, url: str, number: int) -> list[Json]:
    draw = random.Random(number)
    made = [reversal(order_id, f"{order_id}-common-{part}", 7) for order_id in ORDERS for part in range(3)]
    made += [reversal(order_id, f"{order_id}-of-{number}") for order_id in ORDERS]
    draw.shuffle(made)
    with worker(url) as context:
        start()
        return [_answer(context, one) for one in made]


def _answer(context: Context, message: Reversal | Adjustment) -> Json:
    try:
        if isinstance(message, Reversal):
            return billing.reverse(context, message)
        return billing.adjust(context, message)
    except Refused as why:
        return {"status": "refused", "reason": str(why.reason)}


@pytest.mark.timeout(600)
def test_everything_that_moves_a_pool_moves_it_once(database_url: str) -> None:
    """Two processes send, one buys, two reverse and two adjust. What they report is what the pool holds and owes."""
    with worker(database_url) as context:
        save_pool(context)

        *_, first, second, third, fourth = race(
            *((_send_all, database_url, number) for number in range(2)),
            (_buy_more, database_url),
            *((_reverse_some, database_url, number) for number in range(2)),
            *((_adjust_often, database_url, number) for number in range(2)),
        )

        assert findings(context) == []
        by_id = {answer["reversal_id"]: answer for answer in [*first, *second] if answer["status"] == "done"}
        taken = sum(answer["credits"]["email"] for answer in by_id.values())
        made = Counter(answer["status"] for answer in [*third, *fourth])
        with context.database.snapshot() as connection:
            given, kept = connection.execute(select(func.sum(adjustments.c.email), func.count())).one()
            noted = connection.execute(select(func.count()).where(changes.c.kind == "credits")).scalar_one()
        assert kept == noted == made["done"]
        sent = states(context)["sent", None]
        bought = (len(ORDERS) + MORE) * BOUGHT
        assert balance(context, OWNER) - debt(context) == bought - taken - sent + int(given)
        assert balance(context, OWNER) >= 0
    assert taken == len(ORDERS) * BOUGHT
    assert made["done"]


MORE = 4
"""Orders that are placed during the race."""


def _send_all(start: Start, url: str, number: int) -> None:
    with worker(url) as context:
        start()
        for place in range(0, 600, 20):
            batch = [email_from(f"job-{number}-{place + job}", CREDIT_USERS[job % 3]) for job in range(20)]
            send(context, batch)


def _buy_more(start: Start, url: str) -> None:
    with worker(url) as context:
        start()
        for number in range(MORE):
            buy(context, CREDIT_USERS[0], email=BOUGHT, order_id=f"more-{number}")


def _reverse_some(start: Start, url: str, number: int) -> list[Json]:
    """Reverse all orders in halves, in an order of one's own, under ids that both processes use."""
    halves = [reversal(order_id, f"{order_id}-{half}", BOUGHT // 2) for order_id in ORDERS for half in range(2)]
    random.Random(number).shuffle(halves)
    with worker(url) as context:
        start()
        return [_answer(context, half) for half in halves]


def _adjust_often(start: Start, url: str, number: int) -> list[Json]:
    draw = random.Random(number)
    with worker(url) as context:
        start()
        return [
            _answer(
                context,
                Adjustment(
                    adjustment_id=f"adjustment-{number}-{place}",
                    actor=OWNER,
                    owner=OWNER,
                    credits=SignedCredits(email=draw.choice([-3, -1, 2, 4])),
                    reason="So.",
                ),
            )
            for place in range(40)
        ]


@pytest.mark.timeout(600)
def test_one_adjustment_is_made_once_by_however_many_processes(postgres_url: str) -> None:
    """Eight processes make the same twenty adjustments."""
    with worker(postgres_url) as context:
        save_pool(context)
        before = balance(context, OWNER)

        answered = race(*((_adjust_alike, postgres_url) for _ in range(8)))

        assert balance(context, OWNER) == before + sum(range(1, 21))
        assert findings(context) == []
    assert all(answers == answered[0] for answers in answered)


def _adjust_alike(start: Start, url: str) -> list[Json]:
    with worker(url) as context:
        start()
        return [
            _answer(
                context,
                Adjustment(
                    adjustment_id=f"adjustment-{count}",
                    actor=OWNER,
                    owner=OWNER,
                    credits=SignedCredits(email=count),
                    reason="So.",
                ),
            )
            for count in range(1, 21)
        ]


@pytest.mark.timeout(600)
def test_an_id_that_two_orders_are_reversed_under_at_once_is_used_by_one(postgres_url: str) -> None:
    """Each of two processes reverses its own order under the ids that the other uses too."""
    with worker(postgres_url) as context:
        save_pool(context)

        answered = race(*((_reverse_under_one_id, postgres_url, ORDERS[place]) for place in range(2)))

        assert findings(context) == []
        assert balance(context, OWNER) == len(ORDERS) * BOUGHT - 30
    for one, other in zip(*answered, strict=True):
        assert {one["reason"], other["reason"]} == {None, "conflicting_job"}


def _reverse_under_one_id(start: Start, url: str, order_id: str) -> list[Json]:
    with worker(url) as context:
        answers = []
        for number in range(30):
            start()
            answers.append(_answer(context, reversal(order_id, f"reversal-{number}", 1)))
        return answers
