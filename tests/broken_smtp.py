"""Mail servers that are broken, each in its own way: what a carrier has to survive. Each runs on a loop of its own.

`broken_server` runs one that breaks every conversation, or only those of its first connections, and is good otherwise.
"""

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, TypeAlias, cast

Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter
Conversation = Callable[[Reader, Writer], Awaitable[None]]

DRIP_S: Final = 0.02
"""How long a server that drips takes for each byte, in seconds: less than any timeout."""
FOR_EVER_S: Final = 3_600.0
EHLO: Final = "250-broken.example\r\n250-PIPELINING\r\n250-STARTTLS\r\n250-AUTH PLAIN\r\n250 SIZE 50000000"
PLAIN_EHLO: Final = "250-broken.example\r\n250-PIPELINING\r\n250 SIZE 50000000"
SSH: Final = b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"
HTTP: Final = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<html>400</html>\r\n"
TLS_ALERT: Final = bytes.fromhex("15030100020246")
STEPS: Final = ("GREETING", "EHLO", "MAIL", "RCPT", "DATA", "DOT")


@dataclass(frozen=True, slots=True)
class Broken:
    """How a server breaks, and what has to become of an email."""

    talk: Conversation
    outcome: str = "not_now"
    is_failing: bool = True
    needs_tls: bool = False
    """Whether it shows only to who asks for encryption."""
    hears_nothing: bool = False
    """Whether it asks for the message, and does not read it: a short one may be sent all the same."""


class Script:
    """A good mail server, but for what it does at some steps."""

    def __init__(self, at: Mapping[str, Conversation], ehlo: str = PLAIN_EHLO) -> None:
        self._at = at
        self._usual = {"GREETING": "220 broken.example", "EHLO": ehlo, "DATA": "354 go on", "QUIT": "221 bye"}

    async def __call__(self, reader: Reader, writer: Writer) -> None:
        await self._do("GREETING", reader, writer)
        while line := await reader.readline():
            verb = line.decode("utf-8", "replace").split()[0].upper() if line.strip() else ""
            await self._do(verb, reader, writer)
            if verb == "QUIT":
                return
            if verb == "DATA":
                await reader.readuntil(b"\r\n.\r\n")
                await self._do("DOT", reader, writer)

    async def _do(self, step: str, reader: Reader, writer: Writer) -> None:
        if step in self._at:
            await self._at[step](reader, writer)
        else:
            await _say(writer, f"{self._usual.get(step, '250 2.0.0 ok')}\r\n".encode())


good = Script({})
"""A mail server that takes everything."""


async def _say(writer: Writer, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


def says(data: bytes) -> Conversation:
    """Say this, and nothing else."""

    async def talk(_: Reader, writer: Writer) -> None:
        await _say(writer, data)

    return talk


def says_and_closes(data: bytes) -> Conversation:
    """Say this, and close the connection."""

    async def talk(_: Reader, writer: Writer) -> None:
        await _say(writer, data)
        raise ConnectionAbortedError

    return talk


async def hangs(_: Reader, __: Writer) -> None:
    """Say nothing, for ever."""
    await asyncio.sleep(FOR_EVER_S)


async def closes(_: Reader, __: Writer) -> None:
    """Close the connection."""
    raise ConnectionAbortedError


async def resets(_: Reader, writer: Writer) -> None:
    """Reset the connection."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    raise ConnectionAbortedError


def drips(data: bytes) -> Conversation:
    """Say one byte after the other, and begin anew at the end."""

    async def talk(_: Reader, writer: Writer) -> None:
        while True:
            for byte in data:
                await _say(writer, bytes([byte]))
                await asyncio.sleep(DRIP_S)

    return talk


def never_ends(data: bytes) -> Conversation:
    """Say the same again and again, as fast as it is read."""

    async def talk(_: Reader, writer: Writer) -> None:
        while True:
            await _say(writer, data)

    return talk


async def _hears_nothing(_: Reader, writer: Writer) -> None:
    """Ask for the message, and read none of it."""
    await _say(writer, b"354 go on\r\n")
    cast("asyncio.Transport", writer.transport).pause_reading()
    await asyncio.sleep(FOR_EVER_S)


async def _injects(_: Reader, writer: Writer) -> None:
    """Agree to encrypt, and add what a client must not take for a reply after that (CVE-2011-0411 and its kin)."""
    await _say(writer, b"220 go on\r\n250-injected\r\n250 AUTH PLAIN\r\n")


async def _garbles_handshake(reader: Reader, writer: Writer) -> None:
    await _say(writer, b"220 go on\r\n")
    await reader.read(1)
    await _say(writer, random.Random(1).randbytes(400))
    await asyncio.sleep(FOR_EVER_S)


async def _stops_in_handshake(reader: Reader, writer: Writer) -> None:
    await _say(writer, b"220 go on\r\n")
    await reader.read(1)
    await asyncio.sleep(FOR_EVER_S)


def _at_each_step() -> dict[str, Broken]:
    kinds: dict[str, Conversation] = {
        "hangs": hangs,
        "closes": closes,
        "resets": resets,
        "drips": drips(b"250-again and again\r\n"),
        "never ends a reply": never_ends(b"250-again and again\r\n" * 100),
        "never ends a line": never_ends(b"250 " + b"x" * 4_000),
        "speaks HTTP": says_and_closes(HTTP),
        "says two codes in one reply": says(b"250-yes\r\n550 no\r\n"),
        "says nonsense": says(b"250whatever\r\n"),
        "says nothing but a line end": says(b"\r\n"),
        "says NUL": says(b"\0\0\0\0\r\n"),
    }
    return {
        f"{kind} at {step}": Broken(Script({step: talk}), "unsure" if step == "DOT" else "not_now")
        for step in STEPS
        for kind, talk in kinds.items()
    }


BROKEN: Final[Mapping[str, Broken]] = {
    **_at_each_step(),
    "speaks SSH": Broken(says_and_closes(SSH)),
    "speaks SSH and waits": Broken(Script({"GREETING": says(SSH)})),
    "speaks TLS": Broken(says(TLS_ALERT)),
    "says random bytes": Broken(says_and_closes(random.Random(1).randbytes(5_000))),
    "says random bytes for ever": Broken(never_ends(random.Random(2).randbytes(5_000))),
    "says all replies at once": Broken(
        says(b"220 hi\r\n250 ok\r\n250 ok\r\n250 ok\r\n354 go on\r\n250 taken\r\n"),
    ),
    "says everything twice": Broken(
        Script({step: says(2 * (b"354 go on\r\n" if step == "DATA" else b"250 ok\r\n")) for step in STEPS})
    ),
    "takes the message before it came": Broken(Script({"DATA": says(b"354 go on\r\n250 taken\r\n")})),
    "hears nothing of the message": Broken(Script({"DATA": _hears_nothing}), hears_nothing=True),
    "takes no connection": Broken(says_and_closes(b"421 4.7.0 too many connections\r\n")),
    "is no mail server": Broken(says_and_closes(b"554 no SMTP here\r\n"), "our_fault", is_failing=False),
    "closes at each command with 421": Broken(Script({"MAIL": says_and_closes(b"421 4.3.2 bye\r\n")})),
    "injects before the encryption": Broken(Script({"STARTTLS": _injects}, EHLO), needs_tls=True),
    "garbles the handshake": Broken(Script({"STARTTLS": _garbles_handshake}, EHLO), needs_tls=True),
    "stops in the handshake": Broken(Script({"STARTTLS": _stops_in_handshake}, EHLO), needs_tls=True),
    "replies HTTP to STARTTLS": Broken(Script({"STARTTLS": says(HTTP)}, EHLO), needs_tls=True),
    "cannot be decoded": Broken(
        Script({step: says(b"250-\xff\xfe\x00\r\n250 \xc3\x28\x1b[2J\r\n") for step in ("MAIL", "RCPT", "DOT")}),
        "accepted",
        is_failing=False,
    ),
    "offers ten thousand extensions": Broken(Script({"EHLO": says(b"250-X-MORE\r\n" * 10_000 + b"250 ok\r\n")})),
}
"""Servers that are broken."""


class _Heard(asyncio.StreamReader):
    """A reader that keeps everything it is fed."""

    def __init__(self, heard: list[bytearray]) -> None:
        super().__init__(limit=2**26)
        self._heard = bytearray()
        heard.append(self._heard)

    def feed_data(self, data: bytes) -> None:
        self._heard += data
        super().feed_data(data)


@dataclass(slots=True)
class BrokenServer:
    """A server that is broken, on a loop and a thread of its own."""

    talk: Conversation
    broken_connections: int | None = None
    """How many connections are broken, from the first one on; all of them if it is None."""
    url: str = ""
    connections: int = 0
    is_tried: threading.Event = field(default_factory=threading.Event)
    """Whether there has been a connection."""
    heard: list[bytearray] = field(default_factory=list)
    """What was sent to it, on each connection."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: Reader, writer: Writer) -> None:
        """Talk to one client."""
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
        self.connections += 1
        self.is_tried.set()
        is_good = self.broken_connections is not None and self.connections > self.broken_connections
        with suppress(OSError, EOFError, asyncio.CancelledError, asyncio.LimitOverrunError):
            await (good if is_good else self.talk)(reader, writer)
            if not is_good:
                await asyncio.sleep(FOR_EVER_S)
        writer.transport.abort()

    async def run(self, started: threading.Event, ended: asyncio.Event) -> None:
        """Listen until `ended` is set."""
        listening = await asyncio.get_running_loop().create_server(
            lambda: asyncio.StreamReaderProtocol(_Heard(self.heard), self.serve), "127.0.0.1", 0
        )
        self.url = f"smtp://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        started.set()
        await ended.wait()
        listening.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextmanager
def broken_server(talk: Conversation, broken_connections: int | None = None) -> Iterator[BrokenServer]:
    """Run a server that is broken, on its first connections or on all."""
    server = BrokenServer(talk, broken_connections)
    loop, started, ended = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(server.run(started, ended),))
    thread.start()
    started.wait(30)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()
