"""The carrier for SMS gateways, against real HTTP servers on this machine."""

import asyncio
import gzip
import json
import socket
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from models.sends.carrier import Email, Outcome, Receipt
from tests.broken_http import OK, HttpServer, Peer, coded, hangs, resets, says
from tests.integration.posting import (
    TEXT,
    Gateway,
    carrier_to,
    deliver,
    no_handover,
    note_handover,
    on_loop,
    until,
    with_options,
)
from tests.integration.tls import server_context
from worker.carrier_urls import CarrierUrlError, parse_carrier_url
from worker.carriers.http_client import ANSWER_MAX
from worker.carriers.sms_gateway import SmsGateway

ACCEPTED = Receipt(Outcome.ACCEPTED, reference="msg-7")


def carrier_at(url: str) -> SmsGateway:
    """Return a carrier that connects to nothing."""
    return SmsGateway(parse_carrier_url(url), timeout_s=20)


def test_a_text_is_posted_as_json_under_its_job_id() -> None:
    """The gateway gets what was charged, and the key that makes repetitions harmless."""
    gateway = Gateway(status=201)
    receipt = deliver(gateway)

    assert receipt == ACCEPTED
    (request,) = gateway.requests
    assert request.target == "/send?account=1"
    assert request.body == {"id": "job-1", "to": "+12025550123", "from": "Ada", "text": "Grüße", "segments": 1}
    assert request.headers["Idempotency-Key"] == "job-1@7"
    assert request.headers["Content-Type"] == "application/json"
    assert "Transfer-Encoding" not in request.headers


def test_options_are_not_sent_and_parameters_are() -> None:
    """A parameter of the gateway's that is called like an option is written with `query.` before it."""
    gateway = Gateway()
    deliver(gateway, **{"name": "nordic", "taken": "id", "query.name": "M%26S", "key": "a+b", "window": "1h"})

    assert gateway.requests[0].target == "/send?account=1&name=M%26S&key=a+b"


def test_the_sender_is_null_if_a_text_has_none() -> None:
    """The gateway chooses one then."""
    gateway = Gateway()
    deliver(gateway, replace(TEXT, sender_id=None))

    assert gateway.requests[0].body["from"] is None


@pytest.mark.parametrize(
    ("options", "window"),
    [("", timedelta(hours=24)), ("?window=15m", timedelta(minutes=15)), ("?window=0s", timedelta(0))],
)
def test_a_gateway_knows_keys_for_a_day_unless_its_url_says_otherwise(options: str, window: timedelta) -> None:
    """For so long it may be asked again."""
    assert carrier_at(f"http://localhost{options}").key_window == window


def test_the_capacity_is_the_number_of_connections() -> None:
    assert carrier_at("http://localhost?connections=200").capacity == 200


@pytest.mark.parametrize(
    "gateway",
    [Gateway, lambda: Gateway(429), lambda: Gateway(400), lambda: HttpServer(says(b""))],
    ids=["accepted", "not now", "never", "unsure"],
)
def test_no_handover_is_noted_for_a_gateway_that_knows_keys(gateway: Callable[[], HttpServer]) -> None:
    """Whatever becomes of the text, it can be sent again."""
    deliver(gateway(), handover=no_handover)


def test_a_handover_is_noted_before_the_first_byte_is_written() -> None:
    """The gateway is connected to, and has received nothing."""

    async def noted() -> None:
        await until(lambda: gateway.peers)
        await asyncio.sleep(0.05)
        received.append(bytes(gateway.peers[0].reader._buffer))  # type: ignore[attr-defined]
        received.append(bytes(gateway.peers[0].received))

    received: list[bytes] = []
    gateway = Gateway()

    assert deliver(gateway, handover=noted, window="0s") == ACCEPTED
    assert received == [b"", b""]


class LostError(Exception):
    """What a test raises in place of a lost lease."""


@pytest.mark.parametrize("error", [LostError, OSError, TimeoutError, ValueError])
def test_nothing_is_written_if_the_handover_cannot_be_noted(error: type[Exception]) -> None:
    """What was raised is passed on, and the next text is sent."""

    async def lost() -> None:
        raise error

    async def delivered() -> Receipt:
        async with carrier_to(with_options(gateway.url, window="0s")) as carrier:
            with pytest.raises(error):
                await carrier.deliver(TEXT, lost)
            return await carrier.deliver(replace(TEXT, job_id="job-2"), note_handover)

    with Gateway() as gateway:
        assert on_loop(delivered()) == ACCEPTED

    assert [request.body["id"] for request in gateway.requests] == ["job-2"]


def test_a_handover_that_takes_too_long_is_not_the_carriers_fault() -> None:
    """Nothing was written, and the carrier is not rested for it."""

    async def slow() -> None:
        await asyncio.sleep(60)

    gateway = Gateway()
    receipt = deliver(gateway, timeout_s=0.5, handover=slow, window="0s")

    assert (receipt.outcome, receipt.is_failing) == (Outcome.NOT_NOW, False)
    assert gateway.requests == []


def test_a_gateway_that_hangs_up_during_the_handover_is_connected_to_again() -> None:
    """Nothing was written to it, and what is noted is not noted again."""

    async def hangs_up_once(peer: Peer) -> None:
        if peer.serial > 1:
            await peer.request()
            await peer.send(OK)

    async def until_it_has_hung_up() -> None:
        noted.append("noted")
        await until(lambda: gateway.peers and gateway.peers[0].writer.is_closing())
        await asyncio.sleep(0.05)

    noted: list[str] = []
    gateway = HttpServer(hangs_up_once)

    assert deliver(gateway, handover=until_it_has_hung_up, window="0s") == ACCEPTED
    assert noted == ["noted"]
    assert (len(gateway.requests), gateway.connections) == (1, 2)


def test_a_delivery_that_is_cancelled_closes_its_connection() -> None:
    """The process ends. Nobody may continue in the middle of a conversation."""

    async def delivered() -> None:
        async with carrier_to(gateway.url) as carrier:
            delivery = asyncio.create_task(carrier.deliver(TEXT, no_handover))
            await until(lambda: gateway.requests)
            delivery.cancel()
            with pytest.raises(asyncio.CancelledError):
                await delivery
            await until(gateway.peers[0].reader.at_eof)

    with HttpServer(hangs) as gateway:
        on_loop(delivered())


def test_one_connection_is_used_for_one_text_after_the_other() -> None:
    """Whatever the answers are."""

    async def delivered() -> None:
        async with carrier_to(gateway.url) as carrier:
            for gateway.status in (200, 500, 404, 302, 200):
                await carrier.deliver(TEXT, no_handover)

    with Gateway() as gateway:
        on_loop(delivered())

    assert (len(gateway.requests), gateway.connections) == (5, 1)


def test_texts_at_the_same_time_do_not_share_a_connection() -> None:
    """Each of them arrives once, over no more connections than there may be."""
    texts = [replace(TEXT, job_id=f"job-{n}") for n in range(200)]

    async def delivered() -> list[Receipt]:
        async with carrier_to(with_options(gateway.url, connections="8")) as carrier:
            return await asyncio.gather(*(carrier.deliver(text, no_handover) for text in texts))

    with Gateway() as gateway:
        receipts = on_loop(delivered())

    assert receipts == [ACCEPTED] * 200
    assert sorted(request.body["id"] for request in gateway.requests) == sorted(text.job_id for text in texts)
    assert gateway.connections <= 8


@pytest.mark.parametrize(
    ("statuses", "outcome", "is_failing"),
    [
        ([400, 410, 413, 415, 422], Outcome.NEVER, False),
        ([408, 409, 423, 425], Outcome.NOT_NOW, False),
        ([406, 411, 414, 418, 421, 431, 451, 499], Outcome.NOT_NOW, False),
        ([429, 503], Outcome.NOT_NOW, True),
        ([500, 501, 502, 504, 505, 520, 599], Outcome.UNSURE, True),
        ([401, 402, 403, 404, 405, 407], Outcome.OUR_FAULT, False),
        ([300, 301, 302, 303, 304, 307, 308], Outcome.OUR_FAULT, False),
        ([600, 999], Outcome.UNSURE, True),
    ],
)
def test_the_status_decides(statuses: list[int], outcome: Outcome, is_failing: bool) -> None:
    """What may have been taken is never called refused, and what is wrong with us no fault of the text."""
    for status in statuses:
        receipt = deliver(Gateway(status, b""))

        assert (receipt.outcome, receipt.is_failing) == (outcome, is_failing), status
        assert str(status) in receipt.detail


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    """The URL is a setting that somebody must correct. Until then the texts wait."""
    with Gateway() as elsewhere:
        receipt = deliver(Gateway(status, Location=elsewhere.url))

    assert receipt.outcome is Outcome.OUR_FAULT
    assert "redirects" in receipt.detail
    assert elsewhere.requests == []


@pytest.mark.parametrize("status", [302, 401, 402, 404])
def test_what_is_our_fault_is_logged_as_an_error(status: int) -> None:
    """Somebody must correct it."""
    with capture_logs() as logs:
        deliver(Gateway(status, b""))

    assert [(line["log_level"], line["status"]) for line in logs] == [("error", status)]


@pytest.mark.parametrize("status", [429, 503, 402, 500])
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "30"}, 30),
        ({"Retry-After": "0"}, 0),
        ({"Retry-After": "9" * 40}, 86_400),
        ({"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT", "Date": "Fri, 31 Dec 1999 23:58:59 GMT"}, 60),
        ({"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0),
        ({"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}, 86_400),
    ],
)
def test_the_gateway_says_when_it_wants_to_be_asked_again(status: int, headers: dict[str, str], seconds: int) -> None:
    """In seconds, or as a date by its own clock; at most a day."""
    assert deliver(Gateway(status, b"", **headers)).retry_after == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "soon", "-1", "1.5", "Fri, 31 Dec 1999 99:99:99 GMT", "\u0661", "0x10"])
def test_a_time_that_cannot_be_read_is_none(text: str) -> None:
    assert deliver(Gateway(503, b"", **{"Retry-After": text})).retry_after is None


@pytest.mark.parametrize(
    "body",
    [b"", b"ok", b"[]", b"{}", b'{"id": null}', b'{"id": true}', b'{"id": ""}', b"\xff", b"[" * 60_000, b'{"id": {}}'],
)
def test_an_accepted_text_has_no_reference_if_the_answer_has_no_id(body: bytes) -> None:
    """The status alone decides."""
    assert deliver(Gateway(200, body)) == Receipt(Outcome.ACCEPTED)


def test_a_reference_is_sanitized() -> None:
    """Numbers become text, control characters become blanks, and what is too long is cut."""
    assert deliver(Gateway(body=b'{"id": 42}')).reference == "42"
    assert deliver(Gateway(body=json.dumps({"id": "a\x00\n" + "b" * 1000}).encode())).reference == "a " + "b" * 298


@pytest.mark.parametrize(
    ("coding", "code"),
    [
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda content: zlib.compress(content, wbits=-15)),
        ("identity", bytes),
    ],
)
def test_an_answer_is_inflated(coding: str, code: Callable[[bytes], bytes]) -> None:
    """Also if the gateway was not asked to deflate it."""
    assert deliver(HttpServer(says(coded(coding, code(b'{"id": "msg-7"}'))))) == ACCEPTED


def test_an_endless_answer_is_not_read_to_its_end() -> None:
    """The text is accepted all the same, and so is the next one."""

    async def delivered() -> None:
        async with carrier_to(gateway.url) as carrier:
            assert await carrier.deliver(TEXT, no_handover) == Receipt(Outcome.ACCEPTED)
            gateway.body = b'{"id": "msg-7"}'
            assert await carrier.deliver(TEXT, no_handover) == ACCEPTED

    with Gateway(body=b" " * (100 * ANSWER_MAX)) as gateway:
        on_loop(delivered())

    assert gateway.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        OK.replace(b"1.1", b"1.0"),
        b'HTTP/1.0 200 OK\r\n\r\n{"id": "msg-7"}',
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6;a=b\r\n{"id":\r\n9\r\n "msg-7"}\r\n0\r\nX: y\r\n\r\n',
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK,
        b"HTTP/1.1 102 Processing\r\n\r\n" * 10 + OK,
    ],
    ids=["HTTP/1.0", "HTTP/1.0 without a length", "chunks", "interim answers", "as many interim answers as may be"],
)
def test_an_answer_may_come_in_any_form(answer: bytes) -> None:
    """As long as it is HTTP/1."""
    assert deliver(HttpServer(says(answer))) == ACCEPTED


def test_a_gateway_of_http_1_0_gets_one_text_after_the_other() -> None:
    """Each over a connection of its own."""

    async def answers_and_closes(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK.replace(b"1.1", b"1.0"))

    async def delivered() -> list[Receipt]:
        async with carrier_to(gateway.url) as carrier:
            return [await carrier.deliver(TEXT, no_handover) for _ in range(3)]

    with HttpServer(answers_and_closes) as gateway:
        assert on_loop(delivered()) == [ACCEPTED] * 3

    assert gateway.connections == 3


@pytest.mark.parametrize("act", [says(b""), says(b"HTTP/1.1 2"), says(b"what?\r\n\r\n"), resets])
def test_a_connection_that_breaks_after_the_text_means_unsure(act: Any) -> None:
    """The gateway had everything that it needs to send the text."""
    assert deliver(HttpServer(act)).outcome is Outcome.UNSURE


def test_a_gateway_that_hangs_means_unsure() -> None:
    """A late answer cannot be told from none."""
    receipt = deliver(HttpServer(hangs), timeout_s=0.5)

    assert (receipt.outcome, receipt.is_failing) == (Outcome.UNSURE, True)


def deliver_to(url: str, timeout_s: float = 20) -> Receipt:
    """Deliver one text message to an address."""

    async def delivered() -> Receipt:
        async with carrier_to(url, timeout_s) as carrier:
            return await carrier.deliver(TEXT, no_handover)

    receipt = on_loop(delivered())
    assert isinstance(receipt, Receipt)
    return receipt


def test_a_gateway_that_is_not_there_means_not_now() -> None:
    """Nothing listens on the port, so nothing was sent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    receipt = deliver_to(url)

    assert (receipt.outcome, receipt.is_failing) == (Outcome.NOT_NOW, True)


def test_a_host_name_that_does_not_exist_means_not_now() -> None:
    """No name under `.invalid` does (RFC 6761 section 6.4)."""
    receipt = deliver_to("http://sms.invalid")

    assert receipt.outcome is Outcome.NOT_NOW
    assert "name" in receipt.detail


def test_a_gateway_that_takes_no_connection_in_time_means_not_now() -> None:
    """The handshake hangs because the queue of waiting connections is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(8)]
        for connection in waiting:
            connection.setblocking(False)
            with suppress(BlockingIOError):
                connection.connect(address)
        receipt = deliver_to(f"http://127.0.0.1:{address[1]}", 0.3)
        for connection in waiting:
            connection.close()

    assert (receipt.outcome, receipt.is_failing) == (Outcome.NOT_NOW, True)


def test_a_gateway_with_a_trusted_certificate_is_used() -> None:
    """One text after the other, over one connection."""

    async def delivered() -> list[Receipt]:
        async with carrier_to(with_options(gateway.url, window="0s")) as carrier:
            return [await carrier.deliver(TEXT, note_handover) for _ in range(5)]

    with Gateway(context=server_context()) as gateway:
        assert on_loop(delivered()) == [ACCEPTED] * 5

    assert gateway.connections == 1


def test_an_unknown_certificate_is_not_trusted() -> None:
    """The text is not sent."""

    async def delivered() -> Receipt:
        carrier = carrier_at(gateway.url)
        receipt = await carrier.deliver(TEXT, no_handover)
        await carrier.close()
        return receipt

    with Gateway(context=server_context()) as gateway:
        receipt = on_loop(delivered())

    assert receipt.outcome is Outcome.NOT_NOW
    assert "secure" in receipt.detail
    assert gateway.requests == []


@pytest.mark.parametrize("act", [hangs, says(b"")])
def test_a_gateway_that_speaks_no_tls_means_not_now(act: Any) -> None:
    """Not even if it never ends the handshake."""

    async def silent(peer: Peer) -> None:
        await (peer.reader.read() if act is hangs else peer.send(OK))

    with HttpServer(silent) as gateway:
        receipt = deliver_to(gateway.url.replace("http:", "https:"), 0.5)

    assert receipt.outcome is Outcome.NOT_NOW


def with_login(url: str) -> str:
    """Return a URL with a user and a password that must be encoded."""
    return url.replace("//", "//ad%40:pass%3Aw%C3%B6rd@")


def test_user_and_password_of_the_url_become_a_login() -> None:
    """They are decoded, and are no longer a part of the URL (RFC 7617)."""
    with Gateway() as gateway:
        deliver_to(with_login(gateway.url))

    assert gateway.requests[0].headers["Authorization"] == "Basic YWRAOnBhc3M6d8O2cmQ="
    assert gateway.requests[0].headers["Host"] == f"127.0.0.1:{gateway.port}"


@pytest.mark.parametrize(
    "url",
    [
        "http://ada:hush@sms.example",
        "http://ada:hush@192.0.2.1:8080/send",
        "http://localhost?proxy=http://ada:hush@192.0.2.1:3128",
        "http://ada:hush@localhost?proxy=http://192.0.2.1:3128",
        "http://ada@sms.example?insecure=no",
    ],
)
def test_a_password_is_not_sent_in_clear(url: str) -> None:
    """Unless the address says that it may be."""
    with pytest.raises(CarrierUrlError, match="insecure=") as refusal:
        carrier_at(url)

    assert "hush" not in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://ada:hush@sms.example",
        "http://ada:hush@localhost",
        "http://ada:hush@[::1]:8080",
        "http://sms.example",
        "http://ada:hush@sms.example?insecure=yes",
        "https://ada:hush@sms.example?proxy=http://192.0.2.1:3128",
        "https://sms.example?proxy=http://ada:hush@127.0.0.1:3128",
    ],
)
def test_a_password_may_be_sent_where_nobody_listens(url: str) -> None:
    """Over TLS, on this machine, or where somebody has accepted the risk."""
    carrier_at(url)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://sms.example.org",
        "http://",
        "http://sms.example.org:port",
        "http://ada:pass:w/rd@sms.example.org",
        "https://ad%3Aa:pass:w@sms.example.org",
        "https://sms.example.org?proxy=pass:w",
        "https://sms.example.org?proxy=https://ada:pass:w@proxy.example:3128",
        "https://sms.example.org?proxy=http://proxy.example",
        "https://sms.example.org?taken=",
        "https://sms.example.org?taken=a..b",
        "https://sms.example.org?never=a:1||2",
        "https://sms.example.org?id=a%20b",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_in_a_sentence(url: str) -> None:
    """It is refused when the process starts, and never repeats a password."""
    with pytest.raises(CarrierUrlError, match=r"^The .*(address|proxy).*[.…]$") as refusal:
        carrier_at(url)

    assert "pass:w" not in str(refusal.value)


def test_details_and_logs_contain_no_number_text_or_password() -> None:
    """Whatever the gateway answers."""
    for status in (200, 302, 401, 404, 429, 500):
        with capture_logs() as logs, Gateway(status, b"+12025550123 Gr") as gateway:
            receipt = deliver_to(gateway.url.replace("//", "//ada:hush@"))

        for text in (str(logs), receipt.detail):
            assert not any(secret in text for secret in ("2025550123", "Gr", "hush"))


def test_an_email_for_the_sms_carrier_is_a_bug() -> None:
    """Unlike a fault of the network, a bug is raised."""
    email = Email("job-1", 7, "Ada", "ada@example.org", (), (), (), "Hello", "Hello", None, (), {})
    with pytest.raises(TypeError, match="takes no Email"):
        on_loop(carrier_at("http://localhost").deliver(email, no_handover))


@pytest.mark.parametrize(("status", "fault"), [(200, None), (404, None), (401, "login"), (403, "login")])
def test_a_gateway_is_asked_for_faults_without_a_text(status: int, fault: str | None) -> None:
    """Many answer such a request with 404 or 405, which says nothing."""

    async def asked() -> str | None:
        async with carrier_to(gateway.url) as carrier:
            return await carrier.find_fault()

    with Gateway(status, b"") as gateway:
        found = on_loop(asked())

    assert (found is None) if fault is None else (fault in found)
    assert gateway.requests[0].body is None


def test_a_gateway_that_is_not_there_has_a_fault() -> None:
    async def asked() -> str | None:
        async with carrier_to("http://sms.invalid") as carrier:
            return await carrier.find_fault()

    assert "could not be reached" in on_loop(asked())


class Proxy(HttpServer):
    """An HTTP proxy: it opens tunnels, or answers them with a status; it keeps the heads of what it is asked."""

    def __init__(self, status: int = 200) -> None:
        super().__init__(self._answer)
        self.status = status
        self.heads: list[str] = []

    async def _answer(self, peer: Peer) -> None:
        head = (await peer.head()).decode()
        self.heads.append(head)
        method, target, _ = head.split(maxsplit=2)
        if method != "CONNECT":
            await peer.content(head.encode())
            await peer.send(OK)
        elif self.status != 200:
            await peer.send(f"HTTP/1.1 {self.status} No\r\nContent-Length: 0\r\n\r\n".encode())
        else:
            host, _, port = target.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            await peer.send(b"HTTP/1.1 200 Connected\r\n\r\n")
            await asyncio.gather(_copy(peer.reader, writer), _copy(reader, peer.writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


def through(proxy: Proxy, url: str) -> str:
    """Return a URL with this proxy."""
    return with_options(url, proxy=f"http://ada:hush@127.0.0.1:{proxy.port}")


def test_a_proxy_opens_a_tunnel_to_a_secure_gateway() -> None:
    """It gets its login, and sees nothing of the text."""

    async def delivered() -> list[Receipt]:
        async with carrier_to(through(proxy, gateway.url)) as carrier:
            return [await carrier.deliver(TEXT, no_handover) for _ in range(2)]

    with Proxy() as proxy, Gateway(context=server_context()) as gateway:
        assert on_loop(delivered()) == [ACCEPTED] * 2

    (head,) = proxy.heads
    assert head.startswith(f"CONNECT localhost:{gateway.port} ")
    assert "Proxy-Authorization: Basic YWRhOmh1c2g=" in head
    assert "Proxy-Authorization" not in gateway.requests[0].headers
    assert gateway.requests[0].target == "/send?account=1"


def test_a_proxy_gets_a_text_for_a_gateway_that_is_not_secure() -> None:
    """And answers for it."""
    with Proxy() as proxy:
        assert deliver_to(through(proxy, "http://sms.example/send?account=1")) == ACCEPTED

    assert proxy.heads[0].startswith("POST http://sms.example/send?account=1 ")
    assert "Proxy-Authorization: Basic YWRhOmh1c2g=" in proxy.heads[0]


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(407, Outcome.OUR_FAULT), (403, Outcome.OUR_FAULT), (502, Outcome.NOT_NOW), (302, Outcome.NOT_NOW)],
)
def test_a_proxy_that_opens_no_tunnel_means_that_nothing_was_sent(status: int, outcome: Outcome) -> None:
    """Who is at fault is told by its status."""
    with Proxy(status) as proxy, capture_logs() as logs:
        receipt = deliver_to(through(proxy, "https://sms.example/?a=b"))

    assert receipt.outcome is outcome
    assert "hush" not in f"{receipt}{logs}"


def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be used unseen."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    assert deliver(Gateway()) == ACCEPTED


def test_no_cookie_is_kept() -> None:
    """A gateway is asked for each text as for the first."""

    async def delivered() -> None:
        async with carrier_to(gateway.url) as carrier:
            await carrier.deliver(TEXT, no_handover)
            await carrier.deliver(TEXT, no_handover)

    with Gateway(**{"Set-Cookie": "a=b"}) as gateway:
        on_loop(delivered())

    assert "Cookie" not in gateway.requests[1].headers


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (200, b'{"status": 0, "id": "msg-7"}', Outcome.ACCEPTED),
        (200, b'{"status": 1}', Outcome.NOT_NOW),
        (200, b'{"status": 9}', Outcome.OUR_FAULT),
        (200, b'{"status": 7}', Outcome.NEVER),
        (200, b'{"status": 8}', Outcome.UNSURE),
        (200, b"", Outcome.UNSURE),
        (200, b" " * (2 * ANSWER_MAX), Outcome.UNSURE),
        (400, b'{"status": 0}', Outcome.NEVER),
        (400, b'{"status": "again"}', Outcome.ACCEPTED),
        (400, b'{"status": 9}', Outcome.OUR_FAULT),
        (500, b'{"status": 7}', Outcome.NEVER),
        (500, b"{}", Outcome.UNSURE),
    ],
)
def test_rules_come_before_the_status(status: int, body: bytes, outcome: Outcome) -> None:
    """A gateway that has a rule for what was taken has taken nothing without it."""
    rules = {"taken": "status:0", "duplicate": "status:again", "later": "status:1", "fault": "status:9"}
    receipt = deliver(Gateway(status, body), **rules, never="status:7|77")

    assert receipt.outcome is outcome
    assert not receipt.is_failing or status == 500


@pytest.mark.parametrize(("body", "outcome"), [(b"{}", Outcome.ACCEPTED), (b"<html>", Outcome.UNSURE)])
def test_a_gateway_whose_refusals_have_rules_accepts_what_can_be_read(body: bytes, outcome: Outcome) -> None:
    """If it has no rule for what was taken."""
    assert deliver(Gateway(200, body), never="error:1").outcome is outcome
