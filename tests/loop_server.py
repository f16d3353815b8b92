"""Servers of tests that run on an event loop in a thread of their own."""

import asyncio
import ssl
import threading
from typing import Self


class LoopServer:
    """A server on a port of this machine. Whoever inherits it says what is done with a connection."""

    limit = 2**16
    """Bytes of a line, at most."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.connections = 0
        """How many were made."""
        self.context = context
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._serving: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.context, limit=self.limit)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result()
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def close_connections(self) -> None:
        """Close all connections, as a server does with those that were idle for long."""
        asyncio.run_coroutine_threadsafe(self._close_connections(), self._loop).result()

    async def _close(self) -> None:
        self._server.close()
        await self._close_connections()

    async def _close_connections(self) -> None:
        for each in self._serving:
            each.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection. Tasks that do so are among `_serving`."""
        raise NotImplementedError
