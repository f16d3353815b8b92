"""One entry of a statement, and what is behind it: messages, an order, a reversal or a correction."""

from models.errors import Reason
from models.messages.answer import refused_answer
from models.messages.base import Json
from worker.console.screen import Asked, Screen
from worker.console.sentences import say


def _answer(asked: Asked) -> Json:
    if not asked.given.get("entry"):
        return refused_answer(Reason.NOT_FOUND, say("entry.none"))
    # A period and a page are those of the statement that it was chosen on.
    of_address = asked.view(since=None, until=None, page=None, next=None)
    return asked.ask("views.statement", of_address | {"entry": asked.given["entry"]})


SCREEN = Screen(name="entry", path="/statement/entry", answer=_answer, in_navigation=False)
