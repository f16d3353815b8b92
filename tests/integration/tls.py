"""TLS with the certificate of the tests."""

import asyncio
import functools
import ssl
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

CERTIFICATES = Path(__file__).parent.parent / "certificates"


@functools.cache
def server_context() -> ssl.SSLContext:
    """Give what a server with the certificate of the tests needs."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATES / "server.pem", CERTIFICATES / "server.key")
    return context


@functools.cache
def client_context() -> ssl.SSLContext:
    """Give what a client that trusts only this certificate needs: much faster to make than the default one."""
    return ssl.create_default_context(cafile=CERTIFICATES / "server.pem")


class TlsProxy:
    """A port that speaks TLS in front of one of this machine that does not: the Valkey of the wheel cannot."""

    def __init__(self, port: int) -> None:
        self.connections = 0
        """How many were made, with TLS."""
        self._behind = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._copying: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        serving = asyncio.start_server(self._connect, "127.0.0.1", 0, ssl=server_context())
        self._server = asyncio.run_coroutine_threadsafe(serving, self._loop).result()
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        for each in self._copying:
            each.cancel()
        await asyncio.gather(*self._copying, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        its_reader, its_writer = await asyncio.open_connection("127.0.0.1", self._behind)
        for come_from, go_to in ((reader, its_writer), (its_reader, writer)):
            copying = asyncio.create_task(_copy(come_from, go_to))
            self._copying.add(copying)
            copying.add_done_callback(self._copying.discard)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
