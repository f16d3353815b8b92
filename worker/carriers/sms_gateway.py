"""Text messages over HTTP: one JSON POST a message to a gateway, on kept connections."""

import base64
import json
import ssl
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import structlog
import urllib3

from models.sends.carrier import OutboundMessage, Outcome, Receipt, Sms
from models.text import sanitize

log = structlog.get_logger(__name__)

ANSWER_MAX = 64 * 1024
"""Bytes of an answer that are read: more than any gateway needs for an id."""
KEPT_MAX = 64
"""Idle connections that are kept."""
_LOGIN_REFUSED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.PROXY_AUTHENTICATION_REQUIRED}
_LATER = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}


class SmsGateway:
    """Hands text messages to an HTTP gateway that sends one message, however often, for each `Idempotency-Key`."""

    is_idempotent = True

    def __init__(
        self, url: str, timeout_s: float, *, concurrency: int = 1, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        """Prepare to post to `url` (`http(s)://[user:pass@]host[:port]/…`); nothing is connected yet.

        `timeout_s` is for one whole request. `concurrency` is how many requests there may be at the same time for jobs
        that arrived together. `ssl_context` replaces the default one, which verifies certificates.

        Raises
        ------
        ValueError
            If the address cannot be used, with a sentence that never repeats the user or the password.

        """
        self.concurrency = concurrency
        self._url, self._authorization = _parse_url(url)
        self._pool = urllib3.PoolManager(
            maxsize=KEPT_MAX,
            retries=False,
            timeout=urllib3.Timeout(total=timeout_s),
            ssl_context=ssl_context or ssl.create_default_context(),
        )

    def deliver(self, message: OutboundMessage, before_handover: Callable[[], None]) -> Receipt:  # noqa: ARG002
        """Post one text message; never raises for what the gateway or the network does.

        The gateway is idempotent, so nothing has to be noted before it can accept the message.

        Raises
        ------
        TypeError
            If `message` is not an `Sms`.

        """
        if not isinstance(message, Sms):
            msg = f"An SMS gateway takes no {type(message).__name__}."
            raise TypeError(msg)
        request = _Request(message)
        try:
            answer = self._pool.request(
                "POST",
                self._url,
                body=request.body(),
                headers=request.headers | self._authorization,
                preload_content=False,
                redirect=False,
            )
        except urllib3.exceptions.HTTPError as error:
            return _without_answer(error, begun=request.begun)
        try:
            return _receipt(answer)
        finally:
            _give_back(answer)

    def find_fault(self) -> str | None:
        """Ask for the gateway's options (RFC 9110 section 9.3.7), which sends nothing.

        Returns a sentence if it cannot be reached, or refuses the login. Many gateways look at no login for this.
        """
        try:
            answer = self._pool.request("OPTIONS", self._url, headers=self._authorization, redirect=False)
        except urllib3.exceptions.HTTPError as error:
            return _without_answer(error, begun=False).detail
        if answer.status in _LOGIN_REFUSED:
            return f"The SMS gateway refuses Postage's login ({answer.status})."
        return None

    def close(self) -> None:
        """Close the kept connections."""
        self._pool.clear()


def idempotency_key(sms: Sms) -> str:
    """Return the key of a message: its job id, `@`, and the number of its organization. No job id contains an `@`."""
    return sms.job_id if sms.org_id is None else f"{sms.job_id}@{sms.org_id}"


class _Request:
    """One message as JSON, which notes whether any of it was given to the network."""

    def __init__(self, sms: Sms) -> None:
        fields = {"id": sms.job_id, "to": sms.to, "from": sms.sender_id, "text": sms.text, "segments": sms.segments}
        self._content = json.dumps(fields).encode()
        self.begun = False
        self.headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(self._content)),
            "Idempotency-Key": idempotency_key(sms),
        }

    def body(self) -> Iterator[bytes]:
        """Yield the content. urllib3 asks for it once it is connected and has sent the headers.

        After a failure before that, the gateway certainly has no message; after a later one, nobody knows.
        """
        self.begun = True
        yield self._content


def _parse_url(url: str) -> tuple[str, dict[str, str]]:
    """Split `url` into the address without credentials, and the header with them (RFC 7617)."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        urllib3.util.parse_url(url)
    except (ValueError, urllib3.exceptions.HTTPError):
        msg = "The address of the SMS gateway cannot be read; it is written http(s)://[user:pass@]host[:port]/path."
        raise ValueError(msg) from None
    if parts.scheme not in ("http", "https"):
        msg = "The address of the SMS gateway must begin with http:// or https://."
        raise ValueError(msg)
    if not host:
        msg = "The address of the SMS gateway names no host."
        raise ValueError(msg)
    bare = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path or "/", parts.query, ""))
    if parts.username is None:
        return bare, {}
    user, password = unquote(parts.username), unquote(parts.password or "")
    if ":" in user:
        msg = "The user in the address of the SMS gateway must not contain a colon (RFC 7617 section 2)."
        raise ValueError(msg)
    token = base64.b64encode(f"{user}:{password}".encode()).decode()
    return bare, {"Authorization": f"Basic {token}"}


def _without_answer(error: urllib3.exceptions.HTTPError, *, begun: bool) -> Receipt:
    if begun:
        log.warning("sms gateway gave no answer", error=type(error).__name__)
        return Receipt(Outcome.UNSURE, "The SMS gateway did not answer after the message was sent to it.")
    log.warning("sms gateway not reachable", error=type(error).__name__)
    return Receipt(Outcome.NOT_NOW, f"The SMS gateway could not be reached ({_why(error)}).")


def _why(error: urllib3.exceptions.HTTPError) -> str:
    match error:
        case urllib3.exceptions.NameResolutionError():
            return "its name is not known"
        case urllib3.exceptions.NewConnectionError():  # to urllib3 it is a TimeoutError too
            return "the connection was refused or broken"
        case urllib3.exceptions.TimeoutError():
            return "it did not answer in time"
        case urllib3.exceptions.SSLError():
            return "no secure connection could be made"
        case _:
            return "the connection was refused or broken"


def _receipt(answer: urllib3.BaseHTTPResponse) -> Receipt:
    status = answer.status
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return Receipt(Outcome.ACCEPTED, reference=_reference(answer))
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        log.error("sms gateway redirects", status=status)
        return Receipt(
            Outcome.NOT_NOW,
            f"The SMS gateway redirects to another address (HTTP {status}), which is not followed; correct its URL.",
        )
    if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in _LATER:
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            log.error("sms gateway refuses the login", status=status)
        return Receipt(Outcome.NEVER, f"The SMS gateway refused the message (HTTP {status}).")
    return Receipt(Outcome.NOT_NOW, f"The SMS gateway cannot take the message now (HTTP {status}).")


def _reference(answer: urllib3.BaseHTTPResponse) -> str | None:
    """Return the gateway's id for the message, or None if it gives none. The message is accepted all the same."""
    try:
        content: Any = json.loads(answer.read(ANSWER_MAX, decode_content=False))
    except (ValueError, RecursionError, urllib3.exceptions.HTTPError):
        return None
    reference = content.get("id") if isinstance(content, dict) else None
    if isinstance(reference, int) and not isinstance(reference, bool):
        reference = str(reference)
    if not isinstance(reference, str):
        return None
    return sanitize(reference) or None


def _give_back(answer: urllib3.BaseHTTPResponse) -> None:
    """Keep the connection if its answer was short; close it if more is to come than anybody should read."""
    try:
        answer.read(ANSWER_MAX, decode_content=False)
        rest = answer.read(1, decode_content=False)
    except urllib3.exceptions.HTTPError:
        rest = b"?"
    if rest:
        answer.close()
    answer.release_conn()
