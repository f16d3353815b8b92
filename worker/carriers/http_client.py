"""HTTP requests of which it is known whether they have begun, and whose answers are bounded in time, bytes and number.

aiohttp connects, keeps connections, and reads answers. Requests are written here, each by one call of `write`: before
it not a byte has left, and after it the server may have all of it. (Decision 0043 says why.)
"""

import asyncio
import base64
import functools
import select
import ssl
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError, RawResponseMessage
from aiohttp.streams import StreamReader
from yarl import URL

from models.sends.carrier import Handover

ANSWER_MAX: Final = 64 * 1024
"""Bytes of content that are read, as they come and inflated: more than any gateway needs for an id."""
WIRE_MAX: Final = 2 * ANSWER_MAX
"""Bytes of an answer with everything around its content: interim answers, heads, chunk sizes, trailers."""
INTERIM_MAX: Final = 10
"""Interim answers (1xx) before the one that counts."""
TRIES: Final = 3
"""Connections that are tried, if those that were kept turn out to be closed before anything is written to them."""

_ZLIB_OR_GZIP, _RAW_DEFLATE = 47, -15
"""What zlib calls the formats. RFC 9110 section 8.4.1.2 notes that some servers send "deflate" without its frame."""
_NO_LIMIT = aiohttp.ClientTimeout(total=None)
"""What aiohttp limits: nothing. `HttpClient` measures a request as a whole."""
_FAILURES = (aiohttp.ClientError, HttpProcessingError, OSError)
"""What aiohttp raises for what a peer or a network does."""


class HttpAnswer(NamedTuple):
    """What a server answered. `content` is None if it broke off, is too long, or cannot be inflated."""

    status: int
    headers: Mapping[str, str]
    content: bytes | None


class UnansweredError(Exception):
    """No answer came. Without `has_begun`, not a byte of the request has left.

    `why` completes "The server could not be reached (…)". `is_ours` says that the wait was for our own note of the
    handover, and `proxy_status` is what a proxy answered that opens no tunnel.
    """

    def __init__(self, why: str, *, has_begun: bool, is_ours: bool = False, proxy_status: int | None = None) -> None:
        super().__init__(why)
        self.why, self.has_begun, self.is_ours, self.proxy_status = why, has_begun, is_ours, proxy_status


class BoundedProtocol(ResponseHandler):
    """A connection that reads no more of an answer than `WIRE_MAX` and `INTERIM_MAX` allow."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._requests = 0
        self._room = WIRE_MAX
        self._readable: select.poll | None = None
        self._is_tls = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember how to look whether there is something to read."""
        super().connection_made(transport)
        self._is_tls = transport.get_extra_info("sslcontext") is not None
        socket = transport.get_extra_info("socket")
        if socket is not None:
            self._readable = select.poll()
            self._readable.register(socket.fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        """Take what came, up to the limit; what would come after it is cut off."""
        allowed = data if len(data) <= self._room else data[: self._room]
        self._room -= len(allowed)
        super().data_received(allowed)
        if allowed is not data and self.transport is not None:
            self.transport.abort()

    def is_silent(self) -> bool:
        """Whether the peer has neither closed the connection nor said anything since its last answer.

        What it has sent and nobody has read yet counts: an answer to nothing would be taken for that of the next
        request. A new connection with TLS may have something to read (RFC 8446 section 4.6.1: tickets).
        """
        may_have_tickets = self._is_tls and self._requests == 0
        has_unread = self._readable is not None and not may_have_tickets and self._readable.poll(0)
        return not has_unread and not self.should_close and self.is_connected()

    def write(self, request: bytes) -> None:
        """Send a request, and be ready for its answer."""
        self._requests += 1
        self._room = WIRE_MAX
        self.set_response_params(auto_decompress=False, read_until_eof=True)
        cast("asyncio.Transport", self.transport).write(request)  # it is silent, so there is one

    async def answer(self) -> tuple[RawResponseMessage, StreamReader]:
        """Return the head of the answer that counts, and where its content is read.

        Raises
        ------
        aiohttp.ClientPayloadError
            If there were too many interim ones before it.

        """
        for _ in range(INTERIM_MAX + 1):
            head, content = await self.read()
            if not 100 <= head.code < 200 or head.code == 101:  # noqa: PLR2004  101 is final: it switches protocols
                return head, content
        msg = "Interim answers without end."
        raise aiohttp.ClientPayloadError(msg)


@dataclass(slots=True)
class _Progress:
    """How far a request has come."""

    is_noting: bool = False
    has_begun: bool = False
    head: RawResponseMessage | None = None


class HttpClient:
    """Makes requests to one address, on kept connections. Belongs to the event loop that makes the first request."""

    def __init__(
        self,
        url: URL,
        *,
        headers: Mapping[str, str],
        timeout_s: float,
        connections: int,
        proxy: URL | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Connect nothing yet. `timeout_s` is for a whole request; `ssl_context` replaces the default one."""
        is_proxied = proxy is not None and url.scheme == "http"  # otherwise it opens a tunnel
        self._target = str(url) if is_proxied else url.raw_path_qs
        login = _proxy_login(proxy) if proxy is not None and is_proxied else {}
        self._head = "".join(_lines({"Host": url.host_port_subcomponent or "", **headers, **login}))
        self._url = url
        self._proxy = proxy
        self._timeout_s = timeout_s
        self._connections = connections
        self._ssl = ssl_context or True
        self._connector: _Connector | None = None
        self._peer: aiohttp.ClientRequest | None = None

    async def request(
        self, method: str, headers: Mapping[str, str], content: bytes = b"", handover: Handover | None = None
    ) -> HttpAnswer:
        """Make one request; follows no redirect.

        `handover` is awaited, once at most, right before the request is written; what it raises is passed on.

        Raises
        ------
        UnansweredError
            If no answer came.

        """
        lines = "".join(_lines({**headers, "Content-Length": str(len(content))}))
        request = f"{method} {self._target} HTTP/1.1\r\n{self._head}{lines}\r\n".encode("ascii") + content
        progress = _Progress()
        try:
            async with asyncio.timeout(self._timeout_s) as clock:
                connection = await self._write(request, handover, progress)
                return await _read(connection, progress)
        except TimeoutError:
            if not clock.expired():
                raise  # the handover's own
        if progress.head is not None:
            return HttpAnswer(progress.head.code, progress.head.headers, None)
        why = "it did not answer in time"
        raise UnansweredError(why, has_begun=progress.has_begun, is_ours=progress.is_noting)

    async def close(self) -> None:
        """Close all connections."""
        if self._connector is not None:
            await self._connector.close()

    async def _write(self, request: bytes, handover: Handover | None, progress: _Progress) -> Connection:
        """Write a request to a connection that is silent: neither closed, nor with an answer to nothing on it."""
        for _ in range(TRIES):
            connection = await self._connect()
            protocol = cast("BoundedProtocol", connection.protocol)
            try:
                if handover is not None and protocol.is_silent():
                    progress.is_noting = True
                    await handover()
                    progress.is_noting, handover = False, None
            except BaseException:
                connection.release()  # nothing was written to it
                raise
            if protocol.is_silent():
                progress.has_begun = True
                protocol.write(request)
                return connection
            connection.close()
        why = "it closes connections, or speaks before it is asked"
        raise UnansweredError(why, has_begun=False)

    async def _connect(self) -> Connection:
        """Return a connection that was kept, or make one."""
        if self._connector is None:
            self._connector = _Connector(limit=self._connections, ssl=self._ssl)
        if self._peer is None:
            self._peer = aiohttp.ClientRequest("GET", self._url, proxy=self._proxy, loop=asyncio.get_running_loop())
        try:
            return await self._connector.connect(self._peer, [], _NO_LIMIT)
        except _FAILURES as error:
            status = error.status if isinstance(error, aiohttp.ClientHttpProxyError) else None
            raise UnansweredError(_why(error), has_begun=False, proxy_status=status) from error


class _Connector(aiohttp.TCPConnector):
    """Makes bounded connections. aiohttp has no public name for it; a flood in the tests tells if it is not used."""

    def __init__(self, *, limit: int, ssl: ssl.SSLContext | bool) -> None:
        super().__init__(limit=limit, ssl=ssl)
        self._factory = functools.partial(BoundedProtocol, loop=self._loop)  # type: ignore[assignment]  # a subclass


def inflate(content: bytes, coding: str) -> bytes | None:
    """Return content without its coding; None if that is not known, or it inflates to more than `ANSWER_MAX` bytes."""
    if coding in ("", "identity"):
        return content
    if coding not in ("gzip", "x-gzip", "deflate"):
        return None
    for format_ in (_ZLIB_OR_GZIP, _RAW_DEFLATE):
        inflating = zlib.decompressobj(format_)
        try:
            inflated = inflating.decompress(content, ANSWER_MAX + 1)
        except zlib.error:
            continue
        return inflated if inflating.eof and len(inflated) <= ANSWER_MAX else None
    return None


async def _read(connection: Connection, progress: _Progress) -> HttpAnswer:
    """Read the answer to what was written. The connection is kept only if nothing of it is left to come."""
    protocol = cast("BoundedProtocol", connection.protocol)
    try:
        head, reader = await protocol.answer()
        progress.head = head
        content = await _read_content(reader)
    except _FAILURES as error:
        connection.close()
        if progress.head is None:
            raise UnansweredError(_why(error), has_begun=True) from error
        return HttpAnswer(progress.head.code, progress.head.headers, None)
    except BaseException:
        connection.close()
        raise
    connection.release()  # aiohttp closes it, if the server wants that or there is more to read
    coding = head.headers.get("Content-Encoding", "").strip().lower()
    return HttpAnswer(head.code, head.headers, content and inflate(content, coding))


async def _read_content(reader: StreamReader) -> bytes | None:
    """Return the content of an answer; None if it is too long."""
    content = await reader.readany()
    while not reader.at_eof() and len(content) <= ANSWER_MAX:
        content += await reader.readany()
    return content if len(content) <= ANSWER_MAX else None


def _lines(headers: Mapping[str, str]) -> list[str]:
    """Return headers as they are written.

    Raises
    ------
    ValueError
        If one of them would end its line early, or is not ASCII.

    """
    for value in headers.values():
        if not (value.isascii() and value.isprintable()):
            msg = "A header of a request has a character that cannot stand there."
            raise ValueError(msg)
    return [f"{name}: {value}\r\n" for name, value in headers.items()]


def basic_login(user: str, password: str) -> str:
    """Return what a header says to log in (RFC 7617)."""
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def _proxy_login(proxy: URL) -> dict[str, str]:
    """Return the header for a proxy that opens no tunnel. aiohttp writes that for one that does."""
    if proxy.user is None:
        return {}
    return {"Proxy-Authorization": basic_login(proxy.user, proxy.password or "")}


def _why(error: Exception) -> str:
    match error:
        case aiohttp.ClientConnectorDNSError():
            return "its name is not known"
        case aiohttp.ClientHttpProxyError() | aiohttp.ClientProxyConnectionError():
            return "its proxy does not connect to it"
        case aiohttp.ClientSSLError():
            return "no secure connection could be made"
        case _:
            return "the connection was refused or broken"
