"""Commands of the console: serve it, and give somebody a password for it."""

import sys

import click

from models.errors import Refused
from models.users.passwords import Passwords
from tasks.signing_in import set_password
from worker.cli.session import PERSON_WAIT_S, Need, current_session, needs


@click.command()
@needs(Need.SERVICE | Need.BROKER | Need.PREFLIGHT)
def console() -> None:
    """Serve the console, on which users see their credits.

    It uses POSTAGE_CONSOLE_ADDRESS and POSTAGE_CONSOLE_PORT. `postage create-admin` gives somebody a password.
    """
    from worker.console.server import serve_console  # noqa: PLC0415  a large import for one command

    session = current_session()
    wait_s = min(session.settings.database_wait_s, PERSON_WAIT_S)  # people wait for pages
    session.settings = session.settings.model_copy(update={"database_wait_s": wait_s})
    serve_console(session.app)


@click.command()
@click.argument("user")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input, instead of asking.")
@needs(Need.DATABASE)
def create_admin(*, user: str, password_stdin: bool) -> None:
    """Give USER a password for the console, or a new one, and end all their sessions.

    What they may do there is what their role holds: `postage role save` changes that.
    """
    session = current_session()
    password = _read_password(from_stdin=password_stdin)
    try:
        role = set_password(session.context, Passwords(), user, password).role
    except Refused as why:
        raise click.ClickException(why.detail) from why
    click.echo(f"{user} can sign in at {session.settings.console_address_for_people}, with the rights of role {role}.")


def _read_password(*, from_stdin: bool) -> str:
    """Return the password: a line of standard input, or what a person types twice."""
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    typed: str = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    return typed
