"""What protects the console, whatever a page does: headers, the host that is asked for, and where a request comes from.

Sources: OWASP cheat sheets (HTTP Headers, Cross-Site Request Forgery Prevention), Fetch Metadata Request Headers (W3C).
"""

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.settings import Settings

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=()",
}
NO_STORE = "no-store"
YEAR_S = 31_536_000
SAFE_METHODS = frozenset({"GET", "HEAD"})
LOCAL_PATH = re.compile(r"/(?![/\\])[A-Za-z0-9._~/?=&%:+,-]*")
"""An address within this console. `//host` and `/\\host` lead elsewhere."""


class Origin:
    """Where the console is: the hosts that it answers to, and whether browsers reach it by TLS."""

    def __init__(self, settings: Settings) -> None:
        url = urlsplit(settings.console_address_for_people)
        self.is_secure = url.scheme == "https"
        # Nobody else can give a name of this machine to it; whoever looks whether it is well asks by such a name.
        names = ("localhost", "127.0.0.1", "[::1]")
        self.hosts = {url.netloc, *(f"{name}:{settings.console_port}" for name in names)}
        self.scheme = url.scheme

    @property
    def cookie(self) -> str:
        """The name of the cookie. By this prefix browsers take it from no subdomain and without TLS from nobody."""
        return "__Host-postage" if self.is_secure else "postage"

    def knows(self, headers: Mapping[str, str]) -> bool:
        """Whether a request asks for a host that this is. Otherwise a stranger's name may lead here (DNS rebinding)."""
        return headers.get("host", "") in self.hosts

    def sent(self, headers: Mapping[str, str]) -> bool:
        """Whether one of our own pages has sent a request, as the browser says."""
        site = headers.get("sec-fetch-site")
        if site is not None:
            return site == "same-origin"
        return headers.get("origin") in {f"{self.scheme}://{host}" for host in self.hosts}

    def keep_token(self, response: Response, token: str) -> None:
        """Let the browser keep the token of a session, until it is closed."""
        response.set_cookie(self.cookie, token, path="/", secure=self.is_secure, httponly=True, samesite="lax")

    def forget_token(self, response: Response) -> None:
        """Let the browser forget the token."""
        response.delete_cookie(self.cookie, path="/", secure=self.is_secure, httponly=True, samesite="lax")

    def token_of(self, request: Request) -> str | None:
        """Return the token that a browser has sent."""
        return request.cookies.get(self.cookie)


class SecurityHeaders:
    """Adds the headers to every response. Only files that are the same for everybody may be stored."""

    def __init__(self, app: ASGIApp, origin: Origin) -> None:
        self.app = app
        self.headers = dict(HEADERS)
        if origin.is_secure:
            self.headers["strict-transport-security"] = f"max-age={YEAR_S}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers[name] = value
                headers.setdefault("cache-control", NO_STORE)
            await send(message)

        await self.app(scope, receive, send_with_headers)


def is_local_path(path: str) -> bool:
    """Whether an address leads to a page of this console, and nowhere else."""
    return LOCAL_PATH.fullmatch(path) is not None


def wants_json(headers: Headers) -> bool:
    """Whether a program asks, and not a browser."""
    accepted = headers.get("accept", "")
    return "application/json" in accepted and "text/html" not in accepted
