"""An HTTP server that does what no server should, in many ways, each under a name: `BREAKAGES`.

It answers every request for a job whose id begins with `well` as it should, so that tests see who else suffers.
"""

import asyncio
import gzip
import json
import socket
import ssl
import struct
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.loop_server import LoopServer

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"id": "msg-7"}'
REFUSED = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
WELL = "well"


class Request(NamedTuple):
    """A request as it arrived."""

    target: str
    headers: dict[str, str]
    body: Any


@dataclass
class Peer:
    """One connection to the server."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    requests: list[Request]
    serial: int
    """Which connection to the server this is, from 1."""
    received: bytearray = field(default_factory=bytearray)

    async def request(self) -> Request:
        """Read a whole request."""
        return await self.content(await self.head())

    async def head(self) -> bytes:
        """Read the head of a request."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        self.received += head
        return head

    async def content(self, head: bytes) -> Request:
        """Read the content after a head."""
        lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        content = await self.reader.readexactly(int(headers.get("Content-Length", "0")))
        self.received += content
        request = Request(lines[0].split()[1], headers, json.loads(content or b"null"))
        self.requests.append(request)
        return request

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def flood(self, data: bytes) -> None:
        """Send the same without end, as fast as it is taken."""
        while True:
            await self.send(data)

    async def drip(self, data: bytes, every_s: float = 0.02) -> None:
        """Send the same without end, byte by byte."""
        while True:
            for byte in data:
                await self.send(bytes([byte]))
                await asyncio.sleep(every_s)

    async def answer_well(self) -> None:
        """Answer what should be answered, until a request has come that should not."""
        await self.content(await self.head_after_well())

    async def head_after_well(self) -> bytes:
        """Answer what should be answered, until the head of a request has come that should not."""
        while f"\r\nIdempotency-Key: {WELL}".encode() in (head := await self.head()):
            await self.content(head)
            await self.send(OK)
        return head

    def hold_back(self) -> None:
        """Have what is sent last arrive together with the end of the connection.

        Between the two the other side could send its next request, and nobody would know whether it was taken.
        """
        self.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)

    def reset(self) -> None:
        """Close the connection so that the other side gets an error (RST)."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Act = Callable[[Peer], Awaitable[None]]
"""What the server does on a connection. When it returns, the connection is closed."""


def says(*parts: bytes) -> Act:
    """Answer with these bytes, and close."""

    async def act(peer: Peer) -> None:
        await peer.answer_well()
        peer.hold_back()
        for part in parts:
            await peer.send(part)

    return act


def answers(answer: bytes) -> Act:
    """Answer every request with these bytes, and keep the connection."""

    async def act(peer: Peer) -> None:
        while True:
            await peer.answer_well()
            await peer.send(answer)

    return act


def floods(first: bytes, then: bytes) -> Act:
    """Answer with these bytes, and then with others without end."""

    async def act(peer: Peer) -> None:
        await peer.answer_well()
        await peer.send(first)
        await peer.flood(then)

    return act


def drips(first: bytes, then: bytes) -> Act:
    """Answer with these bytes, and then with others without end, one by one."""

    async def act(peer: Peer) -> None:
        await peer.answer_well()
        await peer.send(first)
        await peer.drip(then)

    return act


async def hangs(peer: Peer) -> None:
    """Answer nothing."""
    await peer.answer_well()
    await peer.reader.read()


async def closes_after_the_head(peer: Peer) -> None:
    """Close before the content of the request is read."""
    await peer.head_after_well()


async def resets(peer: Peer) -> None:
    """Break the connection instead of answering."""
    await peer.answer_well()
    peer.reset()


async def goes_on_reading(peer: Peer) -> None:
    """Answer, and say something more only when the next request is expected."""
    await peer.answer_well()
    await peer.send(OK)
    await asyncio.sleep(0.05)
    await peer.send(REFUSED)
    await peer.reader.read()


def speaks_first(data: bytes) -> Act:
    """Say something before anything is asked. Other connections than the first are answered well."""

    async def act(peer: Peer) -> None:
        if peer.serial == 1:
            await peer.send(data)
        while True:
            await peer.request()
            await peer.send(OK)

    return act


def _bomb(wbits: int) -> bytes:
    """Return 16 MB of zeros, deflated to 16 KB."""
    deflating = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return deflating.compress(bytes(16 * 1024 * 1024)) + deflating.flush()


def coded(coding: str, content: bytes, status: str = "200 OK") -> bytes:
    """Return an answer whose content has this coding."""
    head = f"HTTP/1.1 {status}\r\nContent-Encoding: {coding}\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


BREAKAGES: dict[str, Act] = {
    # It closes, at each point.
    "closes after the head of the request": closes_after_the_head,
    "closes instead of answering": says(b""),
    "resets instead of answering": resets,
    "closes amid the status line": says(b"HTTP/1.1 20"),
    "closes amid the head": says(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "closes amid the content": says(b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"id": '),
    "closes amid a chunk": says(CHUNKED + b'f\r\n{"id": '),
    "closes amid a refusal": says(b'HTTP/1.1 400 No\r\nContent-Length: 15\r\n\r\n{"id": '),
    # It is slow.
    "hangs": hangs,
    "drips the head": drips(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"),
    "drips the content": drips(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b" "),
    "drips chunks": drips(CHUNKED, b"1\r\n \r\n"),
    "drips interim answers": drips(b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    # It never ends.
    "never ends a line": floods(b"HTTP/1.1 200 OK\r\nA: ", b"a" * 10_000),
    "never ends the head": floods(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 1000),
    "never ends interim answers": floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "never ends early hints": floods(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 1000),
    "never ends the content": floods(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n", b" " * 10_000),
    "never ends without a length": floods(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b" " * 10_000),
    "never ends chunks": floods(CHUNKED, b"1\r\n \r\n" * 1000),
    "never ends a chunk extension": floods(CHUNKED + b"1;a=", b"a" * 10_000),
    "never ends a chunk size": floods(CHUNKED, b"0" * 10_000),
    "never ends trailers": floods(CHUNKED + b"0\r\n", b"A: b\r\n" * 1000),
    # It says too much, or too early.
    "answers twice": answers(OK + REFUSED),
    "answers twice, later": goes_on_reading,
    "refuses first, then accepts": answers(REFUSED + OK),
    "answers before it is asked": speaks_first(OK),
    "refuses before it is asked": speaks_first(REFUSED),
    # It speaks something else.
    "speaks SMTP": speaks_first(b"220 mail.example ESMTP\r\n"),
    "speaks TLS": says(b"\x15\x03\x01\x00\x02\x02\x46"),
    "speaks HTTP/2": says(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00"),
    "speaks HTTP/0.9": says(b"<html>Hello</html>"),
    "switches protocols": says(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"),
    "has a status of four digits": says(b"HTTP/1.1 2000 OK\r\n\r\n"),
    "has a status of no class": says(b"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n"),
    # It cannot be decoded.
    "has bytes that are no text": answers(b"HTTP/1.1 200 \xff\xfe\r\nX: \xff\x80\r\nContent-Length: 2\r\n\r\n\xff\xff"),
    "has a null byte in a header": says(b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n"),
    "has two lengths": says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}x"),
    "has a length and chunks": says(CHUNKED[:-2] + b"Content-Length: 3\r\n\r\n0\r\n\r\n"),
    "has a negative length": says(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"),
    "has a length that is no number": says(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"),
    "has a chunk size that is none": says(CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n"),
    "has a negative chunk size": says(CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n"),
    "has a huge chunk size": says(CHUNKED + b"fffffffffffffffff\r\n{}\r\n0\r\n\r\n"),
    "has a coding that nobody knows": answers(coded("br", b"\x0b\x02\x80{}\x03")),
    "has gzip that is none": answers(coded("gzip", b"{}")),
    "has gzip that breaks off": answers(coded("gzip", gzip.compress(b"{}")[:-6])),
    "has too many headers": says(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000 + b"\r\n"),
    # Bombs.
    "sends a gzip bomb": answers(coded("gzip", _bomb(31))),
    "sends a deflate bomb": answers(coded("deflate", _bomb(15))),
    "sends a bomb without its frame": answers(coded("deflate", _bomb(-15))),
    "sends a bomb of a bomb": answers(coded("gzip, gzip", gzip.compress(_bomb(31)))),
    "sends a nested bomb": answers(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n" + b"[" * 60_000),
    # Elsewhere.
    "redirects to itself": answers(b"HTTP/1.1 302 Found\r\nLocation: /send\r\nContent-Length: 0\r\n\r\n"),
    "redirects with the text": answers(b"HTTP/1.1 307 See\r\nLocation: http://[::1]:1/\r\nContent-Length: 0\r\n\r\n"),
}
"""What a server does wrong, and how."""
NOT_TAKEN = {"closes amid a refusal", "refuses first, then accepts", "redirects to itself", "redirects with the text"}
"""Those whose answer says for certain that they have not taken a text."""
ENDLESS = {name for name in BREAKAGES if name.startswith(("hangs", "drips"))}
"""Those that end only by the other side's patience."""


class HttpServer(LoopServer):
    """A server that does what it is told with each connection."""

    limit = 1 << 20

    def __init__(self, act: Act, context: ssl.SSLContext | None = None) -> None:
        super().__init__(context)
        self.requests: list[Request] = []
        self.peers: list[Peer] = []
        self._act = act

    @property
    def url(self) -> str:
        """Where it is, for a carrier."""
        scheme, host = ("https", "localhost") if self.context else ("http", "127.0.0.1")
        return f"{scheme}://{host}:{self.port}/send?account=1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.current_task()
        assert serving is not None
        self._serving.add(serving)
        self.connections += 1
        peer = Peer(reader, writer, self.requests, self.connections)
        self.peers.append(peer)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._act(peer)
        finally:
            self._serving.discard(serving)
            writer.close()
