"""Connections that are kept: when one of them turns out to be of no use, and what is bounded by which time."""

import asyncio
import socket
import threading
from contextlib import closing
from dataclasses import replace
from typing import Any, Self

import pytest

from models.sends.carrier import Outcome
from tests.integration import smtp_server
from tests.integration.smtp_server import (
    CLOSE,
    EMAIL,
    HANG,
    LARGE,
    PIPELINING,
    Handovers,
    Replies,
    ScriptedServer,
    carrier_to,
    deliver,
    unnoted,
)
from tests.integration.tls import server_context


@pytest.fixture(autouse=True, params=smtp_server.LOOPS)
def _both_loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each of these tests on both loops."""
    monkeypatch.setattr(smtp_server, "loop_name", request.param)


# -- kept connections that are of no use ------------------------------------------------------------------------------


class Talker(ScriptedServer):
    """A server that says something after it has taken a message."""

    def __init__(self, words: bytes, script: Replies | None = None) -> None:
        self._words = words
        super().__init__({"EHLO": PIPELINING, **(script or {})})

    def _reply(self, connection: socket.socket, key: str) -> bool:
        is_open = super()._reply(connection, key)
        if key == "DOT":
            connection.sendall(self._words)
            self._words = b""
        return is_open


@pytest.mark.parametrize("words", [b"421 4.4.2 idle\r\n", b"250 2.0.0 Ok\r\n", b"2", b"\r\n", b"\x15\x03\x01"])
def test_a_kept_connection_that_has_anything_to_read_is_replaced(words: bytes) -> None:
    """Whatever it is, it is no reply to the next message."""
    with Talker(words) as server, carrier_to(server.url) as carrier:
        first = carrier.deliver(EMAIL)
        carrier.run(asyncio.sleep(0.05))
        second = carrier.deliver(replace(EMAIL, job_id="job-2"))

    assert (first.outcome, second.outcome) == (Outcome.ACCEPTED, Outcome.ACCEPTED)
    assert (server.connections, len(server.messages)) == (2, 2)


@pytest.mark.usefixtures("with_and_without_pipelining")
@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize("end", [CLOSE, "421 4.4.2 idle for too long"])
def test_a_kept_connection_that_ends_before_the_message_is_replaced(step: str, end: str) -> None:
    """At any step: nothing was handed over on it."""
    handovers = Handovers()
    usual = "354 go on" if step == "DATA" else "250 Ok"
    with ScriptedServer({step: [usual, end, usual]}) as server, carrier_to(server.url) as carrier:
        carrier.deliver(EMAIL)
        receipt = carrier.deliver(replace(EMAIL, job_id="job-2"), handovers)

    assert (receipt.outcome, handovers.count) == (Outcome.ACCEPTED, 1)
    assert (server.connections, len(server.messages)) == (2, 2)


@pytest.mark.usefixtures("with_and_without_pipelining")
def test_a_kept_connection_on_which_the_server_is_out_of_step_is_replaced() -> None:
    """503: it expects something else than a new message."""
    with ScriptedServer({"MAIL": ["250 Ok", "503 5.5.1 not now", "250 Ok"]}) as server:
        with carrier_to(server.url) as carrier:
            carrier.deliver(EMAIL)
            assert carrier.deliver(EMAIL).outcome is Outcome.ACCEPTED

        assert server.connections == 2


@pytest.mark.usefixtures("with_and_without_pipelining")
def test_a_new_connection_on_which_the_server_is_out_of_step_is_not_replaced() -> None:
    receipt, server = deliver({"MAIL": "503 5.5.1 not now"})

    assert (receipt.outcome, server.connections) == (Outcome.NEVER, 1)


@pytest.mark.usefixtures("with_and_without_pipelining")
def test_a_kept_connection_that_is_closed_after_not_now_is_replaced() -> None:
    """That was for the connection, and not for the message."""
    script: Replies = {"MAIL": ["250 Ok", "451 4.7.0 no more of you", "250 Ok"], "RSET": CLOSE, "RCPT": ["250 Ok"]}
    with Closing(script) as server, carrier_to(server.url) as carrier:
        carrier.deliver(EMAIL)
        assert carrier.deliver(EMAIL).outcome is Outcome.ACCEPTED

    assert server.connections == 2


class Closing(ScriptedServer):
    """A server that closes the connection after 451."""

    def _reply(self, connection: socket.socket, key: str) -> bool:
        return super()._reply(connection, key) and not self.last_reply.startswith("451")


@pytest.mark.usefixtures("with_and_without_pipelining")
def test_a_kept_connection_that_goes_on_after_not_now_has_said_so_of_the_message() -> None:
    """It is not tried again at once."""
    with ScriptedServer({"MAIL": ["250 Ok", "451 4.7.1 greylisted", "250 Ok"]}) as server:
        with carrier_to(server.url) as carrier:
            carrier.deliver(EMAIL)
            receipt = carrier.deliver(EMAIL)

        assert (receipt.outcome, receipt.is_failing, server.connections) == (Outcome.NOT_NOW, False, 1)


def test_a_kept_connection_whose_server_is_silent_is_replaced() -> None:
    """A firewall may have forgotten it."""
    with ScriptedServer({"MAIL": ["250 Ok", HANG, "250 Ok"]}) as server, carrier_to(server.url, 1.0) as carrier:
        carrier.deliver(EMAIL)
        assert carrier.deliver(EMAIL).outcome is Outcome.ACCEPTED

    assert server.connections == 2


# -- time -------------------------------------------------------------------------------------------------------------


def test_the_final_dot_has_a_limit_of_its_own() -> None:
    """Large relays take a minute or more to reply to it (RFC 5321 section 4.5.3.2.6: 10 minutes)."""
    with Slow({"EHLO": PIPELINING}, 2.5) as server, carrier_to(server.url, 1.0, 60) as carrier:
        assert carrier.deliver(EMAIL).outcome is Outcome.ACCEPTED


class Slow(ScriptedServer):
    """A server that takes its time to take a message."""

    def __init__(self, script: Replies, dot_s: float) -> None:
        self._dot_s = dot_s
        super().__init__(script)

    def _reply(self, connection: socket.socket, key: str) -> bool:
        if key == "DOT":
            self._over.wait(self._dot_s)
        return super()._reply(connection, key)


def test_many_messages_are_with_a_slow_server_at_a_time() -> None:
    """As many as connections are allowed: it takes as long as one of them."""
    emails = [replace(EMAIL, job_id=f"job-{n}", recipients=(f"r{n}@example.org",)) for n in range(100)]
    with Slow({"EHLO": PIPELINING}, 0.5) as server, carrier_to(f"{server.url}?connections=100") as carrier:
        receipts = carrier.deliver_all(emails)

    assert {receipt.outcome for receipt in receipts} == {Outcome.ACCEPTED}
    assert server.connections > 50


def test_a_large_message_that_is_refused_early_is_refused() -> None:
    """The server says so while it is still being sent, and need not read it to its end."""
    with Early("552 5.3.4 too large") as server, carrier_to(server.url) as carrier:
        receipt = carrier.deliver(LARGE)

    assert receipt.outcome is Outcome.NEVER
    assert "552 5.3.4" in receipt.detail


@pytest.mark.parametrize("reply", ["250 2.0.0 Ok", "what?"])
def test_a_large_message_that_is_taken_before_it_is_whole_is_not_handed_over(reply: str) -> None:
    """Its dot was not sent, so nobody has it."""
    with Early(reply) as server, carrier_to(server.url) as carrier:
        receipt = carrier.deliver(LARGE)

    assert (receipt.outcome, receipt.is_failing) == (Outcome.NOT_NOW, True)


class Early(ScriptedServer):
    """A server that replies to a message before it is whole, and reads no more of it."""

    def __init__(self, reply: str) -> None:
        self._early = reply
        super().__init__({"EHLO": PIPELINING})

    def _take_message(self, connection: socket.socket, received: Any) -> bool:
        received.read(100)
        connection.sendall(f"{self._early}\r\n".encode())
        self._over.wait(30)
        return False


def test_a_large_message_arrives_whole() -> None:
    """It is sent in pieces, and the dot after them."""
    text = "".join(f"{n}\n.\n..{'x' * 900}\n" for n in range(400))
    with ScriptedServer({"EHLO": PIPELINING}) as server, carrier_to(server.url) as carrier:
        receipts = carrier.deliver_all([replace(EMAIL, text=text), EMAIL, replace(EMAIL, text=text)])

    assert {receipt.outcome for receipt in receipts} == {Outcome.ACCEPTED}
    expected = text.replace("\n.", "\n..").replace("\n", "\r\n").encode()
    assert sorted(message.endswith(expected) for message in server.messages) == [False, True, True]


def test_an_idle_connection_waits_without_a_timer_for_each_second() -> None:
    """It has one timer, which closes it in the end."""
    with ScriptedServer({}) as server, carrier_to(server.url) as carrier:
        carrier.deliver(EMAIL)
        (connection,) = carrier.carrier._pool._idle
        carrier.run(asyncio.sleep(1.2))
        timer = connection._timer
        carrier.run(asyncio.sleep(1.2))
        assert connection._timer is timer


# -- what is greeted, and how -----------------------------------------------------------------------------------------


def test_the_name_in_the_greeting_can_be_set() -> None:
    with ScriptedServer({}) as server, carrier_to(f"{server.url}?ehlo=mx1.example.org") as carrier:
        carrier.deliver(EMAIL)

    assert server.commands[0] == "EHLO mx1.example.org"


def test_a_server_without_ehlo_is_greeted_with_helo() -> None:
    """And gets one command at a time."""
    with ScriptedServer({"EHLO": "500 what?"}) as server, carrier_to(server.url) as carrier:
        assert carrier.deliver(EMAIL).outcome is Outcome.ACCEPTED

    assert [command.split()[0] for command in server.commands[:2]] == ["EHLO", "HELO"]
    assert "SIZE" not in str(server.commands)


@pytest.mark.parametrize(
    ("greeting", "outcome"), [("554 no SMTP service here", Outcome.OUR_FAULT), ("421 busy", Outcome.NOT_NOW)]
)
def test_what_a_server_that_does_not_greet_means(greeting: str, outcome: Outcome) -> None:
    """554 will always be so: the address is wrong, or ours is on a list (RFC 5321 section 3.1)."""
    receipt, _ = deliver({"GREETING": greeting})

    assert receipt.outcome is outcome


def test_the_second_address_of_a_host_is_tried() -> None:
    """Nothing listens on the first one."""
    with ScriptedServer({}) as server, carrier_to(server.url.replace("127.0.0.1", "localhost")) as carrier:

        async def with_two_addresses() -> Outcome:
            loop = asyncio.get_running_loop()
            port = int(server.url.rpartition(":")[2])
            found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ("127.0.0.2", "127.0.0.1")]

            async def getaddrinfo(*_: Any, **__: Any) -> Any:
                return found

            opener = carrier.carrier._opener
            original, opener._resolve = opener._resolve, getaddrinfo  # type: ignore[method-assign]
            try:
                return (await carrier.carrier.deliver(EMAIL, unnoted)).outcome
            finally:
                opener._resolve = original  # type: ignore[method-assign]
                assert loop.is_running()

        assert carrier.run(with_two_addresses()) is Outcome.ACCEPTED


# -- ends -------------------------------------------------------------------------------------------------------------


def test_a_carrier_that_is_closed_amid_deliveries_lets_them_end() -> None:
    """They close their connections when they end."""
    emails = [replace(EMAIL, job_id=f"job-{n}") for n in range(6)]
    with (
        ScriptedServer({"EHLO": PIPELINING}, slow_s=0.05) as server,
        carrier_to(f"{server.url}?connections=2") as carrier,
    ):

        async def close_amid() -> set[Outcome]:
            tasks = [asyncio.create_task(carrier.carrier.deliver(email, unnoted)) for email in emails]
            await asyncio.sleep(0.02)
            await carrier.carrier.close()
            return {receipt.outcome for receipt in await asyncio.gather(*tasks)}

        assert carrier.run(close_amid()) == {Outcome.ACCEPTED}
        carrier.run(asyncio.sleep(0.1))
        assert not carrier.carrier._pool._idle
        assert not carrier.carrier._pool._open


@pytest.mark.usefixtures("with_and_without_pipelining")
@pytest.mark.parametrize("step", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA", "DOT"])
def test_a_cancelled_delivery_closes_its_connection(step: str) -> None:
    """Wherever it was. Whoever waits for its place gets it."""
    with ScriptedServer(
        {step: [HANG, "220 hi" if step == "GREETING" else smtp_server.USUAL.get(step, "250 Ok")]}
    ) as server:
        with carrier_to(f"{server.url}?connections=1") as carrier:

            async def cancel() -> Outcome:
                first = asyncio.create_task(carrier.carrier.deliver(EMAIL, unnoted))
                await asyncio.sleep(0.1)
                second = asyncio.create_task(carrier.carrier.deliver(replace(EMAIL, job_id="job-2"), unnoted))
                await asyncio.sleep(0)
                first.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await first
                return (await second).outcome

            assert carrier.run(cancel()) is Outcome.ACCEPTED
            assert len(carrier.carrier._pool._open) == 1

        assert server.connections == 2


def test_a_delivery_in_a_thread_of_its_own_loop_works() -> None:
    """As the carriers' loop runs in a worker."""
    outcomes: list[Outcome] = []

    def run(url: str) -> None:
        with closing(carrier_to(url).__enter__()) as carrier:
            outcomes.append(carrier.deliver(EMAIL).outcome)

    with ScriptedServer({}) as server:
        thread = threading.Thread(target=run, args=(server.url,))
        thread.start()
        thread.join()

    assert outcomes == [Outcome.ACCEPTED]


def test_an_encrypted_connection_that_its_server_does_not_close_is_closed_all_the_same() -> None:
    """The server says goodbye, and nothing more."""
    with Deaf() as server, carrier_to(f"smtps://localhost:{server.port}") as carrier:
        assert carrier.run(asyncio.wait_for(carrier.carrier.find_fault(), 20)) is None


class Deaf:
    """A mail server behind TLS that replies to QUIT and keeps the connection open."""

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with server_context().wrap_socket(connection, server_side=True) as encrypted:
            for reply in (b"220 hi\r\n", b"250 deaf\r\n", b"221 bye\r\n"):
                encrypted.sendall(reply)
                if reply[:3] != b"221":
                    encrypted.recv(1000)
            self._over.wait(60)
