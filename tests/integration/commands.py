"""Commands of the command line, run in this process."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from click.testing import CliRunner, Result

from tasks.context import Json
from tests.fakes import OpenSession
from worker.app import PostageApp, create_app
from worker.settings import Settings

Run = Callable[..., Result]


@contextmanager
def open_app(database_url: str, broker_url: str) -> Iterator[PostageApp]:
    """Give an app, closed after the block."""
    app = create_app(Settings(database_url=database_url, broker_url=broker_url))
    yield app
    app.close_context()
    app.close()


def runner_of(command: click.Command, app: PostageApp) -> Run:
    """Give a function that runs a command with these arguments, and with these changes of the environment."""
    session = OpenSession(app)

    def run(*arguments: str, **environment: str) -> Result:
        environment = {"USER": "someone", "COLUMNS": "250", **environment}
        # A command keeps the names of its help option from its first run: those that it has below `postage`.
        return CliRunner(env=environment).invoke(command, arguments, obj=session, help_option_names=["-h", "--help"])

    return run


def printed(result: Result) -> Json:
    """Give the answer that a command printed as JSON."""
    answer: Json = json.loads(result.stdout)
    return answer
