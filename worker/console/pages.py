"""What all pages have in common: who looks, how they ask, how what they see is made, and how a failure is told."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import structlog
from kombu.exceptions import OperationalError as BrokerError
from redis import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse

from models.database.engine import utc_now
from models.errors import Reason, Refused
from models.messages.answer import refused_answer
from models.messages.base import Json
from models.users.passwords import Passwords
from models.users.sessions import SignedIn
from tasks.signing_in import TooManyAttemptsError, who_is_signed_in
from worker.app import PostageApp
from worker.console import jobs
from worker.console.csv_file import csv_lines
from worker.console.forms import Form
from worker.console.rendering import make_environment
from worker.console.screen import Asked, Screen
from worker.console.security import Origin, wants_json
from worker.console.sentences import has_sentence, say
from worker.preflight import DATABASE_ERRORS

SIGN_IN = "/sign-in"
STATUS_OF = {
    Reason.NOT_PERMITTED: 403,
    Reason.UNKNOWN_USER: 404,
    Reason.NOT_FOUND: 404,
    Reason.INVALID_JOB: 400,
    Reason.TOO_LARGE: 503,
}
"""The HTTP status of a refused answer; any other reason is a conflict with how things stand (409)."""
AWAY = (*DATABASE_ERRORS, BrokerError, RedisError)
"""What is raised while the database or the broker is away."""

log = structlog.get_logger(__name__)


class Console:
    """What the pages have in common: who looks, how they ask, and how what they see is made."""

    def __init__(self, app: PostageApp, passwords: Passwords, screens: Sequence[Screen]) -> None:
        self.app = app
        self.passwords = passwords
        self.screens = screens
        self.origin = Origin(app.settings)
        self.templates = make_environment()

    def viewer_of(self, request: Request) -> SignedIn | None:
        """Return who is signed in, or None."""
        token = self.origin.token_of(request)
        return who_is_signed_in(self.app.context, token) if token else None

    def page(
        self, request: Request, template: str, *, viewer: SignedIn | None, status: int = 200, **values: object
    ) -> Response:
        """Return a page made by a template."""
        values = {"asked": None, "answer": None} | values
        text = self.templates.get_template(template).render(
            viewer=viewer, screens=self._navigation(viewer), here=request.url.path, **values
        )
        return HTMLResponse(text, status)

    def _navigation(self, viewer: SignedIn | None) -> list[Screen]:
        """Return the screens that a viewer may see and that have a place of their own."""
        if viewer is None:
            return []
        return [screen for screen in self.screens if screen.in_navigation and viewer.holds(screen.rights)]

    def failure(
        self, request: Request, status: int, detail: str, reason: str = "", headers: Mapping[str, str] | None = None
    ) -> Response:
        """Return a page, or JSON, that says why something was not done, and what to do."""
        response: Response
        title = say(f"error.{status}.title" if has_sentence(f"error.{status}.title") else "error.title")
        if _asks_for_json(request):
            response = JSONResponse(refused_answer(reason or title, detail), status)
        else:
            viewer = self._viewer_if_known(request)
            response = self.page(request, "error.html", viewer=viewer, status=status, title=title, detail=detail)
        response.headers.update(headers or {})
        return response

    def _viewer_if_known(self, request: Request) -> SignedIn | None:
        try:
            return self.viewer_of(request)
        except AWAY:
            return None

    def asked(self, viewer: SignedIn, given: Mapping[str, str]) -> Asked:
        """Return what a viewer asks."""
        user_id = viewer.user.id
        return Asked(
            viewer=viewer,
            given=given,
            today=utc_now().date(),
            ask=self._ask,
            read=self.app.context.database.read,
            enqueue=lambda task, key, message: jobs.enqueue(self.app, user_id, task, key, message),
            answer_of=lambda key: jobs.answer_of(self.app, user_id, key),
        )

    def _ask(self, task: str, message: Json) -> Json:
        """Return the answer of a task's use case, run here and now, as a worker would give it."""
        answer: Any = self.app.tasks[task](message)
        fields: Json = answer.fields
        return fields

    # -- screens ------------------------------------------------------------------------------------------------------

    def show(self, screen: Screen, kind: str, request: Request) -> Response:
        """Answer a GET of a screen: as a page, as JSON, or as CSV."""
        viewer = self.viewer_of(request)
        if viewer is None:
            return self._ask_to_sign_in(request)
        asked = self.asked(viewer, {**request.query_params, **request.path_params})
        if not viewer.holds(screen.rights):
            raise not_permitted(viewer, screen)
        answer = screen.read(asked)
        is_refused = screen.is_refused(answer)
        if kind == "json" or (kind == "html" and wants_json(request.headers)):
            return JSONResponse(answer, status_of(answer) if is_refused else 200)
        if is_refused:
            return self.failure(request, status_of(answer), answer["detail"])
        if kind == "csv":
            return _csv(screen, asked, answer)
        details = screen.details(asked, answer)
        template = f"{screen.name}.html"
        return self.page(request, template, viewer=viewer, screen=screen, asked=asked, answer=answer, **details)

    def change(self, screen: Screen, request: Request, form: Form) -> Response:
        """Answer a POST to a screen: do what the form asks for, and go on."""
        viewer = self.require_form(request, form)
        if not viewer.holds(screen.rights):
            raise not_permitted(viewer, screen)
        assert screen.change is not None  # noqa: S101  only those have such a route
        return RedirectResponse(screen.change(self.asked(viewer, request.path_params), form), 303)

    def require_form(self, request: Request, form: Form) -> SignedIn:
        """Return who has sent a form, which must come from a page of their own session.

        Raises
        ------
        HTTPException
            If nobody is signed in, or the form is of another session.

        """
        viewer = self.viewer_of(request)
        if viewer is None:
            raise HTTPException(401, say("error.signed_out"))
        given = form.get("form_token", "").encode("utf-8", "replace")
        if not secrets.compare_digest(given, viewer.form_token.encode()):
            raise HTTPException(403, say("error.form_too_old"))
        return viewer

    def _ask_to_sign_in(self, request: Request) -> Response:
        if _asks_for_json(request):
            return JSONResponse(refused_answer("not_permitted", say("error.signed_out")), 401)
        if (
            "hx-request" in request.headers
        ):  # a page that looks again keeps what it shows; one to sign in would replace it
            return self.failure(request, 401, say("error.signed_out"))
        to = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"{SIGN_IN}?{urlencode({'next': to})}", 303)

    # -- errors -------------------------------------------------------------------------------------------------------

    def http_error(self, request: Request, error: Exception) -> Response:
        """Answer what has no page, or may not be done."""
        assert isinstance(error, HTTPException)  # noqa: S101  Starlette's
        known = error.detail if error.detail.endswith(".") else _sentence_of(error.status_code)
        return self.failure(request, error.status_code, known, headers=error.headers)

    def refused(self, request: Request, error: Exception) -> Response:
        """Answer what was refused."""
        assert isinstance(error, Refused)  # noqa: S101  Starlette's
        return self.failure(request, STATUS_OF.get(error.reason, 409), error.detail, error.reason)

    def not_signed_in(self, request: Request, error: Exception) -> Response:
        """Answer somebody who could not be signed in elsewhere than by the form."""
        if isinstance(error, TooManyAttemptsError):
            return self.failure(request, 429, str(error), headers={"retry-after": str(error.wait_s)})
        return self.failure(request, 403, str(error))

    def away(self, request: Request, error: Exception) -> Response:
        """Answer while the database or the broker is away."""
        log.warning("database or broker away", fault=type(error).__name__)
        return self.failure(request, 503, say("error.503"), headers={"retry-after": "10"})

    def fault(self, request: Request, _error: Exception) -> Response:
        """Answer after a bug. The server logs it."""
        return self.failure(request, 500, say("error.500"))


def _sentence_of(status: int) -> str:
    return say(f"error.{status}" if has_sentence(f"error.{status}") else "error.400")


def not_permitted(viewer: SignedIn, screen: Screen) -> Refused:
    """Return the refusal of a screen that needs rights which a viewer's role lacks."""
    rights = " and ".join(screen.rights)
    return Refused(Reason.NOT_PERMITTED, say("error.lacks_rights", role=viewer.user.role, rights=rights))


def status_of(answer: Json) -> int:
    """Return the HTTP status of an answer."""
    return 200 if answer["status"] != "refused" else STATUS_OF.get(answer["reason"], 409)


def _asks_for_json(request: Request) -> bool:
    return request.url.path.endswith(".json") or wants_json(request.headers)


def _csv(screen: Screen, asked: Asked, answer: Json) -> Response:
    if screen.rows(answer) is None:
        raise HTTPException(404)
    name = f"{screen.name}-{asked.today}.csv"
    return StreamingResponse(
        csv_lines(screen, asked, answer),
        media_type="text/csv; charset=utf-8",
        headers={"content-disposition": f'attachment; filename="{name}"'},
    )
