"""Commands that show what a user sees of their credits."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from models.messages.base import Json
from worker.cli import tables
from worker.cli.output import ask, json_option, next_option, print_answer
from worker.cli.session import Need, needs

F = TypeVar("F", bound=Callable[..., Any])


def _view_options(command: F) -> F:
    """Give a command the options that all views share."""
    for option in (
        next_option,
        click.option("--until", help="Before this day or time (ISO 8601, UTC)."),
        click.option("--since", help="From this day or time on (ISO 8601, UTC)."),
        click.option("--self", "of_self", is_flag=True, help="Only what is the viewer's own, not the whole pool."),
        click.argument("viewer"),
    ):
        command = option(command)
    return json_option(command)


def _view(*, viewer: str, of_self: bool, since: str | None, until: str | None, cursor: str | None) -> Json:
    given: Json = {"viewer": viewer, "of": "self" if of_self else "owner"}
    return given | {name: value for name, value in (("since", since), ("until", until), ("next", cursor)) if value}


@click.command()
@_view_options
@needs(Need.DATABASE)
def overview(*, as_json: bool, **given: Any) -> None:  # noqa: ANN401
    """Show remaining credits and plans, as VIEWER sees them."""
    print_answer(ask("views.overview", _view(**given)), as_json=as_json, table=tables.overview)


@click.command()
@_view_options
@click.option("--by", type=click.Choice(["day", "message"]), default="day", show_default=True, help="One row each.")
@needs(Need.DATABASE)
def usage(*, as_json: bool, by: str, **given: Any) -> None:  # noqa: ANN401
    """Show credits spent, as VIEWER sees them."""
    print_answer(ask("views.usage", {**_view(**given), "by": by}), as_json=as_json, table=tables.usage)


@click.command()
@_view_options
@needs(Need.DATABASE)
def orders(*, as_json: bool, **given: Any) -> None:  # noqa: ANN401
    """Show orders, as VIEWER sees them."""
    print_answer(ask("views.orders", _view(**given)), as_json=as_json, table=tables.orders)


@click.command()
@_view_options
@click.option("--subject", help="Only changes of this user, role or plan.")
@needs(Need.DATABASE)
def changes(*, as_json: bool, subject: str | None, **given: Any) -> None:  # noqa: ANN401
    """Show who changed users, roles, plans, credit owners and balances, and when; newest first.

    VIEWER needs the right view_user_list. With --self: only what VIEWER has changed.
    """
    asked = _view(**given) | ({} if subject is None else {"subject": subject})
    print_answer(ask("views.changes", asked), as_json=as_json, table=tables.changes)


@click.command()
@click.argument("viewer")
@json_option
@needs(Need.DATABASE)
def billing(*, viewer: str, as_json: bool) -> None:
    """Show VIEWER's own billing information."""
    print_answer(ask("views.billing", {"viewer": viewer}), as_json=as_json, table=tables.billing)


@click.command()
@_view_options
@needs(Need.DATABASE)
def users(*, as_json: bool, **given: Any) -> None:  # noqa: ANN401
    """Show the users of VIEWER's organization. VIEWER needs the right view_user_list."""
    print_answer(ask("views.users", _view(**given)), as_json=as_json, table=tables.users)
