"""Who spends whose credits: users, roles, and how a credit owner is set."""

from typing import Any

import pytest
from sqlalchemy import select

from models.database.engine import Database
from models.database.schema import owner_changes, refusals, users
from tasks.context import Context, Json
from tests.factories import balance, buy, email_job, save_people, share
from tests.fakes import answer, make_context
from tests.integration.templates import database_filled_by

people = database_filled_by(save_people)


@pytest.fixture
def context(people: Database) -> Context:
    """Give a context with john the admin, peter, mary, and olga of another organization."""
    return make_context(people)


def set_owner(context: Context, user: str, owner: str, actor: str = "john", change_id: str = "change-1") -> Json:
    change = {"change_id": change_id, "actor": actor, "user": user, "owner": owner}
    return answer(context, "credits.set_owner", change)


def owners(context: Context) -> dict[str, str]:
    with context.database.snapshot() as connection:
        return {row.id: row.credit_owner_id for row in connection.execute(select(users))}


def changes(context: Context) -> list[Any]:
    with context.database.snapshot() as connection:
        query = select(owner_changes).order_by(owner_changes.c.change_id)
        return [(row.actor_id, row.user_id, row.old_owner_id, row.new_owner_id) for row in connection.execute(query)]


def recorded_refusals(context: Context) -> list[Any]:
    with context.database.snapshot() as connection:
        return [tuple(row) for row in connection.execute(select(refusals.c.task, refusals.c.key, refusals.c.reason))]


ALONE = {"john": "john", "peter": "peter", "mary": "mary", "olga": "olga"}


def test_everybody_is_their_own_credit_owner_at_first(context: Context) -> None:
    assert owners(context) == ALONE
    assert [balance(context.database, "mary", kind) for kind in ("email", "sms")] == [0, 0]


def test_a_user_spends_the_credits_of_the_owner_that_was_set(context: Context) -> None:
    buy(context.database, "john", email=5)

    answered = set_owner(context, "peter", "john")
    sent = answer(context, "email.send", email_job(sender="peter"))

    assert answered == {
        "change_id": "change-1",
        "status": "done",
        "reason": None,
        "detail": None,
        "user": "peter",
        "owner": "john",
    }
    assert owners(context) == {**ALONE, "peter": "john"}
    assert sent["paid_by"] == "john"
    assert changes(context) == [("john", "peter", "peter", "john")]


def test_an_owner_may_have_many_credit_users(context: Context) -> None:
    set_owner(context, "peter", "john")

    answered = set_owner(context, "mary", "john", change_id="change-2")

    assert answered["status"] == "done"
    assert owners(context) == {**ALONE, "peter": "john", "mary": "john"}


def test_an_admin_may_set_another_user_as_owner(context: Context) -> None:
    set_owner(context, "peter", "mary")

    assert owners(context) == {**ALONE, "peter": "mary"}


def test_own_credits_can_be_spent_again_when_sharing_stops(context: Context) -> None:
    buy(context.database, "peter", email=3)
    buy(context.database, "john", email=5)
    set_owner(context, "peter", "john")
    answer(context, "email.send", email_job("while-sharing", sender="peter"))
    while_sharing = balance(context.database, "peter"), balance(context.database, "john")

    stopped = set_owner(context, "peter", "peter", change_id="change-2")
    after = answer(context, "email.send", email_job("afterwards", sender="peter"))

    assert while_sharing == (3, 4)
    assert (stopped["status"], after["paid_by"]) == ("done", "peter")
    assert (balance(context.database, "peter"), balance(context.database, "john")) == (2, 4)


def test_the_same_change_twice_is_made_once(context: Context) -> None:
    first = set_owner(context, "peter", "john")
    set_owner(context, "peter", "mary", change_id="change-2")

    again = set_owner(context, "peter", "john")

    assert again == first
    assert owners(context)["peter"] == "mary"
    assert len(changes(context)) == 2


def test_the_same_id_for_another_change_is_refused(context: Context) -> None:
    set_owner(context, "peter", "john")

    answered = set_owner(context, "mary", "john")

    assert (answered["change_id"], answered["status"], answered["reason"]) == ("change-1", "refused", "conflicting_job")
    assert owners(context)["mary"] == "mary"


def test_a_credit_user_cannot_be_chosen_as_owner(context: Context) -> None:
    set_owner(context, "peter", "john")

    answered = set_owner(context, "mary", "peter", change_id="change-2")

    assert (answered["status"], answered["reason"]) == ("refused", "owner_is_credit_user")
    assert "choose john" in answered["detail"]
    assert owners(context)["mary"] == "mary"


def test_an_owner_with_credit_users_cannot_become_one(context: Context) -> None:
    set_owner(context, "peter", "mary")

    answered = set_owner(context, "mary", "john", change_id="change-2")

    assert (answered["status"], answered["reason"]) == ("refused", "user_has_credit_users")
    assert owners(context)["mary"] == "mary"


def test_two_users_cannot_use_the_credits_of_each_other(context: Context) -> None:
    set_owner(context, "peter", "mary")

    answered = set_owner(context, "mary", "peter", change_id="change-2")

    assert answered["reason"] == "owner_is_credit_user"


@pytest.mark.parametrize("rights", [[], ["view_user_list"], ["edit_user"]])
def test_a_role_without_both_rights_may_not_set_an_owner(context: Context, rights: list[str]) -> None:
    answer(context, "roles.save", {"organization": "acme", "role": "member", "rights": rights})

    answered = set_owner(context, "mary", "john", actor="peter")

    assert (answered["status"], answered["reason"]) == ("refused", "not_permitted")
    assert owners(context) == ALONE


def test_the_rights_at_the_moment_of_the_change_count(context: Context) -> None:
    both = {"organization": "acme", "role": "member", "rights": ["edit_user", "view_user_list"]}
    answer(context, "roles.save", both)
    granted = set_owner(context, "mary", "john", actor="peter")
    answer(context, "roles.save", {**both, "rights": []})

    taken_away = set_owner(context, "mary", "mary", actor="peter", change_id="change-2")

    assert (granted["status"], taken_away["reason"]) == ("done", "not_permitted")


@pytest.mark.parametrize(
    ("actor", "user", "owner"),
    [("john", "peter", "olga"), ("john", "olga", "john"), ("olga", "peter", "john"), ("olga", "olga", "john")],
)
def test_credits_are_not_shared_across_organizations(context: Context, actor: str, user: str, owner: str) -> None:
    answered = set_owner(context, user, owner, actor)

    assert (answered["status"], answered["reason"]) == ("refused", "other_organization")
    assert owners(context) == ALONE


@pytest.mark.parametrize(
    ("actor", "user", "owner"), [("nobody", "peter", "john"), ("john", "nobody", "john"), ("john", "peter", "nobody")]
)
def test_everybody_who_is_named_must_exist(context: Context, actor: str, user: str, owner: str) -> None:
    answered = set_owner(context, user, owner, actor)

    assert (answered["status"], answered["reason"]) == ("refused", "unknown_user")
    assert "nobody" in answered["detail"]


def test_a_refused_change_is_recorded_and_may_be_sent_again(context: Context) -> None:
    first = set_owner(context, "mary", "john", actor="peter")
    recorded = recorded_refusals(context)
    answer(
        context,
        "roles.save",
        {"organization": "acme", "role": "member", "rights": ["view_user_list", "edit_user"]},
    )

    again = set_owner(context, "mary", "john", actor="peter")

    assert first["status"] == "refused"
    assert recorded == [("credits.set_owner", "change-1", "not_permitted")]
    assert again["status"] == "done"
    assert changes(context) == [("peter", "mary", "mary", "john")]


def test_saving_a_user_again_changes_neither_owner_nor_credits(context: Context) -> None:
    buy(context.database, "john", email=5)
    share(context.database, "peter", "john")
    known = {"user_id": "peter", "organization": "acme", "name": "Pete", "email": "pete@acme.test", "role": "admin"}

    answered = answer(context, "users.save", known)

    assert (answered["status"], answered["user_id"]) == ("done", "peter")
    with context.database.snapshot() as connection:
        saved = connection.execute(select(users).where(users.c.id == "peter")).one()
    assert (saved.name, saved.email, saved.role) == ("Pete", "pete@acme.test", "admin")
    assert (saved.credit_owner_id, saved.billing) == ("john", {"name": "Peter"})
    assert balance(context.database, "john") == 5


def test_a_user_cannot_be_moved_to_another_organization(context: Context) -> None:
    moved = {"user_id": "peter", "organization": "other", "name": "P", "email": "p@other.test", "role": "admin"}

    answered = answer(context, "users.save", moved)

    assert (answered["status"], answered["reason"]) == ("refused", "other_organization")


def test_a_user_needs_a_role_that_exists(context: Context) -> None:
    new = {"user_id": "anna", "organization": "acme", "name": "A", "email": "a@acme.test", "role": "ghost"}

    answered = answer(context, "users.save", new)

    assert (answered["status"], answered["reason"]) == ("refused", "not_found")
    assert "roles.save" in answered["detail"]
    assert "anna" not in owners(context)


def test_the_longest_user_that_is_valid_can_be_stored(context: Context) -> None:
    """What the wire contract accepts fits into the columns of both databases."""
    longest = {
        "user_id": "u" * 64,
        "organization": "acme",
        "name": "\U0001f600" * 500,
        "email": "l" * 64 + "@" + "d" * 63 + "." + "d" * 63 + "." + "d" * 56 + ".test",
        "role": "member",
        "billing": {"n" * 64: "\U0001f600" * 500},
    }

    answered = answer(context, "users.save", longest)

    assert answered["status"] == "done"
