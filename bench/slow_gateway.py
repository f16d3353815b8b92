"""`python -m bench.slow_gateway PORT SECONDS`: an SMS gateway that takes so long for each text."""

import asyncio
import sys
from typing import Final, cast

import uvloop

ANSWER: Final = b'HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{"id": "msg-7"}'


class SlowGateway(asyncio.Protocol):
    """One connection. Its requests come one by one, each in one piece, as Postage sends them."""

    def __init__(self, answer_s: float) -> None:
        self.answer_s = answer_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where answers go."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer after a while."""
        asyncio.get_running_loop().call_later(self.answer_s, self.transport.write, ANSWER)


async def main() -> None:
    """Serve until the process is ended."""
    port, answer_s = int(sys.argv[1]), float(sys.argv[2])
    server = await asyncio.get_running_loop().create_server(
        lambda: SlowGateway(answer_s), "127.0.0.1", port, backlog=1024
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
