"""Two mail servers on this machine, one that follows a script and a real one (aiosmtpd), and carriers to them."""

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Self, TypeVar

import uvloop

from models.sends.carrier import Email, Handover, OutboundMessage, Receipt
from tests.integration.tls import client_context
from worker.carrier_urls import parse_carrier_url
from worker.carriers.smtp import SmtpCarrier
from worker.local.sinks import LoopbackController

T = TypeVar("T")

BOB, EVE, JOE = "bob@example.org", "eve@example.org", "joe@example.org"
EMAIL = Email(
    job_id="job-1",
    org_id=7,
    from_name="Ada",
    from_address="ada@example.org",
    to=(BOB,),
    cc=(),
    recipients=(BOB,),
    subject="Hello",
    text="First\n.\n..two dots\nlast",
    html=None,
    reply_to=(),
    headers={},
)
TO_THREE = replace(EMAIL, to=(BOB, EVE, JOE), recipients=(BOB, EVE, JOE))
LARGE = replace(EMAIL, text="a line of text, again and again\n" * 600_000)
"""More than the buffers of two sockets hold."""

CLOSE = "close"
HANG = "hang"
RESET_INSIDE = "reset inside"
LATER = "later"
Replies = Mapping[str, str | list[str]]
PIPELINING = "250-test\r\n250-PIPELINING\r\n250 SIZE 50000000"

USUAL: dict[str, str | list[str]] = {
    "GREETING": "220 test",
    "EHLO": "250-test\r\n250 SIZE 50000000",
    "DATA": "354 go on",
    "DOT": "250 2.0.0 Ok: queued as 4XyZ12",
    "QUIT": "221 bye",
}
"""The replies that a script need not repeat. To all other commands the server replies "250 2.1.0 Ok"."""


VERBS = ("EHLO", "HELO", "AUTH", "MAIL", "RCPT", "DATA", "RSET", "QUIT")


class ScriptedServer:
    """A mail server that replies to each command as its script says.

    The key `GREETING` is for its first reply, `DOT` for the reply to a whole message, and `ANSWER` for that to what is
    no command. Of a list of replies each is used once, and the last one again and again. Instead of a reply it may
    `CLOSE` the connection, `HANG` until the test is over, reply together with the next command (`LATER`), or reset the
    connection when a message has only begun to arrive (`RESET_INSIDE`). It keeps whole messages in `messages`, and
    those that broke off in `fragments`. `slow_s` is how long it takes to reply to each recipient.
    """

    def __init__(self, script: Replies, slow_s: float = 0.0) -> None:
        replies = {**USUAL, **script}
        self.replies = {key: list(reply) if isinstance(reply, list) else [reply] for key, reply in replies.items()}
        self.commands: list[str] = []
        self.messages: list[bytes] = []
        self.fragments: list[bytes] = []
        self.last_reply = ""
        self.connections = 0
        self._slow_s = slow_s
        self._over = threading.Event()
        self._own = threading.local()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._listen)]
        self._threads[0].start()
        self.url = f"smtp://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                thread = threading.Thread(target=self._serve, args=(connection,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(30)
        with connection, connection.makefile("rb") as received, suppress(OSError):
            is_open = self._reply(connection, "GREETING")
            while is_open and (command := received.readline()):
                self.commands.append(command.decode().strip())
                verb = command[:4].decode("ascii", "replace").strip().upper()
                verb = verb if verb in VERBS else "ANSWER"
                is_open = self._reply(connection, verb) and verb != "QUIT"
                if is_open and verb == "DATA" and self._own.reply.rpartition("\n")[2].startswith("354"):
                    is_open = self._take_message(connection, received)

    def _take_message(self, connection: socket.socket, received: Any) -> bool:
        if self.replies["DOT"] == [RESET_INSIDE]:
            received.read(1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        message = b""
        while (line := received.readline()) != b".\r\n":
            if not line:
                self.fragments.append(message)
                return False
            message += line
        self.messages.append(message)
        return self._reply(connection, "DOT")

    def _reply(self, connection: socket.socket, key: str) -> bool:
        """Reply as the script says. Returns False if the connection is to be closed."""
        left = self.replies.setdefault(key, ["250 2.1.0 Ok"])
        reply = self._own.reply = self.last_reply = left.pop(0) if len(left) > 1 else left[0]
        if reply == HANG:
            self._over.wait(30)
        if reply in (HANG, CLOSE):
            return False
        if reply == LATER:
            return True
        if key == "RCPT":
            self._over.wait(self._slow_s)
        connection.sendall(f"{reply}\r\n".encode())
        return not reply.startswith("421")


class Mailbox:
    """What aiosmtpd hands everything to: it keeps envelopes and counts connections."""

    def __init__(self) -> None:
        self.envelopes: list[Any] = []
        self.connections = 0

    async def handle_EHLO(  # noqa: N802
        self, server: Any, session: Any, envelope: Any, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        self.connections += 1
        return responses

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        self.envelopes.append(SimpleNamespace(**vars(envelope)))
        return "250 2.0.0 Ok: queued as 4XyZ12"


@contextmanager
def real_server(**options: Any) -> Iterator[tuple[Mailbox, str]]:
    """Give the mailbox of a real server, and its URL. `options` are those of aiosmtpd."""
    mailbox = Mailbox()
    controller = LoopbackController(mailbox, **options)
    controller.start()
    try:
        yield mailbox, f"smtp://127.0.0.1:{controller.port}"
    finally:
        controller.stop()


class Handovers:
    """Counts how often a message is about to be handed over."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self) -> None:
        self.count += 1


async def unnoted() -> None:
    """Note nothing before a message is handed over."""


LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
loop_name = "uvloop"
"""The loop on which carriers are called; a fixture lets tests run on both."""


class LoopedCarrier:
    """A carrier on a loop of its own, which runs only during calls."""

    def __init__(self, carrier: SmtpCarrier) -> None:
        self.carrier = carrier
        self._runner = asyncio.Runner(loop_factory=LOOPS[loop_name])

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the carrier's loop."""
        return self._runner.run(coroutine)

    def deliver(self, message: OutboundMessage, handover: Handover = unnoted) -> Receipt:
        """Deliver one message."""
        return self.run(self.carrier.deliver(message, handover))

    def deliver_all(self, messages: Sequence[OutboundMessage], handover: Handover = unnoted) -> list[Receipt]:
        """Deliver messages at the same time."""

        async def all_of_them() -> list[Receipt]:
            return await asyncio.gather(*[self.carrier.deliver(message, handover) for message in messages])

        return self.run(all_of_them())

    def find_fault(self) -> str | None:
        """Ask the carrier for its fault."""
        return self.run(self.carrier.find_fault())

    def close(self) -> None:
        """Close the carrier and the loop."""
        self.run(self.carrier.close())
        self._runner.close()


def carrier_to(
    url: str, timeout_s: float = 60, dot_timeout_s: float = 60, ssl_context: ssl.SSLContext | None = None
) -> closing[LoopedCarrier]:
    """Give a carrier that trusts the certificate of the tests, closed after the block."""
    address = parse_carrier_url(url)
    context = ssl_context or client_context()
    return closing(
        LoopedCarrier(SmtpCarrier(address, timeout_s=timeout_s, dot_timeout_s=dot_timeout_s, ssl_context=context))
    )


def deliver(
    script: Replies,
    email: Email = EMAIL,
    timeout_s: float = 60,
    handover: Handover = unnoted,
    dot_timeout_s: float | None = None,
) -> tuple[Receipt, ScriptedServer]:
    """Deliver one email through a new carrier to a server that follows a script."""
    dot_s = timeout_s if dot_timeout_s is None else dot_timeout_s
    with ScriptedServer(script) as server, carrier_to(server.url, timeout_s, dot_s) as carrier:
        return carrier.deliver(email, handover), server
