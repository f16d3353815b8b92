"""`views.*`: what users look at. Each reads one state of the data and changes nothing."""

from collections.abc import Callable
from typing import TypeVar

from celery import shared_task
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from models.database.engine import is_too_slow
from models.errors import Reason, Refused
from models.messages.base import Json
from models.messages.views import View, ViewChanges, ViewMessage, ViewStatement, ViewStory, ViewUsage
from models.reports.changes import show_changes
from models.reports.message_view import show_message
from models.reports.statement import show_statement
from models.reports.story import show_story
from models.reports.views import show_billing, show_orders, show_overview, show_usage, show_users
from tasks.base import PostageTask
from tasks.context import Context

V = TypeVar("V", bound=View)

TOO_LARGE = (
    "The database takes too long to read this: ask for a shorter time (since, until) or for an earlier page, or ask "
    "again when it has less to do."
)


def read_view(context: Context, show: Callable[[Connection, V], Json], view: V) -> Json:
    """Return what the viewer asked to see.

    Raises
    ------
    Refused
        `too_large` if it takes longer than a statement may.

    """
    try:
        return context.database.read(lambda connection: show(connection, view))
    except DBAPIError as error:
        if not is_too_slow(error):
            raise
        raise Refused(Reason.TOO_LARGE, TOO_LARGE) from error


class ViewTask(PostageTask):
    """The base of all views. A refused one writes nothing, so that nobody can fill the disk by asking again and again.

    Whoever asked gets the reason with the answer, and the log has it.
    """

    abstract = True
    records_refusals = False


@shared_task(name="views.overview", base=ViewTask)
def views_overview(context: Context, message: View) -> Json:
    """Remaining credits and plans."""
    return read_view(context, show_overview, message)


@shared_task(name="views.usage", base=ViewTask)
def views_usage(context: Context, message: ViewUsage) -> Json:
    """Credits spent."""
    return read_view(context, show_usage, message)


@shared_task(name="views.orders", base=ViewTask)
def views_orders(context: Context, message: View) -> Json:
    """Orders."""
    return read_view(context, show_orders, message)


@shared_task(name="views.statement", base=ViewTask)
def views_statement(context: Context, message: ViewStatement) -> Json:
    """Entries, and what is behind them."""
    return read_view(context, show_statement, message)


@shared_task(name="views.billing", base=ViewTask)
def views_billing(context: Context, message: View) -> Json:
    """The viewer's own billing information."""
    return read_view(context, show_billing, message)


@shared_task(name="views.users", base=ViewTask)
def views_users(context: Context, message: View) -> Json:
    """The users of the viewer's organization."""
    return read_view(context, show_users, message)


@shared_task(name="views.changes", base=ViewTask)
def views_changes(context: Context, message: ViewChanges) -> Json:
    """Who changed what."""
    return read_view(context, show_changes, message)


@shared_task(name="views.message", base=ViewTask)
def views_message(context: Context, message: ViewMessage) -> Json:
    """The answer to one send job."""
    return read_view(context, show_message, message)


@shared_task(name="views.explain", base=ViewTask)
def views_explain(context: Context, message: ViewStory) -> Json:
    """The story of one send job."""
    return read_view(context, show_story, message)
