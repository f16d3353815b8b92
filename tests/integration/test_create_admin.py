"""`postage create-admin`: somebody gets a password for the console."""

from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result

from models.database.engine import Database
from models.users.passwords import Passwords
from tasks.signing_in import SignInRefusedError, link_for, sign_in, sign_in_by_link, who_is_signed_in
from tests.factories import save_people
from tests.fakes import OpenSession
from tests.integration.commands import open_app
from tests.integration.console_client import NOWHERE, PASSWORD
from tests.integration.templates import database_filled_by, url_of
from worker.app import PostageApp
from worker.cli.console import create_admin

people = database_filled_by(save_people, "sqlite")


@pytest.fixture
def app(people: Database) -> Iterator[PostageApp]:
    """Give an app on a database with people."""
    with open_app(url_of(people), NOWHERE) as app:
        yield app


def create(app: PostageApp, user: str, text: str, *options: str) -> Result:
    return CliRunner().invoke(create_admin, [user, *options], input=text, obj=OpenSession(app))


@pytest.mark.parametrize(
    ("text", "options"), [(f"{PASSWORD}\n", ["--password-stdin"]), (f"{PASSWORD}\n{PASSWORD}\n", [])]
)
def test_a_user_gets_a_password_and_earlier_sessions_end(app: PostageApp, text: str, options: list[str]) -> None:
    before = sign_in_by_link(app.context, link_for(app.context, "john"))

    created = create(app, "john", text, *options)

    assert (created.exit_code, PASSWORD in created.output) == (0, False)
    assert "john can sign in at http://127.0.0.1:5580, with the rights of role admin." in created.output
    assert who_is_signed_in(app.context, before) is None
    assert sign_in(app.context, Passwords(), "john", PASSWORD, "192.0.2.1")


@pytest.mark.parametrize(
    ("user", "password", "words"),
    [("nobody", PASSWORD, "There is no user nobody"), ("john", "short", "12 to 256 characters"), ("john", "", "12 to")],
)
def test_what_cannot_be_done_is_told_in_a_sentence(app: PostageApp, user: str, password: str, words: str) -> None:
    refused = create(app, user, f"{password}\n", "--password-stdin")

    assert refused.exit_code == 1
    assert words in str(refused.output) + str(refused.exception)
    with pytest.raises(SignInRefusedError):
        sign_in(app.context, Passwords(), user, password, "192.0.2.1")
