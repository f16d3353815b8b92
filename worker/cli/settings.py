"""The command that shows which settings are in force."""

import click

from models.messages.base import Json
from worker.cli import tables
from worker.cli.output import print_answer, table_options
from worker.cli.session import current_session
from worker.settings import PREFIX, Settings

NOT_SHOWN = "(set, not shown)"
"""Stands for what is a password, or may contain one."""


@click.command()
@table_options
def settings(*, as_json: bool) -> None:
    """Show every setting that is in force here, and whether the environment has set it.

    Passwords, and addresses that may contain one, are not shown. A worker that was started with another environment
    has other settings: run this where the worker runs.
    """
    in_force = current_session().configured
    print_answer({"status": "done", "rows": rows_of(in_force)}, as_json=as_json, table=tables.settings)


def rows_of(settings: Settings) -> list[Json]:
    """Return each setting: its variable, its value without secrets, whether it was set, and what it is for."""
    return [
        {
            "name": PREFIX + name.upper(),
            "value": _shown(getattr(settings, name), is_secret=name in Settings.SECRETS),
            "is_set": name in settings.model_fields_set,
            "description": field.description,
        }
        for name, field in Settings.model_fields.items()
    ]


def _shown(value: object, *, is_secret: bool) -> object:
    if is_secret and value is not None and value != "null://":
        return NOT_SHOWN
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
