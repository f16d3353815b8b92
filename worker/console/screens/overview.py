"""The overview: what is left, how long it will last, and what needs a person."""

from datetime import timedelta

from sqlalchemy import Connection

from models.messages.base import Json
from models.messages.fields import KINDS
from models.reports.status import count_waiting_decisions
from worker.console.screen import Asked, Screen

USED_DAYS = 30
"""Days by whose usage is estimated how long the credits last."""
LATEST_ORDERS = 5


def _details(asked: Asked, answer: Json) -> Json:
    of = answer["of"]
    this_month = asked.ask("views.usage", asked.view(of=of, since=str(asked.today.replace(day=1)), until=None))
    lately = asked.ask("views.usage", asked.view(of=of, since=str(asked.today - timedelta(USED_DAYS)), until=None))
    orders = asked.ask("views.orders", asked.view(of=of, since=None, until=None))
    return {
        "used": this_month["total"],
        "days_left": {kind: _days_left(answer["remaining"][kind], lately["total"][kind]) for kind in KINDS},
        "orders": orders["rows"][:LATEST_ORDERS],
        "waiting": asked.read(lambda connection: _waiting(connection, asked)),
    }


def _days_left(remaining: int, used: int) -> int | None:
    """Return after how many days credits are used up, if as many are used as lately; None if none are."""
    return remaining * USED_DAYS // used if used else None


def _waiting(connection: Connection, asked: Asked) -> Json:
    """Return how much waits for a person, for those who may put balances right."""
    if not asked.viewer.holds(["adjust_credits"]):
        return {}
    return count_waiting_decisions(connection, asked.viewer.user.org_id)


SCREEN = Screen(name="overview", path="/overview", task="views.overview", details=_details)
