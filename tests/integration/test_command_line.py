"""The command line as a whole: help needs nothing, and options are parsed as they are meant."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from redis import Redis

from models.database.engine import Database
from tests.factories import save_people
from tests.fakes import OpenSession
from worker.app import PostageApp, create_app
from worker.cli.main import postage
from worker.settings import Settings


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    """The words of every command and subcommand of ours."""
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


ALL = list(commands(postage))


@pytest.mark.parametrize("words", [(), *ALL], ids=" ".join)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_needs_neither_settings_nor_servers(words: tuple[str, ...], option: str, tmp_path: Path) -> None:
    environment = {"POSTAGE_VAR": str(tmp_path / "var"), "POSTAGE_COLOUR": "a setting that does not exist"}

    shown = CliRunner(env=environment).invoke(postage, [*words, option])

    assert shown.exit_code == 0, shown.output
    assert "Usage: postage" in shown.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_command_has_a_help_text_and_explains_its_options(words: tuple[str, ...]) -> None:
    command: click.Command = postage
    for word in words:
        assert isinstance(command, click.Group)
        command = command.commands[word]

    assert command.help
    if command.callback and command.callback.__module__.startswith("worker."):
        options = [option for option in command.params if isinstance(option, click.Option)]
        assert [option.name for option in options if not option.help] == []


@pytest.fixture
def app(sqlite_url: str, valkey_url: str) -> Iterator[PostageApp]:
    app = create_app(Settings(database_url=sqlite_url, broker_url=valkey_url))
    yield app
    app.close_context()
    app.close()


def test_a_subject_may_look_like_an_option(app: PostageApp, sqlite_url: str, valkey_url: str) -> None:
    database = Database(sqlite_url)
    save_people(database)
    database.close()
    arguments = ["--sender", "john", "--to", "ada@example.test", "--subject", "-h", "--text", "--help", "--wait", "0"]

    sent = CliRunner().invoke(postage, ["send-email", *arguments, "--json"], obj=OpenSession(app))

    assert sent.exit_code == 0, sent.output
    assert json.loads(sent.stdout)["status"] == "enqueued"
    with Redis.from_url(valkey_url) as redis:
        [message] = redis.lrange("email", 0, -1)
    [job], _, _ = json.loads(base64.b64decode(json.loads(message)["body"]))
    assert (job["subject"], job["text"]) == ("-h", "--help")
