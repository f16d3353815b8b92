"""views.*: what people look at. Each reads one state of things and changes nothing."""

from collections.abc import Callable
from typing import TypeVar

from celery import shared_task
from sqlalchemy import Connection

from models import views
from models.messages import View, ViewMessage, ViewUsage
from tasks.context import Context, Json
from tasks.door import Door

V = TypeVar("V", bound=View)


def show(context: Context, what: Callable[[Connection, V], Json], view: V) -> Json:
    """What the viewer asked to see."""
    return context.database.look(lambda connection: what(connection, view))


@shared_task(name="views.overview", base=Door)
def views_overview(context: Context, message: View) -> Json:
    """Remaining credits and plans."""
    return show(context, views.overview, message)


@shared_task(name="views.usage", base=Door)
def views_usage(context: Context, message: ViewUsage) -> Json:
    """Credits spent."""
    return show(context, views.usage, message)


@shared_task(name="views.orders", base=Door)
def views_orders(context: Context, message: View) -> Json:
    """Orders."""
    return show(context, views.order_history, message)


@shared_task(name="views.billing", base=Door)
def views_billing(context: Context, message: View) -> Json:
    """The viewer's own billing information."""
    return show(context, views.billing, message)


@shared_task(name="views.users", base=Door)
def views_users(context: Context, message: View) -> Json:
    """The users of the viewer's organization."""
    return show(context, views.user_list, message)


@shared_task(name="views.message", base=Door)
def views_message(context: Context, message: ViewMessage) -> Json:
    """The answer to one send job."""
    return show(context, views.message, message)
