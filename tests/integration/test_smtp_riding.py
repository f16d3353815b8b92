"""The next envelope goes with the final dot of the message before (RFC 2920), and nobody is the worse for it."""

import asyncio
import socket
from dataclasses import replace
from typing import Any

import pytest

from models.sends.carrier import Email, Outcome, Receipt
from tests.integration.smtp_server import (
    CLOSE,
    EMAIL,
    HANG,
    PIPELINING,
    LoopedCarrier,
    Replies,
    ScriptedServer,
    carrier_to,
    unnoted,
)

ONE = "?connections=1"
FOUR = [replace(EMAIL, job_id=f"job-{n}", recipients=(f"r{n}@example.org",)) for n in range(4)]


def verbs(server: ScriptedServer) -> list[str]:
    return [command.split()[0] for command in server.commands]


@pytest.mark.parametrize("ehlo", [PIPELINING, "250-test\r\n250 SIZE 50000000"])
def test_messages_that_wait_follow_each_other_on_a_connection(ehlo: str) -> None:
    with ScriptedServer({"EHLO": ehlo}) as server, carrier_to(server.url + ONE) as carrier:
        receipts = carrier.deliver_all(FOUR)

    assert {receipt.outcome for receipt in receipts} == {Outcome.ACCEPTED}
    assert verbs(server) == ["EHLO", *["MAIL", "RCPT", "DATA"] * 4, "QUIT"]
    assert [b"<job-%d@" % n in message for n, message in enumerate(server.messages)] == [True] * 4
    assert server.connections == 1


def test_an_envelope_is_read_before_the_reply_to_the_message_before() -> None:
    """A server that reads on before it replies finds the next envelope already there."""
    script: Replies = {"EHLO": PIPELINING, "DOT": ["250 first", "250 Ok"]}
    with WaitingServer(script) as server, carrier_to(server.url + ONE) as carrier:
        receipts = carrier.deliver_all(FOUR[:2])

    assert {receipt.outcome for receipt in receipts} == {Outcome.ACCEPTED}
    assert server.next_command == b"MAIL"


class WaitingServer(ScriptedServer):
    """A server that replies to its first message only when the next command is there."""

    next_command = b""

    def _take_message(self, connection: socket.socket, received: Any) -> bool:
        self._received = received
        return super()._take_message(connection, received)

    def _reply(self, connection: socket.socket, key: str) -> bool:
        if key == "DOT" and not self.next_command:
            self.next_command = self._received.peek(4)[:4]
        return super()._reply(connection, key)


@pytest.mark.parametrize("end", [CLOSE, "what?", HANG])
def test_a_message_behind_one_whose_reply_never_comes_goes_over_a_new_connection(end: str) -> None:
    """Only the one before is unsure: nothing of the other one was handed over, and it is handed over once."""
    script: Replies = {"EHLO": PIPELINING, "DOT": [end, "250 Ok"]}
    with ScriptedServer(script) as server, carrier_to(server.url + ONE, dot_timeout_s=1.5) as carrier:
        first, second = carrier.deliver_all(FOUR[:2])

    assert (first.outcome, second.outcome) == (Outcome.UNSURE, Outcome.ACCEPTED)
    assert [b"<job-%d@" % n in message for n, message in enumerate(server.messages)] == [True, True]
    assert server.connections == 2


@pytest.mark.parametrize("reply", ["451 4.3.0 later", "554 5.7.1 no"])
def test_a_message_behind_a_refused_one_is_taken(reply: str) -> None:
    with (
        ScriptedServer({"EHLO": PIPELINING, "DOT": [reply, "250 Ok"]}) as server,
        carrier_to(server.url + ONE) as carrier,
    ):
        first, second = carrier.deliver_all(FOUR[:2])

    assert first.outcome is (Outcome.NEVER if reply[0] == "5" else Outcome.NOT_NOW)
    assert second.outcome is Outcome.ACCEPTED
    assert server.connections == 1


def test_a_message_behind_a_421_goes_over_a_new_connection() -> None:
    script: Replies = {"EHLO": PIPELINING, "DOT": ["421 4.3.2 shutting down", "250 Ok"]}
    with ScriptedServer(script) as server, carrier_to(server.url + ONE) as carrier:
        first, second = carrier.deliver_all(FOUR[:2])

    assert (first.outcome, second.outcome) == (Outcome.NOT_NOW, Outcome.ACCEPTED)
    assert server.connections == 2


def test_a_message_does_not_wait_behind_a_slow_one_while_there_is_another_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It leaves the connection on which it stands second, and the first one ends when it ends."""
    monkeypatch.setattr("worker.carriers.smtp_connection.PATIENCE_S", 0.05)
    with ScriptedServer({"EHLO": PIPELINING, "DOT": [HANG, "250 Ok"]}) as server:
        with carrier_to(f"{server.url}?connections=2", dot_timeout_s=20) as carrier:
            ended = carrier.run(ended_beside_one_that_hangs(carrier, FOUR[:3]))

        assert {receipt.outcome for receipt in ended} == {Outcome.ACCEPTED}
        assert len(ended) == 2


async def ended_beside_one_that_hangs(carrier: LoopedCarrier, emails: list[Email]) -> list[Receipt]:
    """Deliver emails at the same time, of which the last one that ends is not waited for."""
    tasks = [asyncio.create_task(carrier.carrier.deliver(email, unnoted)) for email in emails]
    ended: list[Receipt] = []
    for next_one in asyncio.as_completed(tasks):
        ended.append(await next_one)
        if len(ended) == len(emails) - 1:
            break
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return ended


@pytest.mark.parametrize("cancelled", [0, 1, 2])
def test_a_cancelled_delivery_leaves_the_others_alone(cancelled: int) -> None:
    """It may be in the middle of its transaction, behind another one, or still wait."""
    with ScriptedServer({"EHLO": PIPELINING}) as server, carrier_to(server.url + ONE) as carrier:

        async def cancel_one() -> list[Receipt | BaseException]:
            tasks: list[asyncio.Task[Receipt]] = []
            noted = 0

            async def handover() -> None:
                nonlocal noted
                noted += 1
                if noted == 1:
                    tasks[cancelled].cancel()
                    await asyncio.sleep(0)

            tasks += [asyncio.create_task(carrier.carrier.deliver(email, handover)) for email in FOUR]
            return await asyncio.gather(*tasks, return_exceptions=True)

        ended = carrier.run(cancel_one())

    outcomes = [each.outcome if isinstance(each, Receipt) else type(each) for each in ended]
    expected = [asyncio.CancelledError if n == cancelled else Outcome.ACCEPTED for n in range(4)]
    assert outcomes == expected
    arrived = [b"".join(server.messages).count(b"<job-%d@" % n) for n in range(4)]
    assert arrived == [0 if n == cancelled else 1 for n in range(4)]


def test_a_message_that_is_cancelled_behind_another_one_ends_the_connection_after_it() -> None:
    """Its envelope was sent, so that nothing else may follow."""
    with (
        ScriptedServer({"EHLO": PIPELINING, "DOT": "250 Ok"}, slow_s=0.05) as server,
        carrier_to(server.url + ONE) as carrier,
    ):

        async def cancel_the_second() -> list[Receipt | BaseException]:
            tasks = [asyncio.create_task(carrier.carrier.deliver(email, unnoted)) for email in FOUR]
            while len(server.messages) < 1:  # noqa: ASYNC110  it is in another thread
                await asyncio.sleep(0.001)
            tasks[1].cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

        ended = carrier.run(cancel_the_second())

    outcomes = [each.outcome if isinstance(each, Receipt) else type(each) for each in ended]
    assert outcomes == [Outcome.ACCEPTED, asyncio.CancelledError, Outcome.ACCEPTED, Outcome.ACCEPTED]
    assert b"<job-1@" not in b"".join(server.messages)


def test_a_failed_handover_leaves_the_others_alone() -> None:
    """The lease was lost, say. The connection is closed, and whoever waits goes over another one."""
    with ScriptedServer({"EHLO": PIPELINING}) as server, carrier_to(server.url + ONE) as carrier:

        async def fail() -> None:
            raise LookupError

        async def all_of_them() -> list[Receipt | BaseException]:
            handovers = [unnoted, fail, unnoted, unnoted]
            return await asyncio.gather(
                *[carrier.carrier.deliver(*each) for each in zip(FOUR, handovers, strict=True)], return_exceptions=True
            )

        ended = carrier.run(all_of_them())

    assert isinstance(ended[1], LookupError)
    assert [each.outcome for each in ended if isinstance(each, Receipt)] == [Outcome.ACCEPTED] * 3
    assert b"<job-1@" not in b"".join(server.messages)


def test_a_bug_in_one_message_is_not_one_in_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if its envelope was to go with the dot of that one."""
    recipients = {"r1@example.org": "r1@example.org>\nDATA"}
    monkeypatch.setattr("worker.carriers.smtp_envelope.wire_address", lambda address: recipients.get(address, address))
    with ScriptedServer({"EHLO": PIPELINING}) as server, carrier_to(server.url + ONE) as carrier:

        async def all_of_them() -> list[Receipt | BaseException]:
            return await asyncio.gather(
                *[carrier.carrier.deliver(email, unnoted) for email in FOUR], return_exceptions=True
            )

        ended = carrier.run(all_of_them())

    assert isinstance(ended[1], ValueError)
    assert [each.outcome for each in ended if isinstance(each, Receipt)] == [Outcome.ACCEPTED] * 3
    assert server.connections == 1


def test_a_message_that_needs_smtputf8_does_not_ride_without_it() -> None:
    """It is written anew when it has the connection to itself."""
    emails = [EMAIL, replace(EMAIL, job_id="job-2", recipients=("jörg@example.org", "r@example.org")), EMAIL]
    with ScriptedServer({"EHLO": PIPELINING}) as server, carrier_to(server.url + ONE) as carrier:
        receipts = carrier.deliver_all(emails)

    assert [receipt.outcome for receipt in receipts] == [Outcome.ACCEPTED] * 3
    assert receipts[1].refused.keys() == {"jörg@example.org"}
    assert len(server.messages) == 3
