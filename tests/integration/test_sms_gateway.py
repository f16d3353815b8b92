"""The carrier for SMS gateways, against real HTTP servers on this machine."""

import json
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from typing import Any, NamedTuple, Self

import pytest
from structlog.testing import capture_logs

from models.sends.carrier import Email, Outcome, Receipt, Sms
from tests.integration.tls import client_context, server_context
from tests.servers import free_port
from worker.carriers import open_sms
from worker.carriers.null import NullCarrier
from worker.carriers.sms_gateway import ANSWER_MAX, SmsGateway
from worker.settings import SettingsError

TEXT = Sms(job_id="job-1", org_id=7, to="+12025550123", sender_id="Ada", text="Grüße", segments=1)


class Request(NamedTuple):
    path: str
    headers: Mapping[str, str]
    body: Any


class Gateway(ThreadingHTTPServer):
    """A gateway that answers every request with the same status and body, and keeps the requests."""

    daemon_threads = True

    def __init__(self, status: int = 200, body: bytes = b'{"id": "msg-7"}', **headers: str) -> None:
        self.status, self.body, self.headers = status, body, headers
        self.requests: list[Request] = []
        self.connections = 0
        super().__init__(("127.0.0.1", 0), GatewayHandler)
        self.port: int = self.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/send?account=1"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})

    def handle_error(self, *_: object) -> None:
        """Print nothing: some tests close the connection early."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class GatewayHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Gateway

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(Request(self.path, dict(self.headers), json.loads(body)))
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):  # a client that does not want to read it all closes the connection
            self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class BrokenGateway:
    """A gateway that reads a request, sends these bytes and closes the connection. Without bytes it hangs."""

    def __init__(self, response: bytes | None) -> None:
        self.response = response
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        self._listener.settimeout(30)
        connection, _ = self._listener.accept()
        with connection:
            received = b""
            while b"segments" not in received:
                received += connection.recv(1000)
            if self.response is None:
                self._over.wait(30)
            else:
                connection.sendall(self.response)


def no_handover() -> None:
    """Fail the test: an idempotent carrier notes no handover."""
    pytest.fail("A handover was noted.")


def carrier_to(url: str, timeout_s: float = 20) -> closing[SmsGateway]:
    """Give a carrier that trusts the certificate of the tests, closed after the block."""
    return closing(SmsGateway(url, timeout_s, ssl_context=client_context()))


def deliver(gateway: Gateway | BrokenGateway, sms: Sms = TEXT, timeout_s: float = 20) -> Receipt:
    """Deliver one text message through a new carrier to a gateway."""
    with gateway, carrier_to(gateway.url, timeout_s) as carrier:
        return carrier.deliver(sms, no_handover)


def test_a_text_is_posted_as_json_under_its_job_id() -> None:
    """The gateway gets what was charged, and the key that makes repetitions harmless."""
    gateway = Gateway(status=201)
    receipt = deliver(gateway)

    assert receipt == Receipt(Outcome.ACCEPTED, reference="msg-7")
    (request,) = gateway.requests
    assert request.path == "/send?account=1"
    assert request.body == {"id": "job-1", "to": "+12025550123", "from": "Ada", "text": "Grüße", "segments": 1}
    assert request.headers["Idempotency-Key"] == "job-1@7"
    assert request.headers["Content-Type"] == "application/json"
    assert "Transfer-Encoding" not in request.headers


def test_the_sender_is_null_if_a_text_has_none() -> None:
    """The gateway chooses one then."""
    gateway = Gateway()
    deliver(gateway, replace(TEXT, sender_id=None))

    assert gateway.requests[0].body["from"] is None


def test_the_sms_carrier_is_idempotent() -> None:
    """The gateway recognizes a job by its id."""
    with carrier_to("http://localhost") as carrier:
        assert carrier.is_idempotent


@pytest.mark.parametrize(
    "gateway",
    [Gateway, lambda: Gateway(429), lambda: Gateway(404), lambda: BrokenGateway(b"")],
    ids=["accepted", "not now", "never", "unsure"],
)
def test_no_handover_is_noted_for_a_text(gateway: Callable[[], Gateway | BrokenGateway]) -> None:
    """Whatever becomes of it, it can be sent again."""
    handovers: list[str] = []
    with gateway() as server, carrier_to(server.url) as carrier:
        carrier.deliver(TEXT, lambda: handovers.append("noted"))

    assert handovers == []


def test_one_connection_is_used_for_one_text_after_the_other() -> None:
    """Whatever the answers are."""
    with Gateway() as gateway, carrier_to(gateway.url) as carrier:
        for gateway.status in (200, 500, 404, 200):
            carrier.deliver(TEXT, no_handover)

    assert (len(gateway.requests), gateway.connections) == (4, 1)


def test_threads_do_not_share_a_connection() -> None:
    """Each of their texts arrives once."""
    texts = [replace(TEXT, job_id=f"job-{n}") for n in range(200)]
    with Gateway() as gateway, carrier_to(gateway.url) as carrier, ThreadPoolExecutor(8) as threads:
        receipts = list(threads.map(carrier.deliver, texts, repeat(no_handover)))

    assert {receipt.outcome for receipt in receipts} == {Outcome.ACCEPTED}
    assert sorted(request.body["id"] for request in gateway.requests) == sorted(text.job_id for text in texts)
    assert gateway.connections <= 8


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_temporary_refusals_mean_not_now(status: int) -> None:
    """The gateway is busy or broken, and says that it did not accept the text."""
    receipt = deliver(Gateway(status))

    assert receipt.outcome is Outcome.NOT_NOW
    assert str(status) in receipt.detail


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 422])
def test_other_refusals_mean_never(status: int) -> None:
    """The answer will always be the same."""
    receipt = deliver(Gateway(status))

    assert receipt.outcome is Outcome.NEVER
    assert str(status) in receipt.detail


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    """The URL is a setting that somebody must correct. Until then the texts wait."""
    with Gateway() as elsewhere:
        receipt = deliver(Gateway(status, Location=elsewhere.url))

    assert receipt.outcome is Outcome.NOT_NOW
    assert "redirects" in receipt.detail
    assert elsewhere.requests == []


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


def test_an_endless_answer_is_not_read_to_its_end() -> None:
    """The text is accepted all the same, and so is the next one."""
    with Gateway(body=b" " * (100 * ANSWER_MAX)) as gateway, carrier_to(gateway.url) as carrier:
        assert carrier.deliver(TEXT, no_handover) == Receipt(Outcome.ACCEPTED)
        gateway.body = b'{"id": "msg-8"}'
        assert carrier.deliver(TEXT, no_handover).reference == "msg-8"

    assert gateway.connections == 2


def test_the_status_counts_even_if_the_answer_breaks_off_after_it() -> None:
    assert deliver(BrokenGateway(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")) == Receipt(Outcome.ACCEPTED)
    assert deliver(BrokenGateway(b"HTTP/1.1 400 No\r\nContent-Length: 100\r\n\r\n{")).outcome is Outcome.NEVER


@pytest.mark.parametrize("response", [b"", b"HTTP/1.1 2", b"what?\r\n\r\n"])
def test_a_connection_that_breaks_after_the_text_means_unsure(response: bytes) -> None:
    """The gateway had everything that it needs to send the text."""
    assert deliver(BrokenGateway(response)).outcome is Outcome.UNSURE


def test_a_gateway_that_hangs_means_unsure() -> None:
    """A late answer cannot be told from none."""
    assert deliver(BrokenGateway(None), timeout_s=0.3).outcome is Outcome.UNSURE


def test_a_gateway_that_is_not_there_means_not_now() -> None:
    """Nothing listens on the port, so nothing was sent."""
    with carrier_to(f"http://127.0.0.1:{free_port()}") as carrier:
        assert carrier.deliver(TEXT, no_handover).outcome is Outcome.NOT_NOW


def test_a_host_name_that_does_not_exist_means_not_now() -> None:
    """No name under `.invalid` does (RFC 6761 section 6.4)."""
    with carrier_to("http://sms.invalid") as carrier:
        assert carrier.deliver(TEXT, no_handover).outcome is Outcome.NOT_NOW


def test_a_gateway_that_takes_no_connection_in_time_means_not_now() -> None:
    """The handshake hangs because the queue of waiting connections is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(8)]
        for connection in waiting:
            connection.setblocking(False)
            with suppress(BlockingIOError):
                connection.connect(address)
        with carrier_to(f"http://127.0.0.1:{address[1]}", 0.3) as carrier:
            receipt = carrier.deliver(TEXT, no_handover)
        for connection in waiting:
            connection.close()

    assert receipt.outcome is Outcome.NOT_NOW


def secure(gateway: Gateway) -> Gateway:
    """Give the gateway with HTTPS."""
    gateway.socket = server_context().wrap_socket(gateway.socket, server_side=True, do_handshake_on_connect=False)
    gateway.url = f"https://localhost:{gateway.port}/"
    return gateway


def test_a_gateway_with_a_trusted_certificate_is_used() -> None:
    with secure(Gateway()) as gateway, carrier_to(gateway.url) as carrier:
        assert carrier.deliver(TEXT, no_handover) == Receipt(Outcome.ACCEPTED, reference="msg-7")


def test_an_unknown_certificate_is_not_trusted() -> None:
    """The text is not sent."""
    with secure(Gateway()) as gateway, closing(SmsGateway(gateway.url, 20)) as carrier:
        receipt = carrier.deliver(TEXT, no_handover)

    assert receipt.outcome is Outcome.NOT_NOW
    assert "secure" in receipt.detail
    assert gateway.requests == []


def test_user_and_password_of_the_url_become_a_login() -> None:
    """They are decoded, and are no longer a part of the URL (RFC 7617)."""
    with Gateway() as gateway:
        url = gateway.url.replace("//", "//ad%40:pass%3Aw%C3%B6rd@")
        with carrier_to(url) as carrier:
            carrier.deliver(TEXT, no_handover)

    assert gateway.requests[0].headers["Authorization"] == "Basic YWRAOnBhc3M6d8O2cmQ="
    assert gateway.requests[0].headers["Host"] == f"127.0.0.1:{gateway.port}"


def test_details_and_logs_contain_no_number_text_or_password() -> None:
    """Whatever the gateway answers."""
    for status in (200, 302, 401, 404, 429, 500):
        with (
            capture_logs() as logs,
            Gateway(status, b"+12025550123 Gr") as gateway,
            carrier_to(gateway.url.replace("//", "//ada:hush@")) as carrier,
        ):
            receipt = carrier.deliver(TEXT, no_handover)

        for text in (str(logs), receipt.detail):
            assert not any(secret in text for secret in ("2025550123", "Gr", "hush"))


def test_an_email_for_the_sms_carrier_is_a_bug() -> None:
    """Unlike a fault of the network, a bug is raised."""
    email = Email("job-1", 7, "Ada", "ada@example.org", (), (), (), "Hello", "Hello", None, None, {})
    with carrier_to("http://localhost") as carrier, pytest.raises(TypeError, match="takes no Email"):
        carrier.deliver(email, no_handover)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://sms.example.org",
        "sms.example.org",
        "http://",
        "http://sms.example.org:port",
        "http://ada:pass:w/rd@sms.example.org",
        "http://ad%3Aa:pass:w@sms.example.org",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_in_a_sentence(url: str) -> None:
    """It is refused when the process starts, and never repeats a password."""
    with pytest.raises(
        SettingsError, match=r"^POSTAGE_SMS_URL: The (user in the )?address of the SMS gateway .*\.$"
    ) as refusal:
        open_sms(url, 20)

    assert "pass:w" not in str(refusal.value)


def test_the_null_carrier_accepts_every_text() -> None:
    """It is for benchmarks. It is idempotent, so no handover is noted."""
    carrier = open_sms("null://", 20)

    assert isinstance(carrier, NullCarrier)
    assert carrier.deliver(TEXT, no_handover) == Receipt(Outcome.ACCEPTED, reference="job-1")
    carrier.close()


def test_a_connection_that_is_reset_after_the_text_means_unsure() -> None:
    """A reset does not tell what became of the text."""
    with BrokenGateway(b"") as gateway, carrier_to(gateway.url) as carrier:
        gateway._listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert carrier.deliver(TEXT, no_handover).outcome is Outcome.UNSURE
