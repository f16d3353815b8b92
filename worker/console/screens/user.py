"""A user of the viewer's organization."""

from models.errors import Refused
from models.messages.answer import refused_answer
from models.messages.base import Json
from models.messages.views import View
from models.reports.views import show_user
from worker.console.screen import Asked, Screen


def read_user(asked: Asked) -> Json:
    """Return a user, by the id in the address. One of another organization is as unknown as nobody."""
    view = View(viewer=asked.viewer.user.id)
    try:
        answer: Json = asked.read(lambda connection: show_user(connection, view, asked.given["user_id"]))
    except Refused as why:
        return refused_answer(why.reason, why.detail)
    return answer


SCREEN = Screen(
    name="user", path="/users/{user_id}/profile", answer=read_user, rights=("view_user_list",), in_navigation=False
)
