"""Email over SMTP on kept connections: the address, the connecting, and which connection talks next."""

import contextlib
import functools
import ipaddress
import smtplib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import structlog

from models.carriers import Email, Outcome, Parcel, Receipt
from worker.carriers.conversation import Conversation, Line, TlsLine, UnwritableError, write

log = structlog.get_logger(__name__)

KEPT_MAX = 64
"""Idle connections that are kept; more are closed after use."""
IDLE_MAX_S = 60.0
"""Servers may close a connection after five minutes without a command (RFC 5321 section 4.5.3.2.7); many are faster."""
GOODBYE_S = 1.0
"""How long a server may take to answer QUIT, in seconds."""
STEPS = 3
"""Timeouts a whole delivery may take up to the final dot; the wait for its answer is one more.

A job's lease is at least four timeouts, so a delivery is over before its lease is.
"""

StartTls = Literal["require", "if-offered", "never"]
_START_TLS: dict[str, StartTls] = {"require": "require", "if-offered": "if-offered", "never": "never"}
_PORTS = {"smtp": 25, "smtps": 465}


class SmtpCarrier:
    """Hands emails to one mail server. Safe for threads: each conversation has a connection of its own."""

    honours_job_id = False

    def __init__(
        self, url: str, timeout_s: float, *, at_once: int = 1, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        """Make ready to send through `url`; nothing is connected yet.

        `timeout_s` is for each step of a conversation. `at_once` is how many conversations there should be at the same
        time for jobs that came together. `ssl_context` replaces the default one, which verifies certificates.

        Raises
        ------
        ValueError
            With a sentence, if the address cannot be used. It never repeats the user or the password.

        """
        self.at_once = at_once
        self._server = _read(url)
        self._timeout_s = timeout_s
        self._context = ssl_context or ssl.create_default_context()
        self._lock = threading.Lock()
        self._idle: list[Line] = []
        self._closed = False

    def deliver(self, parcel: Parcel, about_to_hand_over: Callable[[], None]) -> Receipt:
        """Hand one email over; never raises for what the server or the network does.

        A kept connection that the server has left meanwhile is replaced by a new one, once.

        Raises
        ------
        TypeError
            If `parcel` is not an `Email`.

        """
        if not isinstance(parcel, Email):
            msg = f"A mail carrier takes no {type(parcel).__name__}."
            raise TypeError(msg)
        deadline = time.monotonic() + STEPS * self._timeout_s
        kept = self._take(deadline)
        receipt = self._converse(kept, parcel, about_to_hand_over) if kept else None
        if receipt is not None:
            return receipt
        try:
            fresh = self._connect(deadline)
        except OSError as error:
            return self._unreachable(error)
        return self._converse(fresh, parcel, about_to_hand_over) or Receipt(
            Outcome.NOT_NOW, "The mail server closed the connection before anything was sent."
        )

    def close(self) -> None:
        """Say goodbye on the kept connections. Deliveries that still run close theirs when they end."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for line in idle:
            _say_goodbye(line)

    def _converse(self, line: Line, email: Email, about_to_hand_over: Callable[[], None]) -> Receipt | None:
        """Hold one conversation over `line`; None if the line was dead from the start."""
        try:
            letter = write(email, utf8=line.has_extn("smtputf8"))
        except UnwritableError as error:
            self._keep(line)
            return Receipt(Outcome.NEVER, str(error))
        if not letter.recipients:
            self._keep(line)
            detail = "The mail server can take none of the recipients' addresses."
            return Receipt(Outcome.NEVER, detail, refused=letter.refused, recipients_refused=True)
        receipt = Conversation(line, letter, about_to_hand_over).hold()
        self._keep(line)
        return receipt

    def _take(self, deadline: float) -> Line | None:
        """Take the connection that was used last; close those that have been idle for too long."""
        oldest = time.monotonic() - IDLE_MAX_S
        with self._lock:
            stale = [line for line in self._idle if line.used_at < oldest]
            self._idle = [line for line in self._idle if line.used_at >= oldest]
            line = self._idle.pop() if self._idle else None
        for old in stale:  # without QUIT: the server, or a firewall on the way, has likely forgotten them
            old.close()
        if line is not None:
            line.deadline = deadline
        return line

    def _keep(self, line: Line) -> None:
        """Keep `line` for the next conversation, if it is open and there is room."""
        if line.sock is None:
            return
        line.used_at = time.monotonic()
        with self._lock:
            room = not self._closed and len(self._idle) < KEPT_MAX
            if room:
                self._idle.append(line)
        if not room:
            _say_goodbye(line)

    def _connect(self, deadline: float) -> Line:
        """Connect, greet, and log in.

        Raises
        ------
        OSError
            Whatever went wrong; the errors of smtplib and ssl are of this kind.

        """
        line = self._dial(deadline)
        try:
            line.ehlo_or_helo_if_needed()
            self._encrypt(line)
            if self._server.user is not None:
                line.login(self._server.user, self._server.password)
        except BaseException:
            line.close()
            raise
        return line

    def _dial(self, deadline: float) -> Line:
        server, name, step_s = self._server, _own_name(), self._timeout_s
        if server.tls:
            line: Line = TlsLine(server.host, server.port, name, timeout=step_s, context=self._context)
        else:
            line = Line(server.host, server.port, name, timeout=step_s)
        line.step_s, line.deadline = step_s, deadline
        if not name and line.sock is not None:
            line.local_hostname = _address_literal(line.sock)
        return line

    def _encrypt(self, line: Line) -> None:
        wanted = self._server.starttls
        if wanted == "require" or (wanted == "if-offered" and line.has_extn("starttls")):
            line.starttls(context=self._context)
            line.ehlo_or_helo_if_needed()

    def _unreachable(self, error: OSError) -> Receipt:
        if isinstance(error, smtplib.SMTPAuthenticationError):
            log.error("mail server refuses the login", host=self._server.host, code=error.smtp_code)
            return Receipt(Outcome.NOT_NOW, f"The mail server refused Postage's login ({error.smtp_code}).")
        why = _why(error)
        log.warning("mail server not reachable", host=self._server.host, port=self._server.port, why=why)
        return Receipt(Outcome.NOT_NOW, f"The mail server could not be reached: {why}.")


@dataclass(frozen=True, slots=True)
class _Server:
    """A mail server's address, read from a URL."""

    host: str
    port: int
    tls: bool
    """Whether it is encrypted from the first byte."""
    starttls: StartTls
    user: str | None
    password: str


def _read(url: str) -> _Server:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        host.encode("idna")
    except ValueError:  # its own words might repeat a part of the password
        msg = "The address of the mail server cannot be read; it is written smtp://[user:pass@]host:port."
        raise ValueError(msg) from None
    _require(parts.scheme in _PORTS, "must begin with smtp:// or smtps://")
    _require(host, "names no host")
    _require(parts.path in ("", "/") and not parts.fragment, "goes on after host, port and options")
    user = None if parts.username is None else unquote(parts.username)
    password = unquote(parts.password or "")
    _require(f"{user}{password}".isascii(), "has a user or password beyond ASCII, which SMTP logins here cannot carry")
    tls = parts.scheme == "smtps"
    starttls = _starttls(options, tls=tls)
    if user is not None and starttls == "if-offered" and not _is_loopback(host):
        # Who can take the offer out of the greeting can read the password too. Only starttls=never says that is fine.
        starttls = "require"
    return _Server(host, port or _PORTS[parts.scheme], tls, starttls, user, password)


def _starttls(options: dict[str, str], *, tls: bool) -> StartTls:
    _require(not set(options) - {"starttls"}, "has an unknown option; the only one is starttls")
    _require(not (tls and options), "has the option starttls, but smtps:// is encrypted from the first byte")
    wanted = options.get("starttls", "if-offered")
    _require(wanted in _START_TLS, "has an unknown value for starttls; it may be require, if-offered or never")
    return "never" if tls else _START_TLS[wanted]


def _require(condition: object, otherwise: str) -> None:
    if not condition:
        msg = f"The address of the mail server {otherwise}."
        raise ValueError(msg)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@functools.cache
def _own_name() -> str:
    """Return this machine's full name for the greeting, found once because it may ask the DNS; empty if it has none."""
    name = socket.getfqdn()
    return name if "." in name and name.isascii() else ""


def _address_literal(sock: socket.socket) -> str:
    """Return this end's address, the greeting of a machine without a name (RFC 5321 section 4.1.4)."""
    address = sock.getsockname()[0]
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


def _say_goodbye(line: Line) -> None:
    line.deadline, line.step_s = float("inf"), GOODBYE_S
    with contextlib.suppress(OSError):
        line.quit()
    line.close()


def _why(error: OSError) -> str:  # noqa: PLR0911  one sentence for each kind
    """Say what went wrong without words of the server, which might repeat the user's name."""
    match error:
        case smtplib.SMTPNotSupportedError():
            return "it offers no encryption, or no login, of the kind that is needed"
        case smtplib.SMTPResponseException():
            return f"it answered {error.smtp_code}"
        case smtplib.SMTPServerDisconnected() if isinstance(error.__context__, TimeoutError):
            return "it did not answer in time"
        case smtplib.SMTPServerDisconnected():
            return "it closed the connection"
        case smtplib.SMTPException():
            return "it knows no way to log in that is known here"
        case TimeoutError():
            return "it did not answer in time"
        case ssl.SSLCertVerificationError():
            return f"its certificate is not valid ({error.verify_message})"
        case ssl.SSLError():
            return f"no secure connection could be made ({error.reason})"
        case socket.gaierror():
            return "its name is not known"
        case _:
            return error.strerror or "the connection failed"
