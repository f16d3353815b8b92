"""Commands that show how carriers stand, and let one be tried that was mended."""

import click

from models.database.engine import transaction_time
from models.messages.base import Json
from models.sends.resting import forget_rests, wake_carrier
from tasks.context import Context
from worker.app import PostageApp
from worker.cli import tables
from worker.cli.monitor import carriers_as_they_stand
from worker.cli.output import json_option, print_answer, table_options
from worker.cli.session import Need, current_session, needs
from worker.cli.watching import watchable

NOT_RESTING = "No carrier of that name rests: there is nothing to wake."


@click.group()
def carriers() -> None:
    """Show how carriers stand, and wake one that rests.

    A carrier that does not work is left alone for a while by all workers, and then tried with one job; each time it
    fails again, it rests longer. Jobs wait for it, or take another carrier, and use up no attempts.
    """


@carriers.command("list")
@table_options
@needs(Need.DATABASE)
@watchable
def list_carriers(*, as_json: bool) -> None:
    """List the carriers of both kinds: whether each works or rests, since when, until when, and why."""
    app = current_session().app
    print_answer({"status": "done", "rows": carriers_as_they_stand(app)}, as_json=as_json, table=tables.carriers)


@carriers.command()
@click.argument("name")
@json_option
@needs(Need.DATABASE)
def wake(*, name: str, as_json: bool) -> None:
    """Let the next job try the carrier NAME, once you have mended what was wrong.

    If it works, all jobs go to it again; if not, it rests as before. Jobs that wait already come back by themselves,
    when the rest would have ended that they were told of. One that is not set up any more is forgotten.
    """
    print_answer(_wake(current_session().app, name), as_json=as_json, table=tables.woken)


def _wake(app: PostageApp, name: str) -> Json:
    is_set_up = any(row["name"] == name and row["address"] for row in carriers_as_they_stand(app))
    kinds = _tried_next(app.context, name) if is_set_up else app.context.database.write(
        lambda connection: forget_rests(connection, name)
    )  # fmt: skip
    return {
        "status": "done" if kinds else "failed",
        "name": name,
        "kinds": kinds,
        "is_set_up": is_set_up,
        "detail": None if kinds else NOT_RESTING,
    }


def _tried_next(context: Context, name: str) -> list[str]:
    return context.database.write(lambda connection: wake_carrier(connection, name, transaction_time(connection)))
