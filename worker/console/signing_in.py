"""The pages by which people sign in and out, and change their password."""

from urllib.parse import urlencode

import structlog
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from models.users.passwords import PasswordError
from models.users.sessions import SignedIn
from tasks.signing_in import (
    SignInRefusedError,
    TooManyAttemptsError,
    change_password,
    sign_in,
    sign_in_by_link,
    sign_out,
    whom_link_signs_in,
)
from worker.console.forms import Form, handles_form
from worker.console.pages import SIGN_IN, Console
from worker.console.security import is_local_path
from worker.console.sentences import say

HOME = "/overview"
LINK = "/link"
PASSWORD = "/password"  # noqa: S105  an address

log = structlog.get_logger(__name__)


def sign_in_routes(console: Console) -> list[Route]:
    """Return the addresses of these pages."""
    pages = _Pages(console)
    return [
        Route(SIGN_IN, pages.show_sign_in, methods=["GET"]),
        Route(SIGN_IN, handles_form(pages.sign_in), methods=["POST"]),
        Route("/sign-out", handles_form(pages.sign_out), methods=["POST"]),
        Route(f"{LINK}/{{token}}", pages.show_link, methods=["GET"]),
        Route(f"{LINK}/{{token}}", handles_form(pages.use_link), methods=["POST"]),
        Route(PASSWORD, pages.show_password, methods=["GET"]),
        Route(PASSWORD, handles_form(pages.change_password), methods=["POST"]),
    ]


class _Pages:
    def __init__(self, console: Console) -> None:
        self.console = console
        self.context = console.app.context

    # -- by password --------------------------------------------------------------------------------------------------

    def show_sign_in(self, request: Request) -> Response:
        """Show the form; whoever is signed in already goes on."""
        to = _destination(request.query_params.get("next"))
        if self.console.viewer_of(request) is not None:
            return RedirectResponse(to, 303)
        return self._sign_in_page(request, to)

    def sign_in(self, request: Request, form: Form) -> Response:
        """Sign in by user and password. The session is a new one, whatever token the browser came with."""
        to, user_id = _destination(form.get("next")), form.get("user", "").strip()
        try:
            token = sign_in(self.context, self.console.passwords, user_id, form.get("password", ""), _address(request))
        except TooManyAttemptsError as why:
            log.warning("sign-in refused", why="too many attempts")
            response = self._sign_in_page(request, to, user_id, str(why), 429)
            response.headers["retry-after"] = str(why.wait_s)
            return response
        except SignInRefusedError as why:
            log.info("sign-in refused", why="user or password")
            return self._sign_in_page(request, to, user_id, str(why), 403)
        return self._begin(request, token, to)

    def _sign_in_page(
        self, request: Request, to: str, user_id: str = "", problem: str | None = None, status: int = 200
    ) -> Response:
        return self.console.page(
            request, "sign_in.html", viewer=None, status=status, to=to, user_id=user_id, problem=problem
        )

    def _begin(self, request: Request, token: str, to: str) -> Response:
        """Give the browser the token of a new session, and end the one that it had."""
        before = self.console.origin.token_of(request)
        if before:
            sign_out(self.context, before)
        response = RedirectResponse(to, 303)
        self.console.origin.keep_token(response, token)
        return response

    def sign_out(self, request: Request, form: Form) -> Response:
        """End the session. Without one there is nothing to end."""
        viewer = self.console.viewer_of(request)
        if viewer is not None:
            self.console.require_form(request, form)
            sign_out(self.context, viewer.token)
        response = RedirectResponse(f"{SIGN_IN}?{urlencode({'next': HOME})}", 303)
        self.console.origin.forget_token(response)
        return response

    # -- by a link ----------------------------------------------------------------------------------------------------

    def show_link(self, request: Request) -> Response:
        """Show whom a link signs in. Looking does not use it up: mail programs and browsers look at links too."""
        user = whom_link_signs_in(self.context, request.path_params["token"])
        if user is None:
            return self.console.failure(request, 404, say("link.used"))
        return self.console.page(request, "link.html", viewer=None, user=user)

    def use_link(self, request: Request, _form: Form) -> Response:
        """Sign in by a link, which is used up."""
        return self._begin(request, sign_in_by_link(self.context, request.path_params["token"]), HOME)

    # -- the password -------------------------------------------------------------------------------------------------

    def show_password(self, request: Request) -> Response:
        """Show the form by which the password is changed."""
        viewer = self.console.viewer_of(request)
        if viewer is None:
            return RedirectResponse(f"{SIGN_IN}?{urlencode({'next': PASSWORD})}", 303)
        return self._password_page(request, viewer)

    def change_password(self, request: Request, form: Form) -> Response:
        """Change the password, which ends every session; this browser gets a new one."""
        viewer = self.console.require_form(request, form)
        if form.get("new") != form.get("again"):
            return self._password_page(request, viewer, say("password.differ"), 400)
        try:
            token = change_password(
                self.context,
                self.console.passwords,
                viewer,
                old=form.get("old", ""),
                new=form.get("new", ""),
                address=_address(request),
            )
        except TooManyAttemptsError as why:
            return self._password_page(request, viewer, str(why), 429)
        except SignInRefusedError:
            return self._password_page(request, viewer, say("password.wrong"), 403)
        except PasswordError as why:
            return self._password_page(request, viewer, str(why), 400)
        return self._begin(request, token, f"{PASSWORD}?changed")

    def _password_page(
        self, request: Request, viewer: SignedIn, problem: str | None = None, status: int = 200
    ) -> Response:
        changed = "changed" in request.query_params
        return self.console.page(
            request, "password.html", viewer=viewer, status=status, problem=problem, changed=changed
        )


def _destination(path: str | None) -> str:
    """Return where to go on after signing in: within this console, whatever the address says."""
    return path if path and is_local_path(path) else HOME


def _address(request: Request) -> str:
    """Return the address that a request comes from: the server has put the client's there if it trusts the proxy."""
    return request.client.host if request.client else "unknown"
