"""Email over SMTP: the server's address, making and keeping connections, and which of them is used next."""

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

from models.sends.carrier import Email, OutboundMessage, Outcome, Receipt
from worker.carriers.smtp_connection import SmtpConnection, SmtpTlsConnection
from worker.carriers.smtp_envelope import UnwritableError, write_envelope
from worker.carriers.smtp_transaction import SmtpTransaction

log = structlog.get_logger(__name__)

KEPT_MAX = 64
"""Idle connections that are kept; more are closed after use."""
IDLE_MAX_S = 60.0
"""Servers may close a connection after five minutes without a command (RFC 5321 4.5.3.2.7), and many are faster."""
GOODBYE_S = 1.0
"""How long a server may take to answer QUIT, in seconds."""
STEPS = 3
"""Timeouts that a whole delivery may take up to the final dot; waiting for its reply is one more.

A job's lease is at least four timeouts, so a delivery ends before its lease does.
"""

StartTls = Literal["require", "if-offered", "never"]
_START_TLS: dict[str, StartTls] = {"require": "require", "if-offered": "if-offered", "never": "never"}
_PORTS = {"smtp": 25, "smtps": 465}


class SmtpCarrier:
    """Hands emails to one mail server. Safe for threads: each transaction has a connection of its own."""

    is_idempotent = False

    def __init__(
        self, url: str, timeout_s: float, *, concurrency: int = 1, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        """Prepare to send through `url`; nothing is connected yet.

        `timeout_s` is for each step of a transaction. `concurrency` is how many transactions there may be at the same
        time for jobs that arrived together. `ssl_context` replaces the default one, which verifies certificates.

        Raises
        ------
        ValueError
            If the address cannot be used, with a sentence that never repeats the user or the password.

        """
        self.concurrency = concurrency
        self._server = _parse_url(url)
        self._timeout_s = timeout_s
        self._context = ssl_context or ssl.create_default_context()
        self._lock = threading.Lock()
        self._idle: list[SmtpConnection] = []
        self._closed = False

    def deliver(self, message: OutboundMessage, before_handover: Callable[[], None]) -> Receipt:
        """Hand one email over; never raises for what the server or the network does.

        A kept connection that the server has closed meanwhile is replaced by a new one, once.

        Raises
        ------
        TypeError
            If `message` is not an `Email`.

        """
        if not isinstance(message, Email):
            msg = f"A mail carrier takes no {type(message).__name__}."
            raise TypeError(msg)
        deadline = time.monotonic() + STEPS * self._timeout_s
        kept = self._take(deadline)
        receipt = self._transact(kept, message, before_handover) if kept else None
        if receipt is not None:
            return receipt
        try:
            fresh = self._connect(deadline)
        except OSError as error:
            return self._unreachable(error)
        return self._transact(fresh, message, before_handover) or Receipt(
            Outcome.NOT_NOW, "The mail server closed the connection before anything was sent."
        )

    def find_fault(self) -> str | None:
        """Connect, greet, encrypt, log in, and leave; nothing is sent. Returns a sentence if that is not possible."""
        try:
            connection = self._connect(time.monotonic() + STEPS * self._timeout_s)
        except OSError as error:
            return self._unreachable(error).detail
        _quit(connection)
        return None

    def close(self) -> None:
        """Close the kept connections. Deliveries that still run close theirs when they end."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            _quit(connection)

    def _transact(
        self, connection: SmtpConnection, email: Email, before_handover: Callable[[], None]
    ) -> Receipt | None:
        """Run one transaction on `connection`; None if that was dead from the start."""
        try:
            envelope = write_envelope(email, utf8=connection.has_extn("smtputf8"))
        except UnwritableError as error:
            self._keep(connection)
            return Receipt(Outcome.NEVER, str(error))
        if not envelope.recipients:
            self._keep(connection)
            detail = "The mail server can take none of the recipients' addresses."
            return Receipt(Outcome.NEVER, detail, refused=envelope.refused, recipients_refused=True)
        receipt = SmtpTransaction(connection, envelope, before_handover).run()
        self._keep(connection)
        return receipt

    def _take(self, deadline: float) -> SmtpConnection | None:
        """Take the connection that was used last, and close those that were idle for too long."""
        oldest = time.monotonic() - IDLE_MAX_S
        with self._lock:
            stale = [connection for connection in self._idle if connection.used_at < oldest]
            self._idle = [connection for connection in self._idle if connection.used_at >= oldest]
            connection = self._idle.pop() if self._idle else None
        for old in stale:  # without QUIT: the server, or a firewall on the way, has probably dropped them
            old.close()
        if connection is not None:
            connection.deadline = deadline
        return connection

    def _keep(self, connection: SmtpConnection) -> None:
        """Keep `connection` for the next transaction, if it is open and there is room."""
        if connection.sock is None:
            return
        connection.used_at = time.monotonic()
        with self._lock:
            room = not self._closed and len(self._idle) < KEPT_MAX
            if room:
                self._idle.append(connection)
        if not room:
            _quit(connection)

    def _connect(self, deadline: float) -> SmtpConnection:
        """Connect, greet, and log in.

        Raises
        ------
        OSError
            Whatever went wrong; the errors of smtplib and ssl are of this kind.

        """
        connection = self._dial(deadline)
        try:
            connection.ehlo_or_helo_if_needed()
            self._encrypt(connection)
            if self._server.user is not None:
                connection.login(self._server.user, self._server.password)
        except BaseException:
            connection.close()
            raise
        return connection

    def _dial(self, deadline: float) -> SmtpConnection:
        server, name, step_s = self._server, _own_name(), self._timeout_s
        if server.tls:
            connection: SmtpConnection = SmtpTlsConnection(
                server.host, server.port, name, timeout=step_s, context=self._context
            )
        else:
            connection = SmtpConnection(server.host, server.port, name, timeout=step_s)
        connection.step_s, connection.deadline = step_s, deadline
        if not name and connection.sock is not None:
            connection.local_hostname = _address_literal(connection.sock)
        return connection

    def _encrypt(self, connection: SmtpConnection) -> None:
        wanted = self._server.starttls
        if wanted == "require" or (wanted == "if-offered" and connection.has_extn("starttls")):
            connection.starttls(context=self._context)
            connection.ehlo_or_helo_if_needed()

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


def _parse_url(url: str) -> _Server:
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
        # Whoever can remove the offer from the greeting can also read the password. Only starttls=never accepts that.
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


def _quit(connection: SmtpConnection) -> None:
    connection.deadline, connection.step_s = float("inf"), GOODBYE_S
    with contextlib.suppress(OSError):
        connection.quit()
    connection.close()


def _why(error: OSError) -> str:  # noqa: PLR0911  one sentence for each kind
    """Return what went wrong, without the server's words, which might repeat the user's name."""
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
