"""One message and its whole story. While it runs, the page looks again by itself."""

from models.errors import Reason
from models.messages.answer import refused_answer
from models.messages.base import Json
from worker.console.screen import Asked, Screen
from worker.console.sentences import say

LOOK_AGAIN_S = {"sending": 3, "retrying": 15}
"""After how many seconds the page looks again at a job that has not ended, by its status."""


def _answer(asked: Asked) -> Json:
    job_id = asked.given.get("job_id", "").strip()
    if not job_id:
        return refused_answer(Reason.NOT_FOUND, say("message.none"))
    return asked.ask("views.explain", {"viewer": asked.viewer.user.id, "job_id": job_id})


def _details(_asked: Asked, answer: Json) -> Json:
    return {"look_again_s": LOOK_AGAIN_S.get(answer["status"])}


def _is_refused(answer: Json) -> bool:
    """Whether the view was refused. A job that was refused has a story that says so."""
    return not answer.get("story")


SCREEN = Screen(
    name="message",
    path="/messages/story",
    answer=_answer,
    details=_details,
    is_refused=_is_refused,
    in_navigation=False,
)
