"""The command that erases a user."""

import click

from worker.cli import tables
from worker.cli.output import ask, json_option, new_id, print_answer
from worker.cli.session import Need, needs


@click.command()
@click.argument("user")
@click.option("--by", "actor", required=True, help="Who erases: needs the right edit_user.")
@click.option("--erasure-id", help="The erasure's id: the same id is never made twice. Default: a new one.")
@json_option
@needs(Need.BROKER | Need.DATABASE)
def erase(*, user: str, actor: str, erasure_id: str | None, as_json: bool) -> None:
    """Erase who USER is, and what names those they wrote to. Nothing brings it back.

    Their id, balance, usage and orders stay, and so does the billing information on their orders.
    """
    erasure = {"erasure_id": erasure_id or new_id("erasure"), "actor": actor, "user": user}
    print_answer(ask("users.erase", erasure), as_json=as_json, table=tables.erasure)
