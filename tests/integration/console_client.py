"""The console as a browser sees it, in this process: on a real database, with a clock that is set."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from argon2 import PasswordHasher
from argon2.profiles import CHEAPEST
from httpx2 import Response
from starlette.testclient import TestClient

from models.database.engine import Database
from models.users.passwords import Passwords
from tasks.context import Context
from tasks.signing_in import link_for, set_password
from tests.fakes import Clock, make_context
from tests.integration.templates import url_of
from worker.app import PostageApp, create_app
from worker.console.app import create_console
from worker.console.screen import Screen
from worker.console.screens import SCREENS
from worker.settings import Settings

ORIGIN = "http://127.0.0.1:5580"
PASSWORD = "correct horse battery"
PASSWORDS = Passwords(PasswordHasher.from_parameters(CHEAPEST))
NOWHERE = "redis://127.0.0.1:1/0"


class Browser:
    """A browser with cookies of its own, which sends forms as a browser does from a page of the console."""

    def __init__(self, console: Any, address: str = "192.0.2.1") -> None:
        self.client = TestClient(
            console, base_url=ORIGIN, follow_redirects=False, raise_server_exceptions=False, client=(address, 50_000)
        )

    def get(self, path: str, **headers: str) -> Response:
        """Open a page."""
        return self.client.get(path, headers=headers)

    def post(self, path: str, site: str | None = "same-origin", **form: str) -> Response:
        """Send a form as it stands."""
        headers = {} if site is None else {"sec-fetch-site": site}
        return self.client.post(path, data=form or {"nothing": ""}, headers=headers)

    def submit(self, path: str, **form: str) -> Response:
        """Send a form of a page of this session."""
        return self.post(path, form_token=self.form_token, **form)

    @property
    def form_token(self) -> str:
        """What the forms of this session carry."""
        found = re.search(r'name="form_token" value="(\w+)"', self.get("/password").text)
        return found[1] if found else ""

    @property
    def token(self) -> str | None:
        """The token of the session that this browser has."""
        return self.client.cookies.get("postage")

    def keep(self, token: str) -> None:
        """Have the token of a session, in place of any other."""
        self.client.cookies.clear()
        self.client.cookies.set("postage", token, domain="127.0.0.1", path="/")

    def sign_in(self, user: str, password: str = PASSWORD, **form: str) -> Response:
        """Sign in by the form."""
        return self.post("/sign-in", user=user, password=password, **form)


class ConsoleOfTest:
    """A console and what stands behind it."""

    def __init__(self, app: PostageApp, context: Context, screens: Sequence[Screen] = SCREENS) -> None:
        self.app = app
        self.context = context
        self.console = create_console(app, PASSWORDS, screens)

    @property
    def clock(self) -> Clock:
        """The clock, to be set."""
        clock: Any = self.context.now
        return clock

    def browser(self, user: str | None = None, address: str = "192.0.2.1") -> Browser:
        """Give a browser, in which a user is signed in if one is named."""
        browser = Browser(self.console, address)
        if user is not None:
            browser.post(f"/link/{link_for(self.context, user)}")
        return browser

    def set_password(self, user: str, password: str = PASSWORD) -> None:
        """Give a user a password."""
        set_password(self.context, PASSWORDS, user, password)


@contextmanager
def console_on(
    database: Database, broker_url: str = NOWHERE, screens: Sequence[Screen] = SCREENS
) -> Iterator[ConsoleOfTest]:
    """Give a console on a database."""
    app = create_app(Settings(database_url=url_of(database), broker_url=broker_url))
    app._context = make_context(database)
    yield ConsoleOfTest(app, app.context, screens)
    app.close()
