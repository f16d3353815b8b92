"""Saves with versions, and who changed what."""

from typing import Any

import pytest

from models.database.engine import Database
from tests.factories import share, stock
from tests.fakes import answer, make_context

Json = dict[str, Any]


def user(**fields: Any) -> Json:
    """Give the object of `users.save` for mary."""
    return {
        "user_id": "mary",
        "organization": "acme",
        "name": "Mary",
        "email": "m@acme.test",
        "role": "member",
    } | fields


PLAN = {"plan": "small", "name": "Small", "credits": {"email": 3, "sms": 0}, "price": 900, "currency": "EUR"}
ROLE = {"organization": "acme", "role": "member", "rights": ["view_user_list"]}
SAVES = [
    ("users.save", user(), {"role": "admin"}),
    ("plans.save", PLAN, {"price": 1}),
    ("roles.save", ROLE, {"rights": []}),
]


@pytest.mark.parametrize(("task", "saved", "changed"), SAVES)
def test_an_older_version_is_refused_and_changes_nothing(
    database: Database, task: str, saved: Json, changed: Json
) -> None:
    context = make_context(stock(database, email=1))
    assert answer(context, task, saved | changed | {"version": 7})["status"] == "done"
    before = answer(context, "views.changes", {"viewer": "john"})["rows"]

    stale = answer(context, task, saved | {"version": 6})

    assert (stale["status"], stale["reason"]) == ("refused", "stale")
    assert "version 7" in stale["detail"]
    assert answer(context, "views.changes", {"viewer": "john"})["rows"] == before


@pytest.mark.parametrize(("task", "saved", "changed"), SAVES)
def test_the_same_version_may_be_saved_again_and_a_save_without_one_counts(
    database: Database, task: str, saved: Json, changed: Json
) -> None:
    context = make_context(stock(database, email=1))
    for fields in ({"version": 7}, {"version": 7}, changed):
        assert answer(context, task, saved | fields)["status"] == "done"

    newest = answer(context, "views.changes", {"viewer": "john"})["rows"][0]

    assert newest["new"]["version"] == 7
    assert newest["new"] != newest["old"]
    assert answer(context, task, saved | {"version": 5})["reason"] == "stale"


def test_every_change_is_shown_with_its_actor_and_what_was_before(database: Database) -> None:
    context = make_context(stock(database, email=1))
    answer(context, "users.save", user(role="admin", actor="john"))
    answer(context, "roles.save", ROLE | {"actor": "john"})
    answer(context, "plans.save", PLAN | {"actor": "olga"})
    share(database, "mary", "john")

    rows = answer(context, "views.changes", {"viewer": "john"})["rows"]

    assert [(row["kind"], row["subject"], row["actor"]) for row in rows[:4]] == [
        ("owner", "mary", "john"),
        ("plan", "small", "olga"),
        ("role", "member", "john"),
        ("user", "mary", "john"),
    ]
    assert (rows[0]["old"], rows[0]["new"]) == ({"owner": "mary"}, {"owner": "john"})
    assert (rows[2]["old"]["rights"], rows[2]["new"]["rights"]) == ([], ["view_user_list"])
    assert (rows[3]["old"]["role"], rows[3]["new"]["role"]) == ("member", "admin")


def test_a_save_that_changes_neither_role_nor_version_is_no_change(database: Database) -> None:
    context = make_context(stock(database, email=1))
    before = answer(context, "views.changes", {"viewer": "john"})["rows"]

    answer(context, "users.save", user(name="Mary Ann", email="ann@acme.test"))

    assert answer(context, "views.changes", {"viewer": "john"})["rows"] == before
    assert "Ann" not in str(before)


def test_changes_of_another_organization_are_not_shown(database: Database) -> None:
    context = make_context(stock(database, email=1))

    rows = answer(context, "views.changes", {"viewer": "olga"})["rows"]

    assert {row["subject"] for row in rows} == {"olga", "admin", "member"}


def test_changes_need_the_right_to_see_users(database: Database) -> None:
    context = make_context(stock(database, email=1))

    assert answer(context, "views.changes", {"viewer": "mary"})["reason"] == "not_permitted"


def test_changes_can_be_narrowed_to_a_subject_and_to_ones_own(database: Database) -> None:
    context = make_context(stock(database, email=1))
    answer(context, "users.save", user(role="admin", actor="peter"))
    answer(context, "roles.save", ROLE | {"actor": "john"})

    of_mary = answer(context, "views.changes", {"viewer": "john", "subject": "mary"})["rows"]
    own = answer(context, "views.changes", {"viewer": "john", "of": "self"})["rows"]

    assert {row["subject"] for row in of_mary} == {"mary"}
    assert {row["actor"] for row in own} == {"john"}
