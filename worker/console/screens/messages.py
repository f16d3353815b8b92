"""Messages: each with what it costs now and how it stands, and a form that leads to the story of one."""

from models.messages.base import Json
from worker.console.screen import Asked, Screen


def _message(asked: Asked) -> Json:
    return asked.view(by="message")


SCREEN = Screen(name="messages", path="/messages", task="views.usage", message=_message)
