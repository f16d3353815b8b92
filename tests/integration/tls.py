"""TLS with the certificate of the tests."""

import asyncio
import functools
import ssl
from contextlib import suppress
from pathlib import Path

from tests.loop_server import LoopServer

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


class TlsProxy(LoopServer):
    """A port that speaks TLS in front of one of this machine that does not: the Valkey of the wheel cannot."""

    def __init__(self, port: int) -> None:
        super().__init__(server_context())
        self._behind = port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        its_reader, its_writer = await asyncio.open_connection("127.0.0.1", self._behind)
        for come_from, go_to in ((reader, its_writer), (its_reader, writer)):
            copying = asyncio.create_task(_copy(come_from, go_to))
            self._serving.add(copying)
            copying.add_done_callback(self._serving.discard)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
