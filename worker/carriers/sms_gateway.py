"""Text messages over HTTP: one JSON POST a message to a gateway, on kept connections.

What the answer means, where no rule (answer_rules.py) says otherwise:

| answer | outcome | why |
|---|---|---|
| 2xx | accepted | Or unsure, if the gateway has a rule for what was taken and the answer does not satisfy it. |
| 3xx | our fault | The address is wrong. It is never followed: the text would go to whoever the answer names. |
| 400, 410, 413, 415, 422 | never | The gateway refuses this message. |
| 401, 402, 403, 404, 405, 407 | our fault | Login, account, its credits, address, or the proxy's login. |
| 408, 409, 423, 425 | not now | It has not got it, or is busy with this very message. |
| 429 | not now, failing | We send too much; with `Retry-After` or without. |
| other 4xx | not now | It was not taken, and nothing says that this message is why. |
| 503 | not now, failing | It takes nothing (RFC 9110 section 15.6.4); with `Retry-After` or without. |
| 500, 502, 504, other 5xx | unsure, failing | The request had arrived: it may have been taken before this went wrong. |
| none, or one that is not HTTP, after the request had begun | unsure, failing | The gateway may have all of it. |
| none, and nothing of the request was written | not now, failing | Nobody has it. |

A gateway that keeps keys (`window`, 24 hours if the URL does not say) sends a text once, however often it is asked
meanwhile. One with `window=0s` keeps none: the handover is noted before the first byte of a request.
"""

import email.utils
import json
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlencode

import structlog
from pydantic_core import from_json
from yarl import URL

from models.sends.carrier import Handover, OutboundMessage, Outcome, Receipt, Sms
from models.text import sanitize
from worker.carrier_urls import CarrierUrl, CarrierUrlError, parse_carrier_url
from worker.carriers.answer_rules import OPTIONS as RULE_OPTIONS
from worker.carriers.answer_rules import AnswerRules, Said
from worker.carriers.http_client import HttpAnswer, HttpClient, UnansweredError, basic_login

log = structlog.get_logger(__name__)

KEY_WINDOW: Final = timedelta(hours=24)
"""How long a gateway knows a key, if its URL does not say."""
RETRY_AFTER_MAX: Final = timedelta(days=1)
"""The longest wait that a gateway may ask for."""
PASSED_ON: Final = "query."
"""What names a parameter of the gateway's own that is called like an option: `query.id=7` becomes `id=7`."""

HEADERS: Final = {
    "User-Agent": "postage",
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "Content-Type": "application/json",
}
"""What every request says. Answers are too short to be worth deflating."""

_LOGIN_REFUSED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.PROXY_AUTHENTICATION_REQUIRED}
_OUR_FAULT = _LOGIN_REFUSED | {HTTPStatus.PAYMENT_REQUIRED, HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED}
_NEVER = {
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.GONE,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
}
_TAKES_NOTHING = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
_LOGGED_AS_ERRORS = "sms gateway is set up wrong"


class SmsGateway:
    """Hands text messages to an HTTP gateway."""

    def __init__(self, address: CarrierUrl, *, timeout_s: float, ssl_context: ssl.SSLContext | None = None) -> None:
        """Prepare to post to an address; nothing is connected yet.

        `timeout_s` is for one whole request. `ssl_context` replaces the default one, which verifies certificates.

        Raises
        ------
        CarrierUrlError
            If the address cannot be used, with a sentence that never repeats the user or the password.

        """
        self.capacity = address.connections
        self.key_window = KEY_WINDOW if address.window is None else address.window
        self._name = address.name
        self._rules = AnswerRules(address.options)
        proxy = _proxy(address)
        _require_secrecy(address, proxy)
        self._client = HttpClient(
            _target(address),
            headers={**HEADERS, **_login(address)},
            timeout_s=timeout_s,
            connections=address.connections,
            proxy=URL(address.options["proxy"]) if proxy else None,
            ssl_context=ssl_context,
        )

    async def deliver(self, message: OutboundMessage, handover: Handover) -> Receipt:
        """Post one text message; never raises for what the gateway or the network does.

        Raises
        ------
        TypeError
            If `message` is not an `Sms`.

        """
        if not isinstance(message, Sms):
            msg = f"An SMS gateway takes no {type(message).__name__}."
            raise TypeError(msg)
        key = {"Idempotency-Key": idempotency_key(message)}
        try:
            answer = await self._client.request("POST", key, _as_json(message), None if self.key_window else handover)
        except UnansweredError as failure:
            return self._without_answer(failure)
        return self._receipt(answer)

    async def find_fault(self) -> str | None:
        """Ask for the gateway's options (RFC 9110 section 9.3.7), which sends nothing.

        Returns a sentence if it cannot be reached, or refuses the login. Many gateways look at no login for this.
        """
        try:
            answer = await self._client.request("OPTIONS", {})
        except UnansweredError as failure:
            return f"The SMS gateway could not be reached ({failure.why})."
        if answer.status in _LOGIN_REFUSED:
            return f"The SMS gateway refuses Postage's login ({answer.status})."
        return None

    async def close(self) -> None:
        """Close the kept connections."""
        await self._client.close()

    def _without_answer(self, failure: UnansweredError) -> Receipt:
        if failure.is_ours:
            return Receipt(Outcome.NOT_NOW, "The handover to the SMS gateway could not be noted in time.")
        if failure.has_begun:
            log.warning("sms gateway gave no answer", carrier=self._name, error=failure.why)
            detail = "The SMS gateway did not answer after the message was sent to it."
            return Receipt(Outcome.UNSURE, detail, is_failing=True)
        if failure.proxy_status in _OUR_FAULT:
            log.error(_LOGGED_AS_ERRORS, carrier=self._name, proxy_status=failure.proxy_status)
            return Receipt(Outcome.OUR_FAULT, f"The proxy of the SMS gateway refuses us (HTTP {failure.proxy_status}).")
        log.warning("sms gateway not reachable", carrier=self._name, error=failure.why)
        return Receipt(Outcome.NOT_NOW, f"The SMS gateway could not be reached ({failure.why}).", is_failing=True)

    def _receipt(self, answer: HttpAnswer) -> Receipt:
        content = _decoded(answer.content)
        said = self._rules.first(content, is_success=_is_success(answer.status))
        if said is not None:
            return self._by_rule(said, answer, content)
        if _is_success(answer.status) and not self._is_taken_by_status(content):
            log.warning("sms gateway says neither yes nor no", carrier=self._name, status=answer.status)
            return Receipt(Outcome.UNSURE, f"The SMS gateway said neither yes nor no (HTTP {answer.status}).")
        return self._by_status(answer, content)

    def _is_taken_by_status(self, content: Any) -> bool:  # noqa: ANN401  JSON
        """Whether a 2xx alone says that a message was taken: there is no rule, or those of refusals do not hold."""
        return not self._rules.decide or (not self._rules.needs_taken and content is not None)

    def _by_rule(self, said: Said, answer: HttpAnswer, content: Any) -> Receipt:  # noqa: ANN401  JSON
        words = f"HTTP {answer.status}, by the rule {said}"
        match said:
            case Said.TAKEN | Said.DUPLICATE:
                return Receipt(Outcome.ACCEPTED, reference=self._reference(content))
            case Said.FAULT:
                return self._our_fault(answer, words)
            case Said.LATER:
                detail = f"The SMS gateway cannot take the message now ({words})."
                return Receipt(Outcome.NOT_NOW, detail, retry_after=retry_after(answer.headers))
            case Said.NEVER:
                return Receipt(Outcome.NEVER, f"The SMS gateway refused the message ({words}).")

    def _by_status(self, answer: HttpAnswer, content: Any) -> Receipt:  # noqa: ANN401  JSON
        status = answer.status
        words = f"HTTP {status}"
        if _is_success(status):
            return Receipt(Outcome.ACCEPTED, reference=self._reference(content))
        if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
            return self._our_fault(answer, f"{words}: it redirects to another address, which is not followed")
        if status in _OUR_FAULT:
            return self._our_fault(answer, words)
        if status in _NEVER:
            return Receipt(Outcome.NEVER, f"The SMS gateway refused the message ({words}).")
        is_failing = status in _TAKES_NOTHING
        if is_failing or HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
            detail = f"The SMS gateway cannot take the message now ({words})."
            return Receipt(Outcome.NOT_NOW, detail, is_failing=is_failing, retry_after=retry_after(answer.headers))
        detail = f"The SMS gateway failed after the message was sent to it ({words})."
        return Receipt(Outcome.UNSURE, detail, is_failing=True, retry_after=retry_after(answer.headers))

    def _our_fault(self, answer: HttpAnswer, words: str) -> Receipt:
        log.error(_LOGGED_AS_ERRORS, carrier=self._name, status=answer.status)
        detail = f"The SMS gateway does not take messages from us ({words}); correct its URL or your account there."
        return Receipt(Outcome.OUR_FAULT, detail, retry_after=retry_after(answer.headers))

    def _reference(self, content: Any) -> str | None:  # noqa: ANN401  JSON
        """Return the gateway's id of the message, or None if it gives none. The message is accepted all the same."""
        return sanitize(self._rules.reference(content) or "") or None


def idempotency_key(sms: Sms) -> str:
    """Return the key of a message: its job id, `@`, and the number of its organization. No job id contains an `@`."""
    return sms.job_id if sms.org_id is None else f"{sms.job_id}@{sms.org_id}"


def retry_after(headers: Mapping[str, str]) -> timedelta | None:
    """Return how long a server wants to be left alone (RFC 9110 section 10.2.3), at most `RETRY_AFTER_MAX`.

    A date is read by the server's own clock, if it says what that is.
    """
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return timedelta(seconds=min(int(text[:9]), RETRY_AFTER_MAX.total_seconds()))
    until = _date(text)
    if until is None:
        return None
    now = _date(headers.get("Date", "")) or datetime.now(UTC)
    return min(max(until - now, timedelta(0)), RETRY_AFTER_MAX)


def _date(text: str) -> datetime | None:
    try:
        found = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return found.replace(tzinfo=found.tzinfo or UTC)


def _as_json(sms: Sms) -> bytes:
    fields = {"id": sms.job_id, "to": sms.to, "from": sms.sender_id, "text": sms.text, "segments": sms.segments}
    return json.dumps(fields).encode()


def _decoded(content: bytes | None) -> Any:  # noqa: ANN401  JSON
    """Return what JSON says; None if it is none, or could not be read."""
    try:
        return from_json(content or b"")
    except ValueError:
        return None


def _is_success(status: int) -> bool:
    return HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES


def _require(condition: object, sentence: str) -> None:
    if not condition:
        raise CarrierUrlError(sentence)


def _target(address: CarrierUrl) -> URL:
    """Return the address without credentials and options; other parameters are the gateway's own."""
    _require(address.scheme in ("http", "https"), "The address of the SMS gateway must begin with http:// or https://.")
    ours = {*RULE_OPTIONS, "proxy", "insecure"}
    query = {name.removeprefix(PASSED_ON): value for name, value in address.options.items() if name not in ours}
    host = f"[{address.host}]" if ":" in address.host else address.host
    port = "" if address.port is None else f":{address.port}"
    return URL(f"{address.scheme}://{host}{port}{address.path or '/'}?{urlencode(query)}")


def _login(address: CarrierUrl) -> dict[str, str]:
    """Return the header with user and password (RFC 7617), if there are any."""
    if address.user is None:
        return {}
    _require(
        ":" not in address.user,
        "The user in the address of the SMS gateway must not contain a colon (RFC 7617 section 2).",
    )
    return {"Authorization": basic_login(address.user, address.password)}


def _proxy(address: CarrierUrl) -> CarrierUrl | None:
    """Return the proxy that the address names. None of the environment's is used: it would be used unseen."""
    text = address.options.get("proxy")
    if text is None:
        return None
    try:
        proxy = parse_carrier_url(text)
    except CarrierUrlError:
        proxy = None
    is_usable = proxy is not None and proxy.scheme == "http" and proxy.port is not None
    _require(
        is_usable, "The proxy of the SMS gateway cannot be read; it is written proxy=http://[user:pass@]host:port."
    )
    return proxy


def _require_secrecy(address: CarrierUrl, proxy: CarrierUrl | None) -> None:
    """Require that no password crosses a network in clear, unless the address says that it may."""
    insecure = address.options.get("insecure")
    _require(insecure in (None, "yes"), "The address of the SMS gateway has an insecure=… that is not yes.")
    is_near = address.is_loopback and (proxy is None or proxy.is_loopback)
    is_shown = address.user is not None and address.scheme == "http" and not is_near
    is_shown_to_proxy = proxy is not None and proxy.user is not None and not proxy.is_loopback
    _require(
        insecure or not (is_shown or is_shown_to_proxy),
        "The address of the SMS gateway sends a password over plain HTTP, where everybody on the way can read it: "
        "use https://, or accept that by insecure=yes.",
    )
