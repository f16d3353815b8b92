"""Commands that show what a user sees of their credits."""

import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from models.messages.base import Json
from worker.cli import tables
from worker.cli.output import ask, csv_option, next_option, print_answer, table_options
from worker.cli.session import Need, needs
from worker.cli.watching import watchable

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
    return table_options(command)


def _view(*, viewer: str, of_self: bool, since: str | None, until: str | None, cursor: str | None) -> Json:
    given: Json = {"viewer": viewer, "of": "self" if of_self else "owner"}
    return given | {name: value for name, value in (("since", since), ("until", until), ("next", cursor)) if value}


@click.command()
@_view_options
@needs(Need.DATABASE)
@watchable
def overview(*, as_json: bool, **given: Any) -> None:  # noqa: ANN401
    """Show remaining credits and plans, as VIEWER sees them."""
    print_answer(ask("views.overview", _view(**given)), as_json=as_json, table=tables.overview)


@click.command()
@_view_options
@click.option("--by", type=click.Choice(["day", "message"]), default="day", show_default=True, help="One row each.")
@needs(Need.DATABASE)
@watchable
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
@click.option("--self", "of_self", is_flag=True, help="The viewer's own accounts, not those that they spend from.")
@click.option("--since", help="From this day or time on (ISO 8601, UTC).")
@click.option("--until", help="Before this day or time (ISO 8601, UTC).")
@next_option
@click.option("--all", "all_pages", is_flag=True, help="Every page, back to the first entry.")
@click.option("--json", "as_json", is_flag=True, help="Print each page as JSON, on a line of its own.")
@csv_option
@needs(Need.DATABASE)
def statement(
    *, viewer: str, of_self: bool, since: str | None, until: str | None, cursor: str | None, all_pages: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Show each entry of the accounts that VIEWER spends from, newest first.

    An entry is what one transaction did to an account: a batch of messages that was charged, a refund, a purchase, a
    reversal or an adjustment. It has the balance and the debt that it left. `postage entry VIEWER ENTRY` shows what is
    behind one.
    """
    given: Json = {"viewer": viewer, "of": "self" if of_self else "owner"}
    given |= {name: value for name, value in (("since", since), ("until", until), ("next", cursor)) if value}
    for page in _pages(given, all_pages=all_pages):
        if as_json and page["status"] == "done":
            click.echo(json.dumps(page, ensure_ascii=False))
        else:
            shown = {**page, "more": False} if all_pages else page
            print_answer(shown, as_json=as_json, table=tables.statement)


def _pages(given: Json, *, all_pages: bool) -> Iterator[Json]:
    """Yield a page of a statement, or all from there on."""
    page = ask("views.statement", given)
    yield page
    while all_pages and page.get("next"):
        page = ask("views.statement", {**given, "next": page["next"]})
        yield page


@click.command()
@click.argument("viewer")
@click.argument("entry")
@click.option("--self", "of_self", is_flag=True, help="An entry of the viewer's own account.")
@table_options
@needs(Need.DATABASE)
def entry(*, viewer: str, entry: str, of_self: bool, as_json: bool) -> None:
    """Show what is behind ENTRY, such as email/57: the messages, the order, the reversal or the adjustment.

    `postage statement VIEWER` lists the entries.
    """
    given = {"viewer": viewer, "of": "self" if of_self else "owner", "entry": entry}
    print_answer(ask("views.statement", given), as_json=as_json, table=tables.entry)


@click.command()
@click.argument("viewer")
@table_options
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
