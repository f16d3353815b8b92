"""HTTP requests of which it is known whether they have begun, and whose answers are bounded in time, bytes and number.

aiohttp writes the head of a request together with the first bytes of its content. So all that decides whether a peer
may have a request is in `Content.write_with_length`: before its last line not a byte has left.
"""

import asyncio
import functools
import select
import ssl
import zlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage, StreamWriter
from aiohttp.payload import BytesPayload
from aiohttp.streams import StreamReader
from multidict import CIMultiDictProxy
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


class Answer(NamedTuple):
    """What a server answered. `content` is None if it broke off, is too long, or cannot be inflated."""

    status: int
    headers: CIMultiDictProxy[str]
    content: bytes | None


class UnansweredError(Exception):
    """No answer came. Without `has_begun`, not a byte of the request has left.

    `why` completes "The server could not be reached (…)". `is_ours` says that the wait was for our own note of the
    handover, and `proxy_status` is what a proxy answered that opens no tunnel.
    """

    def __init__(self, why: str, *, has_begun: bool, is_ours: bool = False, proxy_status: int | None = None) -> None:
        super().__init__(why)
        self.why, self.has_begun, self.is_ours, self.proxy_status = why, has_begun, is_ours, proxy_status


class Content(BytesPayload):
    """The JSON of one request, which knows whether any of it was written.

    `handover`, if there is one, is awaited once, right before.
    """

    def __init__(self, content: bytes, handover: Handover | None = None) -> None:
        super().__init__(content, content_type="application/json")
        self._handover = handover
        self.has_begun = False
        self.is_noting = False
        """Whether the handover was begun, and has not ended well."""
        self.refused_by: Exception | None = None
        """What the handover raised."""

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:  # noqa: ARG002  it is all of it
        """Write the head and all of the content, in one piece."""
        connection = _connection_of(writer)
        connection.require_silence()
        if self._handover is not None:
            await self._note()
            connection.require_silence()
        self.has_begun = True
        await writer.write(self._value)

    async def _note(self) -> None:
        handover, self._handover = self._handover, None
        self.is_noting = True
        try:
            await handover()  # type: ignore[misc]
        except Exception as error:
            self.refused_by = error
            raise
        self.is_noting = False


class BoundedConnection(ResponseHandler):
    """A connection that reads no more of an answer than `WIRE_MAX` and `INTERIM_MAX` allow."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._requests = 0
        self._room = WIRE_MAX
        self._heads = 0
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

    def set_response_params(self, **params: Any) -> None:  # noqa: ANN401  aiohttp's
        """Begin to count for the next answer."""
        self._room, self._heads = WIRE_MAX, 0
        self._requests += 1
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Take what came, up to the limit; what would come after it is cut off."""
        allowed = data if len(data) <= self._room else data[: self._room]
        self._room -= len(allowed)
        super().data_received(allowed)
        if allowed is not data and self.transport is not None:
            self.transport.abort()

    async def read(self) -> tuple[RawResponseMessage, StreamReader]:
        """Return the next head.

        Raises
        ------
        aiohttp.ClientPayloadError
            If there were too many interim ones before it.

        """
        self._heads += 1
        if self._heads > INTERIM_MAX + 1:
            msg = "Interim answers without end."
            raise aiohttp.ClientPayloadError(msg)
        return await super().read()

    def require_silence(self) -> None:
        """Require that the peer has neither closed the connection nor said anything before it is asked.

        What it has sent and nobody has read yet counts: an answer to nothing would be taken for that of the next
        request. A new connection with TLS may have something to read (RFC 8446 section 4.6.1: tickets).

        Raises
        ------
        ConnectionResetError
            If it has. Nothing was written.

        """
        may_have_tickets = self._is_tls and self._requests == 1
        has_unread = self._readable is not None and not may_have_tickets and self._readable.poll(0)
        if has_unread or self.should_close or not self.is_connected():
            msg = "The connection was closed, or the peer spoke unasked."
            raise ConnectionResetError(msg)


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
        self._url = url
        self._headers = headers
        self._timeout_s = timeout_s
        self._connections = connections
        self._proxy = proxy
        self._ssl = ssl_context or True
        self._session: aiohttp.ClientSession | None = None

    async def request(self, method: str, content: Content, headers: Mapping[str, str] | None = None) -> Answer:
        """Make one request; follows no redirect.

        Raises
        ------
        UnansweredError
            If no answer came.
        Exception
            What the handover raised; then nothing was written.

        """
        response: aiohttp.ClientResponse | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._open(method, content, headers)
                received = await _read(response)
        except (aiohttp.ClientError, OSError) as error:
            if content.refused_by is not None:
                raise content.refused_by from None
            if response is None:
                raise _unanswered(error, content) from error
            received = None
        finally:
            if response is not None:
                response.release()  # closes the connection, if there is more to read
        return Answer(response.status, response.headers, received)

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def _open(self, method: str, content: Content, headers: Mapping[str, str] | None) -> aiohttp.ClientResponse:
        """Send the request and read the head of its answer.

        As long as nothing was written, another connection may be tried: the gateway has closed this one, or has said
        something unasked on it, which is no answer to this request.
        """
        session = self._session = self._session or self._make_session()
        for tries_left in reversed(range(TRIES)):
            try:
                response = await session.request(
                    method, self._url, data=content, headers=headers, allow_redirects=False
                )
            except aiohttp.ClientConnectorError:
                raise
            except aiohttp.ClientConnectionError:
                if content.has_begun or content.is_noting or not tries_left:
                    raise
            else:
                if content.has_begun:
                    return response
                response.close()  # which keeps aiohttp from writing to it after all
                if content.is_noting:
                    break
        raise aiohttp.ServerDisconnectedError

    def _make_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=_Connector(limit=self._connections, ssl=self._ssl),
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=_NO_LIMIT,  # what `request` measures is exact, and counts tries and content too
            auto_decompress=False,
            proxy=self._proxy,
        )


class _Connector(aiohttp.TCPConnector):
    """Makes bounded connections. aiohttp has no public name for it; a flood in the tests tells if it is not used."""

    def __init__(self, *, limit: int, ssl: ssl.SSLContext | bool) -> None:
        super().__init__(limit=limit, ssl=ssl)
        self._factory = functools.partial(BoundedConnection, loop=self._loop)


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


def _connection_of(writer: AbstractStreamWriter) -> BoundedConnection:
    """Return the connection that aiohttp writes to."""
    if not isinstance(writer, StreamWriter) or not isinstance(writer.protocol, BoundedConnection):
        msg = "aiohttp has made a connection of its own."
        raise TypeError(msg)
    return writer.protocol


async def _read(response: aiohttp.ClientResponse) -> bytes | None:
    """Return the content of an answer, inflated; None if it is too long."""
    received = await response.content.readany()
    while not response.content.at_eof():
        if len(received) > ANSWER_MAX:
            return None
        received += await response.content.readany()
    if len(received) > ANSWER_MAX:
        return None
    return inflate(received, response.headers.get("Content-Encoding", "").strip().lower())


def _unanswered(error: Exception, content: Content) -> UnansweredError:
    is_ours = content.is_noting and isinstance(error, TimeoutError)
    status = error.status if isinstance(error, aiohttp.ClientHttpProxyError) else None
    return UnansweredError(_why(error), has_begun=content.has_begun, is_ours=is_ours, proxy_status=status)


def _why(error: Exception) -> str:
    match error:
        case aiohttp.ClientConnectorDNSError():
            return "its name is not known"
        case aiohttp.ClientHttpProxyError() | aiohttp.ClientProxyConnectionError():
            return "its proxy does not connect to it"
        case aiohttp.ClientSSLError():
            return "no secure connection could be made"
        case TimeoutError():
            return "it did not answer in time"
        case _:
            return "the connection was refused or broken"
