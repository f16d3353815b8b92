"""The SMS gateway's carrier against real HTTP servers on this machine."""

import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest
from structlog.testing import capture_logs

from models.sends.carrier import Email, Outcome, Receipt, Sms
from worker.carriers import open_sms
from worker.carriers.null import NullCarrier
from worker.carriers.sms_gateway import ANSWER_MAX, SmsGateway
from worker.settings import SettingsError

CERTIFICATES = Path(__file__).parent.parent / "certificates"
TEXT = Sms(job_id="job-1", to="+12025550123", sender_id="Ada", text="Grüße", segments=1)


class Request(NamedTuple):
    path: str
    headers: Mapping[str, str]
    body: Any


class Gateway(ThreadingHTTPServer):
    """Answers every request with the same status and body, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self, status: int = 200, body: bytes = b'{"id": "msg-7"}', **headers: str) -> None:
        self.status, self.body, self.headers = status, body, headers
        self.requests: list[Request] = []
        self.connections = 0
        super().__init__(("127.0.0.1", 0), Answering)
        self.port: int = self.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/send?account=1"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})

    def handle_error(self, *_: object) -> None:
        """Say nothing: some tests hang up on it."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class Answering(BaseHTTPRequestHandler):
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
        with suppress(OSError):  # whoever does not want to read it all hangs up
            self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Rude:
    """Takes a connection and the beginning of a request, and then says `said` and closes or, told nothing, hangs."""

    def __init__(self, said: bytes | None) -> None:
        self.said = said
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
        line, _ = self._listener.accept()
        with line:
            heard = b""
            while b"segments" not in heard:
                heard += line.recv(1000)
            if self.said is None:
                self._over.wait(30)
            else:
                line.sendall(self.said)


def never() -> None:
    """Fail the test: a carrier that honours the job id has nothing noted before it hands a message over."""
    pytest.fail("A note was made.")


def send(gateway: Gateway | Rude, sms: Sms = TEXT, timeout_s: float = 20) -> Receipt:
    with gateway, closing(SmsGateway(gateway.url, timeout_s)) as carrier:
        return carrier.deliver(sms, never)


def test_a_text_is_posted_as_json_under_its_job_id() -> None:
    """What the gateway gets is what was charged, and the key that makes repeats harmless."""
    gateway = Gateway(status=201)
    receipt = send(gateway)

    assert receipt == Receipt(Outcome.ACCEPTED, reference="msg-7")
    (request,) = gateway.requests
    assert request.path == "/send?account=1"
    assert request.body == {"id": "job-1", "to": "+12025550123", "from": "Ada", "text": "Grüße", "segments": 1}
    assert request.headers["Idempotency-Key"] == "job-1"
    assert request.headers["Content-Type"] == "application/json"
    assert "Transfer-Encoding" not in request.headers


def test_a_text_without_a_sender_says_null() -> None:
    """The gateway then chooses one."""
    gateway = Gateway()
    send(gateway, replace(TEXT, sender_id=None))

    assert gateway.requests[0].body["from"] is None


def test_a_gateway_may_be_asked_again() -> None:
    """It knows the job id."""
    with closing(SmsGateway("http://localhost", 20)) as carrier:
        assert carrier.is_idempotent


@pytest.mark.parametrize(
    "gateway",
    [Gateway, lambda: Gateway(429), lambda: Gateway(404), lambda: Rude(b"")],
    ids=["accepted", "not now", "never", "unsure"],
)
def test_nothing_is_noted_before_a_text_is_handed_over(gateway: Callable[[], Gateway | Rude]) -> None:
    """Whatever becomes of it, the gateway may be asked again."""
    notes: list[str] = []
    with gateway() as asked, closing(SmsGateway(asked.url, 20)) as carrier:
        carrier.deliver(TEXT, lambda: notes.append("note"))

    assert notes == []


def test_one_connection_serves_one_text_after_the_other() -> None:
    """Whatever the answer was."""
    with Gateway() as gateway, closing(SmsGateway(gateway.url, 20)) as carrier:
        for gateway.status in (200, 500, 404, 200):
            carrier.deliver(TEXT, never)

    assert (len(gateway.requests), gateway.connections) == (4, 1)


def test_threads_share_the_gateway_but_no_connection() -> None:
    """Each text of many threads arrives once."""
    texts = [replace(TEXT, job_id=f"job-{n}") for n in range(200)]
    with Gateway() as gateway, closing(SmsGateway(gateway.url, 20)) as carrier, ThreadPoolExecutor(8) as threads:
        receipts = list(threads.map(carrier.deliver, texts, repeat(never)))

    assert {receipt.outcome for receipt in receipts} == {Outcome.ACCEPTED}
    assert sorted(request.body["id"] for request in gateway.requests) == sorted(text.job_id for text in texts)
    assert gateway.connections <= 8


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_some_answers_mean_not_now(status: int) -> None:
    """The gateway is busy or broken and says that it did not take the text."""
    receipt = send(Gateway(status))

    assert receipt.outcome is Outcome.NOT_NOW
    assert str(status) in receipt.detail


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 422])
def test_other_refusals_mean_never(status: int) -> None:
    """Asked again, the answer would be the same."""
    receipt = send(Gateway(status))

    assert receipt.outcome is Outcome.NEVER
    assert str(status) in receipt.detail


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    """The address is a setting: somebody must correct it, and until then texts wait."""
    with Gateway() as elsewhere:
        receipt = send(Gateway(status, Location=elsewhere.url))

    assert receipt.outcome is Outcome.NOT_NOW
    assert "redirects" in receipt.detail
    assert elsewhere.requests == []


@pytest.mark.parametrize(
    "body",
    [b"", b"ok", b"[]", b"{}", b'{"id": null}', b'{"id": true}', b'{"id": ""}', b"\xff", b"[" * 60_000, b'{"id": {}}'],
)
def test_an_answer_without_an_id_is_an_acceptance_without_a_reference(body: bytes) -> None:
    """The status alone decides."""
    assert send(Gateway(200, body)) == Receipt(Outcome.ACCEPTED)


def test_a_reference_is_made_safe() -> None:
    """Numbers become text, control characters become blanks, and what is too long is cut."""
    assert send(Gateway(body=b'{"id": 42}')).reference == "42"
    assert send(Gateway(body=json.dumps({"id": "a\x00\n" + "b" * 1000}).encode())).reference == "a " + "b" * 298


def test_an_endless_answer_is_not_read_to_its_end() -> None:
    """The text is accepted all the same, and the next one is not disturbed."""
    with Gateway(body=b" " * (100 * ANSWER_MAX)) as gateway, closing(SmsGateway(gateway.url, 20)) as carrier:
        assert carrier.deliver(TEXT, never) == Receipt(Outcome.ACCEPTED)
        gateway.body = b'{"id": "msg-8"}'
        assert carrier.deliver(TEXT, never).reference == "msg-8"

    assert gateway.connections == 2


def test_an_answer_that_breaks_off_after_its_status_is_an_answer() -> None:
    """Accepted is accepted."""
    assert send(Rude(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")) == Receipt(Outcome.ACCEPTED)
    assert send(Rude(b"HTTP/1.1 400 No\r\nContent-Length: 100\r\n\r\n{")).outcome is Outcome.NEVER


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 2", b"what?\r\n\r\n"])
def test_a_line_that_breaks_after_the_text_was_sent_leaves_it_unsure(said: bytes) -> None:
    """The gateway had everything."""
    assert send(Rude(said)).outcome is Outcome.UNSURE


def test_a_gateway_that_hangs_leaves_it_unsure() -> None:
    """A late answer and none look the same."""
    assert send(Rude(None), timeout_s=0.3).outcome is Outcome.UNSURE


def test_a_gateway_that_is_not_there_means_not_now() -> None:
    """Nobody listens on the port, so nothing was sent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with closing(SmsGateway(url, 20)) as carrier:
        assert carrier.deliver(TEXT, never).outcome is Outcome.NOT_NOW


def test_a_name_that_is_not_known_means_not_now() -> None:
    """`.invalid` never is (RFC 6761 section 6.4)."""
    with closing(SmsGateway("http://sms.invalid", 20)) as carrier:
        assert carrier.deliver(TEXT, never).outcome is Outcome.NOT_NOW


def test_a_gateway_that_takes_no_connection_in_time_means_not_now() -> None:
    """The handshake hangs: a queue of waiting connections that is full takes no more."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(8)]
        for line in waiting:
            line.setblocking(False)
            with suppress(BlockingIOError):
                line.connect(address)
        with closing(SmsGateway(f"http://127.0.0.1:{address[1]}", 0.3)) as carrier:
            receipt = carrier.deliver(TEXT, never)
        for line in waiting:
            line.close()

    assert receipt.outcome is Outcome.NOT_NOW


def secure(gateway: Gateway) -> Gateway:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATES / "server.pem", CERTIFICATES / "server.key")
    gateway.socket = context.wrap_socket(gateway.socket, server_side=True, do_handshake_on_connect=False)
    gateway.url = f"https://localhost:{gateway.port}/"
    return gateway


def test_a_secure_gateway_is_talked_to_securely() -> None:
    """With a certificate that is trusted."""
    trusting = ssl.create_default_context(cafile=CERTIFICATES / "server.pem")
    with secure(Gateway()) as gateway, closing(SmsGateway(gateway.url, 20, ssl_context=trusting)) as carrier:
        assert carrier.deliver(TEXT, never) == Receipt(Outcome.ACCEPTED, reference="msg-7")


def test_an_unknown_certificate_is_not_trusted() -> None:
    """The text is not sent."""
    gateway = secure(Gateway())
    receipt = send(gateway)

    assert receipt.outcome is Outcome.NOT_NOW
    assert "secure" in receipt.detail
    assert gateway.requests == []


def test_user_and_password_of_the_address_become_a_login() -> None:
    """Percent-decoded, and not a part of the address any more (RFC 7617)."""
    with Gateway() as gateway:
        url = gateway.url.replace("//", "//ad%40:pass%3Aw%C3%B6rd@")
        with closing(SmsGateway(url, 20)) as carrier:
            carrier.deliver(TEXT, never)

    assert gateway.requests[0].headers["Authorization"] == "Basic YWRAOnBhc3M6d8O2cmQ="
    assert gateway.requests[0].headers["Host"] == f"127.0.0.1:{gateway.port}"


def test_neither_details_nor_logs_hold_numbers_texts_or_passwords() -> None:
    """Whatever the gateway says."""
    for status in (200, 302, 401, 404, 429, 500):
        with (
            capture_logs() as logs,
            Gateway(status, b"+12025550123 Gr") as gateway,
            closing(SmsGateway(gateway.url.replace("//", "//ada:hush@"), 20)) as carrier,
        ):
            receipt = carrier.deliver(TEXT, never)

        for told in (str(logs), receipt.detail):
            assert not any(secret in told for secret in ("2025550123", "Gr", "hush"))


def test_an_email_is_a_bug() -> None:
    """Bugs are not the network's, and leave the carrier."""
    email = Email("job-1", "Ada", "ada@example.org", (), (), (), "Hello", "Hello", None, None, {})
    with closing(SmsGateway("http://localhost", 20)) as carrier, pytest.raises(TypeError, match="takes no Email"):
        carrier.deliver(email, never)


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
def test_an_address_that_cannot_be_used_is_refused_with_a_sentence(url: str) -> None:
    """It is refused when the process starts, and never repeats a password."""
    with pytest.raises(
        SettingsError, match=r"^POSTAGE_SMS_URL: The (user in the )?address of the SMS gateway .*\.$"
    ) as refusal:
        open_sms(url, 20)

    assert "pass:w" not in str(refusal.value)


def test_null_accepts_every_text() -> None:
    """For benchmarks. It honours the job id, so nothing is noted."""
    carrier = open_sms("null://", 20)

    assert isinstance(carrier, NullCarrier)
    assert carrier.deliver(TEXT, never) == Receipt(Outcome.ACCEPTED, reference="job-1")
    carrier.close()


def test_a_reset_line_leaves_it_unsure() -> None:
    """A reset after the text went out tells nothing about what became of it."""
    with Rude(b"") as gateway, closing(SmsGateway(gateway.url, 20)) as carrier:
        gateway._listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert carrier.deliver(TEXT, never).outcome is Outcome.UNSURE
