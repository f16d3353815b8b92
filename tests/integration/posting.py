"""How tests hand text messages to a gateway: a real one, on this machine."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from models.sends.carrier import Handover, Receipt, Sms
from tests.broken_http import HttpServer, Peer
from tests.integration.tls import client_context
from worker.carrier_urls import parse_carrier_url
from worker.carriers.sms_gateway import SmsGateway

TEXT = Sms(job_id="job-1", org_id=7, to="+12025550123", sender_id="Ada", text="Grüße", segments=1)


class Gateway(HttpServer):
    """A gateway that answers every request with the same status, headers and content, and keeps the requests."""

    def __init__(
        self,
        status: int = 200,
        body: bytes = b'{"id": "msg-7"}',
        context: ssl.SSLContext | None = None,
        **headers: str,
    ) -> None:
        super().__init__(self._answer, context)
        self.status, self.body, self.headers = status, body, headers

    async def _answer(self, peer: Peer) -> None:
        while True:
            await peer.request()
            lines = [f"HTTP/1.1 {self.status} Status", f"Content-Length: {len(self.body)}"]
            lines += [f"{name}: {value}" for name, value in self.headers.items()]
            await peer.send("\r\n".join([*lines, "", ""]).encode() + self.body)


async def no_handover() -> None:
    """Fail the test: a carrier that knows its messages again notes no handover."""
    pytest.fail("A handover was noted.")


async def note_handover() -> None:
    """Note nothing."""


async def until(holds: Callable[[], object]) -> None:
    """Wait until something holds that another thread does."""
    while not holds():  # noqa: ASYNC110  what a server in another thread keeps has no events for this loop
        await asyncio.sleep(0.001)


def with_options(url: str, **options: str) -> str:
    """Return a URL with more options."""
    return url + "".join(f"&{name}={value}" for name, value in options.items())


@asynccontextmanager
async def carrier_to(url: str, timeout_s: float = 20) -> AsyncIterator[SmsGateway]:
    """Give a carrier that trusts the certificate of the tests, closed after the block."""
    carrier = SmsGateway(parse_carrier_url(url), timeout_s=timeout_s, ssl_context=client_context())
    try:
        yield carrier
    finally:
        await carrier.close()


def on_loop(what: Awaitable[Any], factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop) -> Any:
    """Run to its end what runs on an event loop, as carriers do."""

    async def main() -> Any:
        return await what

    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main())


def deliver(
    gateway: HttpServer, sms: Sms = TEXT, timeout_s: float = 20, handover: Handover = no_handover, **options: str
) -> Receipt:
    """Deliver one text message through a new carrier to a gateway."""

    async def delivered() -> Receipt:
        async with carrier_to(with_options(gateway.url, **options), timeout_s) as carrier:
            return await carrier.deliver(sms, handover)

    with gateway:
        receipt = on_loop(delivered())
    assert isinstance(receipt, Receipt)
    return receipt
