"""What all commands for people have in common: the app they work with, and how they print an answer."""

import json
from collections.abc import Callable
from typing import Any, TypeVar, cast

import click
from rich.console import Console

from models.migrations import check_migrated
from tasks.context import Json
from worker.app import PostageApp

F = TypeVar("F", bound=Callable[..., Any])


def the_app(ctx: click.Context) -> PostageApp:
    """The app that the group has made."""
    return cast("PostageApp", ctx.obj.app)


def migrated_app(ctx: click.Context) -> PostageApp:
    """The same app, on a database that has every migration.

    Raises
    ------
    DatabaseBehindError
        If it lacks one.

    """
    app = the_app(ctx)
    check_migrated(app.context.database)
    return app


def as_json(command: F) -> F:
    """Give a command the option --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")(command)


def show(answer: Json, *, as_json: bool, screen: Callable[[Console, Json], None]) -> None:
    """Print an answer, and end with exit code 1 if it is a refusal."""
    if as_json:
        text = json.dumps(answer, indent=2, ensure_ascii=False)
        click.echo(text.encode("utf-8", "backslashreplace").decode())  # half a surrogate pair becomes its \\u escape
    elif answer.get("status") == "refused":
        click.echo(f"Refused ({answer['reason']}): {answer['detail']}", err=True)
    else:
        screen(Console(), answer)
    if answer.get("status") in ("refused", "failed", "unknown"):
        raise click.exceptions.Exit(1)
