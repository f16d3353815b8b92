"""Email over SMTP, for one mail server: many conversations at a time on one event loop.

smtp.py              the carrier
smtp_server.py       which server, and how: the URL
smtp_delivery.py     one email, in one transaction or several
smtp_transaction.py  MAIL, RCPT, DATA, and what each reply means
smtp_pool.py         which connection is next, and who waits
smtp_opening.py      connect, greet, encrypt; smtp_login.py and smtp_tokens.py log in
smtp_connection.py   what is written and read on a connection, and how long that may take
smtp_replies.py      what a reply is
smtp_limits.py       what a server turned out to take at most
smtp_envelope.py     the email as this server can take it, with mime.py
"""

import asyncio
import ssl
from datetime import timedelta

from models.sends.carrier import Email, Handover, OutboundMessage, Receipt
from worker.carrier_urls import CarrierUrl
from worker.carriers.smtp_connection import SmtpConnection
from worker.carriers.smtp_delivery import SmtpDelivery
from worker.carriers.smtp_opening import NotOpenedError, SmtpOpener
from worker.carriers.smtp_pool import SmtpPool
from worker.carriers.smtp_server import read_smtp_server

DOT_S = 600.0
"""How long a server may take to accept a whole message, in seconds (RFC 5321 section 4.5.3.2.6)."""
AT_A_CONNECTION = 2
"""Deliveries at a time for each connection: one whose message is sent, and one whose envelope may go with it."""


class SmtpCarrier:
    """Hands emails to one mail server."""

    def __init__(
        self,
        address: CarrierUrl,
        *,
        timeout_s: float,
        dot_timeout_s: float = DOT_S,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Prepare to send through `address`; nothing is connected yet.

        `timeout_s` is for each step of a conversation, but `dot_timeout_s` for the acceptance of a whole message.
        `ssl_context` replaces the default one, which verifies certificates.

        Raises
        ------
        CarrierUrlError
            If the address cannot be used, with a sentence that never repeats the user or the password.

        """
        self.server = read_smtp_server(address)
        self._timeout_s = timeout_s
        self._dot_timeout_s = dot_timeout_s
        self._opener = SmtpOpener(self.server, timeout_s, ssl_context or ssl.create_default_context())
        self._pool = SmtpPool(
            self.server,
            self._opener,
            connections=address.connections,
            timeout_s=timeout_s,
            dot_timeout_s=dot_timeout_s,
        )

    @property
    def key_window(self) -> timedelta:
        """None: SMTP has no idempotency key, so an email that is sent twice may arrive twice."""
        return timedelta()

    @property
    def capacity(self) -> int:
        """How many deliveries there may be at a time; fewer once the server has refused connections."""
        return AT_A_CONNECTION * self._pool.connections.now

    async def deliver(self, message: OutboundMessage, handover: Handover) -> Receipt:
        """Hand one email over; never raises for what the server or the network does.

        `handover` is awaited once, when the server waits for the message. A kept connection that turns out to be of no
        use is replaced by a new one, once.

        Raises
        ------
        TypeError
            If `message` is not an `Email`.

        """
        if not isinstance(message, Email):
            msg = f"A mail carrier takes no {type(message).__name__}."
            raise TypeError(msg)
        return await SmtpDelivery(message, handover, self._pool, self._dot_timeout_s).run()

    async def find_fault(self) -> str | None:
        """Connect, greet, encrypt, log in, and leave; nothing is sent. Returns a sentence if that is not possible."""
        loop = asyncio.get_running_loop()
        try:
            connection = await self._opener.open(lambda: SmtpConnection(loop, self._timeout_s))
        except NotOpenedError as error:
            return error.detail
        connection.quit()
        await connection.wait_closed()
        return None

    async def close(self) -> None:
        """Close the kept connections. Deliveries that still run close theirs when they end."""
        await self._pool.close()
