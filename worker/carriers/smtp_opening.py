"""How a connection to a mail server is opened: connect, greet, encrypt, log in."""

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

import structlog

from models.sends.carrier import Outcome
from worker.carriers.smtp_connection import STEPS, BrokenError, Fault, SmtpConnection
from worker.carriers.smtp_login import LoginError, log_in
from worker.carriers.smtp_replies import Reply
from worker.carriers.smtp_server import SmtpServer
from worker.carriers.smtp_tokens import SmtpTokens

NAME_S: Final = 2.0
"""How long this machine's own name is looked for, in seconds."""

log = structlog.get_logger(__name__)

Connecting = Callable[[], SmtpConnection]


_Address = tuple[Any, Any, int, str, tuple[Any, ...]]
"""An address as the resolver gives it."""


class NotOpenedError(Exception):
    """No connection could be opened. What it says is for people."""

    def __init__(self, detail: str, outcome: Outcome = Outcome.NOT_NOW, *, is_full: bool = False) -> None:
        super().__init__(detail)
        self.detail = detail
        self.outcome = outcome
        self.is_full = is_full
        """Whether the server takes no further connection now."""


class SmtpOpener:
    """Opens connections to one server."""

    def __init__(self, server: SmtpServer, timeout_s: float, context: ssl.SSLContext) -> None:
        """Prepare to open connections. `timeout_s` is for each step, and all of them may take `STEPS` times as long."""
        self._server = server
        self._timeout_s = timeout_s
        self._context = context
        self._tokens = SmtpTokens(server)
        self._own_name: str | None = server.ehlo
        self._naming = asyncio.Lock()

    async def open(self, make: Connecting) -> SmtpConnection:
        """Open a connection that `make` makes.

        Raises
        ------
        NotOpenedError
            If that is not possible now.

        """
        try:
            async with asyncio.timeout(STEPS * self._timeout_s):
                connection = await self._dial(make)
                try:
                    await self._introduce(connection)
                except BaseException:
                    connection.abort()
                    raise
        except LoginError as error:
            self._fail_to_log_in(error)
        except BrokenError as error:
            self._fail(str(error.fault))
        except OSError as error:  # also a TimeoutError, and the errors of ssl
            self._fail(_why(error))
        return connection

    def _fail(self, why: str) -> NoReturn:
        log.warning("mail server not reachable", host=self._server.host, port=self._server.port, why=why)
        msg = f"The mail server could not be reached: {why}."
        raise NotOpenedError(msg) from None

    def _fail_to_log_in(self, error: LoginError) -> NoReturn:
        log.error("mail server refuses the login", host=self._server.host, code=error.code)
        outcome = Outcome.OUR_FAULT if error.is_ours else Outcome.NOT_NOW
        raise NotOpenedError(error.detail, outcome) from None

    async def _dial(self, make: Connecting) -> SmtpConnection:
        """Connect to the first of the server's addresses that answers. All of them share the time of one step."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._timeout_s
        async with asyncio.timeout_at(end):
            found = await self._resolve()
        for left in range(len(found), 0, -1):
            family, _, protocol, _, address = found[len(found) - left]
            try:
                async with asyncio.timeout((end - loop.time()) / left):
                    return await self._connect(make, str(address[0]), family, protocol)
            except OSError:
                if left == 1:
                    raise
        raise OSError("its name has no address")

    async def _resolve(self) -> Sequence[_Address]:
        loop = asyncio.get_running_loop()
        return await loop.getaddrinfo(self._server.host, self._server.port, type=socket.SOCK_STREAM)

    async def _connect(self, make: Connecting, address: str, family: int, protocol: int) -> SmtpConnection:
        server = self._server
        _, connection = await asyncio.get_running_loop().create_connection(
            make,
            address,
            server.port,
            family=family,
            proto=protocol,
            ssl=self._context if server.tls else None,
            server_hostname=server.host if server.tls else None,
        )
        return connection

    async def _introduce(self, connection: SmtpConnection) -> None:
        greeting = await connection.one(connection.greeting)
        if not greeting.is_positive:
            self._refuse(greeting, is_full=greeting.is_transient)
        name = await self._name(connection)
        await self._greet(connection, name)
        encrypted = self._server.tls
        if self._is_to_be_encrypted(connection):
            await self._encrypt(connection)
            await self._greet(connection, name)
            encrypted = True
        if self._server.user is not None:
            await log_in(connection, self._server, self._tokens, encrypted=encrypted)
        connection.pipelining = "PIPELINING" in connection.extensions
        connection.smtputf8 = "SMTPUTF8" in connection.extensions
        connection.size = "SIZE" in connection.extensions

    async def _greet(self, connection: SmtpConnection, name: str) -> None:
        reply = await connection.say(f"EHLO {name}")
        connection.extensions = _extensions(reply) if reply.is_positive else {}
        if reply.is_permanent:  # a server of before 1995
            reply = await connection.say(f"HELO {name}")
        if not reply.is_positive:
            self._refuse(reply)

    def _refuse(self, reply: Reply, *, is_full: bool = False) -> NoReturn:
        """End the attempt to open a connection. What is refused for good is us: our address, or our name."""
        outcome = Outcome.OUR_FAULT if reply.is_permanent else Outcome.NOT_NOW
        words = reply.quoted(self._server.secrets)
        log.warning("mail server refuses the connection", host=self._server.host, code=reply.code)
        raise NotOpenedError(f"The mail server refused the connection {words}", outcome, is_full=is_full)

    def _is_to_be_encrypted(self, connection: SmtpConnection) -> bool:
        wanted = self._server.starttls
        is_offered = "STARTTLS" in connection.extensions
        if wanted == "require" and not is_offered:
            self._fail("it offers no encryption of the kind that is needed")
        return is_offered and wanted != "never"

    async def _encrypt(self, connection: SmtpConnection) -> None:
        """Encrypt the connection (RFC 3207).

        What arrives after the reply and before the encryption may come from anybody, to be taken for what the server
        says after it: then the connection has its fault already.
        """
        reply = await connection.say("STARTTLS")
        if not reply.is_positive:
            self._fail(f"it answered {reply.codes} when it was to encrypt the connection")
        if connection.fault is not None:
            raise BrokenError(connection.fault)
        loop = asyncio.get_running_loop()
        encrypted = await loop.start_tls(
            connection.transport, connection, self._context, server_hostname=self._server.host
        )
        if encrypted is None:
            raise BrokenError(Fault.CLOSED)
        connection.upgrade(encrypted)

    async def _name(self, connection: SmtpConnection) -> str:
        """Return what Postage calls itself: a full name, or else its address (RFC 5321 section 4.1.4)."""
        async with self._naming:  # so that the DNS is asked once for all connections that open together
            if self._own_name is None:
                self._own_name = await _full_name()
        return self._own_name or _address_literal(connection)


async def _full_name() -> str:
    """Return this machine's full name, which the DNS may be asked for; empty if it has none."""
    try:
        async with asyncio.timeout(NAME_S):
            name = await asyncio.to_thread(socket.getfqdn)
    except TimeoutError:
        return ""
    return name if "." in name and name.isascii() and name.isprintable() and " " not in name else ""


def _address_literal(connection: SmtpConnection) -> str:
    address = connection.transport.get_extra_info("sockname")[0]
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


def _extensions(reply: Reply) -> dict[str, str]:
    """Return what a server offers in its reply to EHLO (RFC 5321 section 4.1.1.1). Old ones write `AUTH=`."""
    extensions: dict[str, str] = {}
    for line in reply.text.decode("ascii", "replace").split("\n")[1:]:
        keyword, _, value = line.replace("AUTH=", "AUTH ", 1).strip().partition(" ")
        name = keyword.upper()
        extensions[name] = f"{extensions[name]} {value}" if name in extensions else value
    return extensions


def _why(error: OSError) -> str:
    match error:
        case TimeoutError():
            return str(Fault.SLOW)
        case ssl.SSLCertVerificationError():
            return f"its certificate is not valid ({error.verify_message})"
        case ssl.SSLError():
            return f"no secure connection could be made ({error.reason})"
        case socket.gaierror():
            return "its name is not known"
        case _:
            return _strerror(error)


def _strerror(error: OSError) -> str:
    """Return the system's words: the loops put the address before them."""
    if error.errno is None or error.errno < 0:
        return "the connection failed"
    return os.strerror(error.errno).lower()
