"""Billing information: the viewer's own, and nobody else's."""

from models.messages.base import Json
from worker.console.screen import Asked, Screen


def _message(asked: Asked) -> Json:
    return {"viewer": asked.viewer.user.id}


SCREEN = Screen(name="billing", path="/billing", task="views.billing", message=_message)
