"""Advanced settings, credit owner: whose credits a user spends, who else could pay, and the change."""

from collections.abc import Iterator
from itertools import islice

from models.messages.base import Json
from worker.console.forms import Form
from worker.console.jobs import new_key
from worker.console.screen import Asked, Screen
from worker.console.screens.user import read_user
from worker.console.sentences import say

PAGES_MAX = 20
"""Pages of users to choose from."""


def _details(asked: Asked, answer: Json) -> Json:
    change_id = asked.given.get("change")
    change = asked.answer_of(change_id) if change_id else None
    # The answer to a change may have come after the user was read.
    user = (read_user(asked) if change else answer)["user"]
    members = list(_members(asked))
    chosen = next((each for each in members if each["user_id"] == asked.given.get("owner")), None)
    problem = None if chosen is None else _problem(user, chosen)
    return {
        "user": user,
        "choices": [{**each, "problem": _problem(user, each)} for each in members],
        "chosen": chosen if problem is None and chosen and chosen["user_id"] != user["owner"] else None,
        "change_id": change_id,
        "new_change_id": new_key(),
        "change": change,
    }


def _members(asked: Asked) -> Iterator[Json]:
    for answer in islice(asked.pages("views.users", {"viewer": asked.viewer.user.id}), PAGES_MAX):
        yield from answer.get("rows") or []


def _problem(user: Json, other: Json) -> str | None:
    """Return why a user cannot spend another one's credits, or None if they can. Worker and schema check it again."""
    if other["user_id"] == user["user_id"]:
        return None
    if user["credit_users"]:
        return say("credit_owner.has_credit_users", user=user["user_id"], count=user["credit_users"])
    if other["sharing"]:
        return say("credit_owner.is_credit_user", other=other["user_id"], owner=other["owner"])
    return None


def _change(asked: Asked, form: Form) -> str:
    """Enqueue the change. Its id comes with the form: whoever sends that twice makes the change once."""
    user_id, change_id = asked.given["user_id"], form.get("change_id", "")
    message = {
        "change_id": change_id,
        "actor": asked.viewer.user.id,
        "user": user_id,
        "owner": form.get("owner", ""),
    }
    asked.enqueue("credits.set_owner", change_id, message)
    return asked.link(change=change_id)


SCREEN = Screen(
    name="credit_owner",
    path="/users/{user_id}/credit-owner",
    answer=read_user,
    details=_details,
    change=_change,
    rights=("view_user_list", "edit_user"),
    in_navigation=False,
)
