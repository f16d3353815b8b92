"""Adjustments: credits given and taken by hand, by whom, and what is kept of it."""

from typing import Any

import pytest
from sqlalchemy import select

from models.database.engine import Database
from models.database.schema import adjustments, changes
from tasks.context import Context, Json
from tests.factories import balance, buy, save_people, share
from tests.fakes import NOON, answer, make_context
from tests.integration.stored import entries_of, findings
from tests.integration.templates import database_filled_by

GIFT = {
    "adjustment_id": "adjustment-1",
    "actor": "john",
    "owner": "john",
    "credits": {"email": 5},
    "reason": "For the outage.",
}


def let_john_adjust(database: Database) -> None:
    """Let the admins of both organizations adjust balances, of which john's is 10 email and 4 SMS credits."""
    save_people(database)
    context = make_context(database)
    for organization in ("acme", "other"):
        rights = ["view_user_list", "edit_user", "adjust_credits"]
        answer(context, "roles.save", {"organization": organization, "role": "admin", "rights": rights})
    buy(database, "john", email=10, sms=4)


adjustable = database_filled_by(let_john_adjust)


@pytest.fixture
def context(adjustable: Database) -> Context:
    """Give a context in which john may adjust balances."""
    return make_context(adjustable)


def adjust(context: Context, **fields: Any) -> Json:
    return answer(context, "credits.adjust", {**GIFT, **fields})


def balances(context: Context, owner: str = "john") -> tuple[int, int]:
    return balance(context.database, owner, "email"), balance(context.database, owner, "sms")


def test_an_adjustment_gives_credits(context: Context) -> None:
    answered = adjust(context)

    assert answered == {
        "adjustment_id": "adjustment-1",
        "status": "done",
        "reason": None,
        "detail": None,
        "actor": "john",
        "owner": "john",
        "credits": {"email": 5, "sms": 0},
    }
    assert balances(context) == (15, 4)
    assert entries_of(context.database, "john")[-1] == (2, 5, 15, "adjustment")
    assert findings(context.database) == []


def test_an_adjustment_gives_one_kind_and_takes_another(context: Context) -> None:
    adjust(context, credits={"email": -10, "sms": 3})

    assert balances(context) == (0, 7)
    assert findings(context.database) == []


def test_no_adjustment_takes_more_than_there_is(context: Context) -> None:
    answered = adjust(context, credits={"email": 5, "sms": -5})

    assert (answered["status"], answered["reason"]) == ("refused", "insufficient_credits")
    assert answered["detail"] == "john holds 4 sms credits, so 5 cannot be taken: take 4 at most."
    assert balances(context) == (10, 4)
    assert made(context) == changed(context) == []


def made(context: Context) -> list[Any]:
    with context.database.snapshot() as connection:
        return list(connection.execute(select(adjustments)))


def changed(context: Context) -> list[Any]:
    with context.database.snapshot() as connection:
        return list(connection.execute(select(changes).where(changes.c.kind == "credits")))


def test_an_adjustment_is_kept_with_who_made_it_and_why(context: Context) -> None:
    adjust(context, credits={"email": -3})

    [row] = made(context)
    assert (row.actor_id, row.owner_id, row.email, row.sms, row.reason, row.at) == (
        "john",
        "john",
        -3,
        0,
        "For the outage.",
        NOON,
    )
    [change] = changed(context)
    assert (change.kind, change.subject, change.actor, change.at) == ("credits", "john", "john", NOON)
    assert (change.old, change.new) == ({"email": 10}, {"email": 7})


def test_somebody_without_the_right_learns_nothing(context: Context) -> None:
    """Neither whether the owner exists, nor whether the id was used, nor what the owner holds."""
    adjust(context)

    answers = [
        adjust(context, actor="mary", **fields)
        for fields in ({}, {"owner": "nobody"}, {"owner": "olga"}, {"credits": {"email": -999}})
    ]

    assert {(answered["status"], answered["reason"]) for answered in answers} == {("refused", "not_permitted")}
    assert len({answered["detail"] for answered in answers}) == 1
    assert "adjust_credits" in answers[0]["detail"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"actor": "nobody"}, "unknown_user"),
        ({"owner": "nobody"}, "unknown_user"),
        ({"owner": "olga"}, "other_organization"),
        ({"actor": "olga"}, "other_organization"),
    ],
)
def test_an_adjustment_stays_within_the_organization(context: Context, fields: Json, reason: str) -> None:
    answered = adjust(context, **fields)

    assert (answered["status"], answered["reason"]) == ("refused", reason)
    assert balances(context) == (10, 4)


def test_a_repeated_adjustment_is_made_once(context: Context) -> None:
    first = adjust(context)

    again = adjust(context)

    assert again == first
    assert balances(context) == (15, 4)


def test_a_repeated_adjustment_gets_its_answer_after_the_right_was_taken_away(context: Context) -> None:
    first = adjust(context)
    answer(context, "roles.save", {"organization": "acme", "role": "admin", "rights": []})

    assert adjust(context) == first
    assert adjust(context, adjustment_id="adjustment-2")["reason"] == "not_permitted"


@pytest.mark.parametrize("fields", [{"credits": {"email": 6}}, {"owner": "mary"}, {"reason": "Another."}])
def test_another_adjustment_under_the_same_id_is_refused(context: Context, fields: Json) -> None:
    adjust(context)

    answered = adjust(context, **fields)

    assert (answered["status"], answered["reason"]) == ("refused", "conflicting_job")
    assert balances(context) == (15, 4)


def test_another_organization_has_its_own_ids(context: Context) -> None:
    adjust(context)

    answered = adjust(context, actor="olga", owner="olga")

    assert (answered["status"], balances(context, "olga")) == ("done", (5, 0))


def test_a_refused_adjustment_may_come_again_under_its_id(context: Context) -> None:
    before = adjust(context, credits={"email": -12})
    buy(context.database, "john", email=2)

    after = adjust(context, credits={"email": -12})

    assert (before["reason"], after["status"], balances(context)) == ("insufficient_credits", "done", (0, 4))


def test_the_own_credits_of_a_credit_user_can_be_adjusted(context: Context) -> None:
    share(context.database, "peter", "john")

    answered = adjust(context, owner="peter")

    assert (answered["owner"], balances(context, "peter"), balances(context)) == ("peter", (5, 0), (10, 4))


def test_an_adjustment_does_not_pay_a_debt(context: Context) -> None:
    """It is the purchases that pay."""
    buy(context.database, "mary", email=3, order_id="order-of-mary")
    adjust(context, adjustment_id="take", owner="mary", credits={"email": -3})
    answer(context, "credits.reverse", {
        "reversal_id": "reversal-1", "order_id": "order-of-mary", "kind": "refund", "reason": "Closed."
    })  # fmt: skip

    adjust(context, owner="mary")

    seen = answer(context, "views.overview", {"viewer": "mary"})
    assert (seen["remaining"], seen["debt"]) == ({"email": 5, "sms": 0}, {"email": 3, "sms": 0})
    assert findings(context.database) == []


@pytest.mark.parametrize("credits_", [{}, {"email": 0, "sms": 0}, {"email": 1.5}, {"email": 10**10}, {"fax": 1}])
def test_an_adjustment_moves_whole_credits(context: Context, credits_: Json) -> None:
    assert adjust(context, credits=credits_)["reason"] == "invalid_job"
