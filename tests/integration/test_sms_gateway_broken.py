"""The carrier for SMS gateways, against HTTP servers that do what no server should."""

import asyncio
import re
import resource
from dataclasses import replace

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from models.sends.carrier import Outcome, Receipt
from tests.broken_http import BREAKAGES, ENDLESS, OK, REFUSED, WELL, HttpServer, says
from tests.integration.posting import TEXT, Gateway, carrier_to, deliver, no_handover, on_loop, until
from worker.carriers.http_client import TRIES

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
ACCEPTED, NEVER, UNSURE, OUR_FAULT = Outcome.ACCEPTED, Outcome.NEVER, Outcome.UNSURE, Outcome.OUR_FAULT
EXPECTED = {
    # The head came, and its status counts.
    "closes amid the content": {ACCEPTED},
    "closes amid a chunk": {ACCEPTED},
    "closes amid a refusal": {NEVER},
    "drips the content": {ACCEPTED},
    "drips chunks": {ACCEPTED},
    "never ends the content": {ACCEPTED},
    "never ends without a length": {ACCEPTED},
    "never ends chunks": {ACCEPTED},
    "answers twice": {ACCEPTED},
    "answers twice, later": {ACCEPTED},
    "refuses first, then accepts": {NEVER},
    "has bytes that are no text": {ACCEPTED},
    "has a coding that nobody knows": {ACCEPTED},
    "has gzip that is none": {ACCEPTED},
    "has gzip that breaks off": {ACCEPTED},
    "sends a gzip bomb": {ACCEPTED},
    "sends a deflate bomb": {ACCEPTED},
    "sends a bomb without its frame": {ACCEPTED},
    "sends a bomb of a bomb": {ACCEPTED},
    "sends a nested bomb": {ACCEPTED},
    "redirects to itself": {OUR_FAULT},
    "redirects with the text": {OUR_FAULT},
    # What arrives together is read together, and then the head may be lost with what follows it.
    "never ends a chunk extension": {ACCEPTED, UNSURE},
    "never ends a chunk size": {ACCEPTED, UNSURE},
    "never ends trailers": {ACCEPTED, UNSURE},
    "has a chunk size that is none": {ACCEPTED, UNSURE},
    "has a negative chunk size": {ACCEPTED, UNSURE},
    "has a huge chunk size": {ACCEPTED, UNSURE},
    "has a length and chunks": {ACCEPTED, UNSURE},
}
"""What may become of the text. All others leave us unsure: something came after it had been sent, but no answer."""
UNASKED = {"answers before it is asked", "refuses before it is asked", "speaks SMTP"}
"""Those that speak as soon as they are connected to: perhaps before the text is sent, and perhaps right after."""
TOO_LATE = {"answers twice, later"}
"""A second answer that comes while the next text is on its way cannot be told from that text's own, in HTTP/1.1."""
BESIDE = 20


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("breakage", sorted(BREAKAGES.keys() - UNASKED))
def test_a_broken_gateway_gives_an_outcome(breakage: str, loop: str) -> None:
    """Whatever it does, and within the time for a request."""

    async def delivered() -> Receipt:
        async with carrier_to(gateway.url, 1 if breakage in ENDLESS else 20) as carrier:
            return await carrier.deliver(TEXT, no_handover)

    with HttpServer(BREAKAGES[breakage]) as gateway:
        receipt = on_loop(delivered(), LOOPS[loop])

    assert receipt.outcome in EXPECTED.get(breakage, {UNSURE})
    assert receipt.is_failing == (receipt.outcome is UNSURE)
    assert len(gateway.requests) <= 1, "Nothing that was sent is sent again."


@pytest.mark.parametrize("breakage", sorted(BREAKAGES.keys() - TOO_LATE))
def test_a_broken_gateway_holds_up_no_other_message(breakage: str) -> None:
    """Those beside it are accepted while it still does what it does, and those after it too, on the same carrier."""

    async def delivered() -> list[Receipt]:
        async with carrier_to(gateway.url) as carrier:
            broken = asyncio.create_task(carrier.deliver(TEXT, no_handover))
            await until(lambda: gateway.peers)
            well = [replace(TEXT, job_id=f"{WELL}-{number}") for number in range(2 * BESIDE)]
            receipts = await asyncio.gather(*(carrier.deliver(sms, no_handover) for sms in well[:BESIDE]))
            if breakage in ENDLESS:
                assert not broken.done()
                broken.cancel()
            await asyncio.wait([broken])
            return receipts + [await carrier.deliver(sms, no_handover) for sms in well[BESIDE:]]

    with HttpServer(BREAKAGES[breakage]) as gateway:
        receipts = on_loop(delivered())

    assert receipts == [Receipt(ACCEPTED, reference="msg-7")] * (2 * BESIDE)


@pytest.mark.parametrize("breakage", sorted(UNASKED))
def test_what_is_said_before_anything_is_asked_is_no_answer(breakage: str) -> None:
    """It came before the text was sent, which goes over another connection, or waits."""
    gateway = HttpServer(BREAKAGES[breakage])

    async def until_it_has_spoken() -> None:
        await asyncio.sleep(0.1)

    receipt = deliver(gateway, handover=until_it_has_spoken, window="0s")

    assert receipt.outcome in (ACCEPTED, Outcome.NOT_NOW)
    assert len(gateway.requests) == (receipt.outcome is ACCEPTED)


def test_a_second_answer_is_not_taken_for_that_of_the_next_text() -> None:
    """It is on a kept connection when the next text comes, which is sent on a new one."""

    async def delivered() -> list[Receipt]:
        async with carrier_to(gateway.url) as carrier:
            first = await carrier.deliver(TEXT, no_handover)
            await asyncio.sleep(0.2)  # the refusal comes
            return [first, await carrier.deliver(replace(TEXT, job_id="well-2"), no_handover)]

    with HttpServer(BREAKAGES["answers twice, later"]) as gateway:
        receipts = on_loop(delivered())

    assert receipts == [Receipt(ACCEPTED, reference="msg-7")] * 2
    assert gateway.connections == 2


def test_a_connection_that_the_gateway_has_closed_is_replaced() -> None:
    """It was kept. The loop has not heard yet that it is closed, but looks before it writes."""

    async def delivered() -> list[Receipt]:
        async with carrier_to(gateway.url) as carrier:
            first = await carrier.deliver(TEXT, no_handover)
            gateway.close_connections()  # while this loop does nothing else
            return [first, await carrier.deliver(TEXT, no_handover)]

    with Gateway() as gateway:
        receipts = on_loop(delivered())

    assert receipts == [Receipt(ACCEPTED, reference="msg-7")] * 2
    assert (len(gateway.requests), gateway.connections) == (2, 2)


def test_a_gateway_that_closes_every_connection_is_not_asked_for_ever() -> None:
    """After a few connections it counts as not reachable, or the text was just written when it closed one."""

    async def closes(peer: object) -> None:
        """Close at once."""

    gateway = HttpServer(closes)
    receipt = deliver(gateway)

    assert receipt.outcome in (Outcome.NOT_NOW, UNSURE)
    assert receipt.is_failing
    assert gateway.connections <= TRIES


def test_bombs_and_floods_take_little_memory() -> None:
    """What is inflated and buffered is bounded."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for breakage in ("sends a gzip bomb", "never ends the content", "never ends interim answers"):
        for _ in range(3):
            deliver(HttpServer(BREAKAGES[breakage]))

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


@settings(max_examples=150)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.tuples(
            st.sampled_from(
                [OK, REFUSED, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"]
            ),
            st.integers(0, 60),
            st.binary(max_size=8),
            st.integers(0, 8),
        ).map(lambda part: part[0][: part[1]] + part[2] + part[0][part[1] + part[3] :]),
    )
)
def test_whatever_bytes_are_answered_nothing_is_raised(answer: bytes) -> None:
    """And only a refusal that can be read means that the text was not taken."""
    receipt = deliver(HttpServer(says(answer)))

    if receipt.outcome not in (ACCEPTED, UNSURE):
        assert re.search(rb"HTTP/\d\.\d [345]\d\d", answer)
