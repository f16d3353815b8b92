"""SMTP with and without pipelining (RFC 2920): the outcome is the same."""

import asyncio
import time
from dataclasses import replace

import pytest

from models.sends.carrier import Outcome, Receipt
from tests.integration.smtp_server import (
    CLOSE,
    EMAIL,
    HANG,
    LATER,
    PIPELINING,
    TO_THREE,
    Handovers,
    Replies,
    ScriptedServer,
    carrier_to,
    deliver,
    unnoted,
)
from worker.carriers.smtp_connection import STEPS, SmtpConnection
from worker.carriers.smtp_envelope import SmtpEnvelope
from worker.carriers.smtp_transaction import PIPELINED_MAX, SmtpTransaction

AT_ONCE: Replies = {"MAIL": LATER, "RCPT": LATER, "DATA": "250 Ok\r\n250 Ok\r\n354 go on"}
"""The script of a server that replies nothing before it has read DATA."""


def test_a_server_with_pipelining_gets_all_commands_at_once() -> None:
    """The carrier waits for its replies, and then for the one to the message."""
    receipt, server = deliver({**AT_ONCE, "EHLO": PIPELINING})

    assert receipt == Receipt(Outcome.ACCEPTED, reference="4XyZ12")
    assert [command.split()[0] for command in server.commands] == ["EHLO", "MAIL", "RCPT", "DATA", "QUIT"]


def test_a_server_without_pipelining_gets_one_command_at_a_time() -> None:
    """No command is sent before the reply to the last one is there."""
    receipt, server = deliver(AT_ONCE, timeout_s=0.3)

    assert receipt.outcome is Outcome.NOT_NOW
    assert "RCPT" not in str(server.commands)


@pytest.mark.usefixtures("with_and_without_pipelining")
@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA", "DOT"])
@pytest.mark.parametrize("end", [CLOSE, HANG, "what?"])
def test_a_connection_that_is_cut_sends_the_message_once_or_never(step: str, end: str) -> None:
    """Before the final dot the outcome is not now, after it unsure."""
    receipt, server = deliver({step: ["250 Ok", end] if step == "RCPT" else end}, TO_THREE, timeout_s=1.0)

    assert receipt.outcome is (Outcome.UNSURE if step == "DOT" else Outcome.NOT_NOW)
    assert len(server.messages) == (1 if step == "DOT" else 0)
    assert set(server.fragments) <= {b""}


@pytest.mark.parametrize("step", ["MAIL", "RCPT"])
def test_a_server_that_asks_for_a_refused_message_gets_none(step: str) -> None:
    """Not even an empty one. The next email goes over a new connection (RFC 2920 section 3.1)."""
    handovers = Handovers()
    script: Replies = {"EHLO": PIPELINING, step: ["550 5.7.1 no", "250 Ok"]}
    with ScriptedServer(script) as server, carrier_to(server.url) as carrier:
        receipt = carrier.deliver(EMAIL, handovers)
        assert (handovers.count, server.messages) == (0, [])
        assert carrier.deliver(EMAIL, handovers).outcome is Outcome.ACCEPTED

    assert (receipt.outcome, receipt.recipients_refused) == (Outcome.NEVER, step == "RCPT")
    assert (server.connections, server.fragments, len(server.messages)) == (2, [b""], 1)


@pytest.mark.parametrize("step", ["MAIL", "RCPT"])
@pytest.mark.parametrize(("rest", "connections"), [("503 5.5.1 no", 1), ("421 4.3.2 bye", 2), ("what?", 2), (CLOSE, 2)])
def test_all_replies_are_read_before_the_connection_is_used_again(step: str, rest: str, connections: int) -> None:
    """The replies to a refused email must not be taken for those to the next one."""
    script: Replies = {"EHLO": PIPELINING, step: ["550 no", "250 Ok"], "DATA": [rest, "354 go on"]}
    with ScriptedServer(script) as server, carrier_to(server.url) as carrier:
        assert carrier.deliver(EMAIL, unnoted).outcome is Outcome.NEVER
        assert carrier.deliver(EMAIL, unnoted).outcome is Outcome.ACCEPTED

    assert (server.connections, len(server.messages)) == (connections, 1)


@pytest.mark.usefixtures("with_and_without_pipelining")
def test_each_of_many_recipients_is_named_once() -> None:
    """No more commands are sent at once than the buffers hold."""
    addresses = tuple(f"r{n}@example.org" for n in range(3 * PIPELINED_MAX))
    refused = ["550 5.1.1 unknown" if n % 2 else "250 Ok" for n in range(len(addresses))]
    receipt, server = deliver({"RCPT": refused}, replace(EMAIL, to=addresses, recipients=addresses))

    assert receipt.outcome is Outcome.ACCEPTED
    assert list(receipt.refused) == list(addresses[1::2])
    assert [command for command in server.commands if "RCPT" in command] == [f"RCPT TO:<{to}>" for to in addresses]
    assert len(server.messages) == 1


@pytest.mark.usefixtures("with_and_without_pipelining")
def test_many_slow_replies_do_not_last_beyond_the_deadline() -> None:
    """Each of them comes in time, but all of them together would outlast the lease."""
    addresses = tuple(f"r{n}@example.org" for n in range(20))
    began = time.monotonic()
    with ScriptedServer({}, slow_s=0.2) as server, carrier_to(server.url, 0.3) as carrier:
        receipt = carrier.deliver(replace(EMAIL, to=addresses, recipients=addresses), unnoted)
        took = time.monotonic() - began

    assert receipt.outcome is Outcome.NOT_NOW
    assert took < (STEPS + 1) * 0.3
    assert server.messages == []


def test_a_command_of_two_lines_is_a_bug() -> None:
    """No address can add a command."""
    recipients = {"bob@example.org": "bob@example.org>\nDATA"}
    envelope = SmtpEnvelope("ada@example.org", recipients, {}, b"", utf8=False)
    with carrier_to("smtp://localhost") as carrier:

        async def connection() -> SmtpConnection:
            return SmtpConnection(asyncio.get_running_loop(), 20)

        with pytest.raises(ValueError, match="one line"):
            SmtpTransaction(carrier.run(connection()), envelope, list(recipients))
