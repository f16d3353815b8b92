"""The web application: which address leads to what, and what stands before all of them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from models.errors import Refused
from models.users.passwords import Passwords
from tasks.signing_in import SignInRefusedError
from worker.app import PostageApp
from worker.console.forms import handles_form
from worker.console.pages import AWAY, Console
from worker.console.rendering import STATIC
from worker.console.screen import Screen
from worker.console.screens import SCREENS
from worker.console.security import SAFE_METHODS, SecurityHeaders
from worker.console.sentences import say
from worker.console.signing_in import HOME, sign_in_routes

STATIC_FOR = "public, max-age=3600"


def routes_of(console: Console, screen: Screen) -> list[Route]:
    """Return the addresses of a screen."""
    routes = [
        Route(screen.path + suffix, _endpoint(console, screen, kind), methods=["GET"])
        for suffix, kind in ((".json", "json"), (".csv", "csv"), ("", "html"))
    ]
    if screen.change is not None:
        routes.append(Route(screen.path, handles_form(functools.partial(console.change, screen)), methods=["POST"]))
    return routes


def _endpoint(console: Console, screen: Screen, kind: str) -> Callable[[Request], Response]:
    def endpoint(request: Request) -> Response:
        return console.show(screen, kind, request)

    return endpoint


class OwnSiteOnly:
    """Refuses requests for other hosts, and forms that another site has sent."""

    def __init__(self, app: Any, console: Console) -> None:  # noqa: ANN401  an application of ASGI
        self.app = app
        self.console = console

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401  ASGI's
        """Answer a request."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            response = await run_in_threadpool(self.console.failure, Request(scope), *refusal)
            await response(scope, receive, send)

    def _refusal(self, scope: Any) -> tuple[int, str] | None:  # noqa: ANN401  ASGI's
        headers = Headers(scope=scope)
        if not self.console.origin.knows(headers):
            return 400, say("error.unknown_host")
        if scope["method"] not in SAFE_METHODS and not self.console.origin.sent(headers):
            return 403, say("error.other_site")
        return None


class StoredFiles(StaticFiles):
    """Files that are the same for everybody, which browsers may keep."""

    def file_response(self, *args: Any, **options: Any) -> Response:  # noqa: ANN401  Starlette's
        """Return a file."""
        response = super().file_response(*args, **options)
        response.headers["cache-control"] = STATIC_FOR
        return response


def create_console(app: PostageApp, passwords: Passwords | None = None, screens: Sequence[Screen] = SCREENS) -> ASGIApp:
    """Return the web application of an app."""
    console = Console(app, passwords or Passwords(), screens)
    application = Starlette(
        routes=[
            Route("/", lambda _request: RedirectResponse(HOME, 303)),
            *sign_in_routes(console),
            *(route for screen in screens for route in routes_of(console, screen)),
            Mount("/static", StoredFiles(directory=STATIC)),
        ],
        middleware=[Middleware(OwnSiteOnly, console=console)],
        exception_handlers={
            HTTPException: console.http_error,
            Refused: console.refused,
            SignInRefusedError: console.not_signed_in,
            **dict.fromkeys(AWAY, console.away),
            Exception: console.fault,
        },
    )
    return SecurityHeaders(application, console.origin)  # around everything: also the page that tells of a bug
