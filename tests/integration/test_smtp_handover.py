"""Handovers by SMTP: they begin once for each email, and before the server has anything of the message."""

import asyncio
from dataclasses import replace

import pytest

from models.sends.carrier import Email, Outcome
from tests.integration.smtp_server import (
    CLOSE,
    EMAIL,
    HANG,
    LARGE,
    RESET_INSIDE,
    TO_THREE,
    Handovers,
    Replies,
    ScriptedServer,
    carrier_to,
    deliver,
    real_server,
    unnoted,
)
from worker.carriers.smtp_connection import STEPS


@pytest.mark.usefixtures("with_and_without_pipelining")
def test_a_handover_begins_when_the_server_asks_for_the_message() -> None:
    """Its reply 354 is the last one before the message (RFC 5321 section 4.1.1.4)."""
    moments: list[tuple[str, str, int]] = []
    with ScriptedServer({}) as server, carrier_to(server.url) as carrier:

        async def note() -> None:
            moments.append((server.commands[-1], server.last_reply, len(server.messages)))

        carrier.deliver(EMAIL, note)

    assert moments == [("DATA", "354 go on", 0)]
    assert len(server.messages) == 1


@pytest.mark.usefixtures("with_and_without_pipelining")
def test_each_email_has_one_handover() -> None:
    """However many recipients it has, and whatever was sent over the connection before."""
    handovers = Handovers()
    script: Replies = {"RCPT": ["250 Ok", "550 5.1.1 unknown", "450 4.2.0 greylisted", "250 Ok"]}
    with ScriptedServer(script) as server, carrier_to(server.url) as carrier:
        for count in (1, 2, 3):
            carrier.deliver(TO_THREE, handovers)
            assert handovers.count == count

    assert (server.connections, len(server.messages)) == (1, 3)


@pytest.mark.usefixtures("with_and_without_pipelining")
@pytest.mark.parametrize("end", [CLOSE, "421 4.4.2 idle for too long"])
def test_an_email_that_moves_to_a_new_connection_has_one_handover(end: str) -> None:
    """No handover began on the dead connection."""
    handovers = Handovers()
    with ScriptedServer({"MAIL": ["250 Ok", end, "250 Ok"]}) as server, carrier_to(server.url) as carrier:
        carrier.deliver(EMAIL, unnoted)
        carrier.deliver(EMAIL, handovers)

    assert (server.connections, handovers.count) == (2, 1)


@pytest.mark.usefixtures("with_and_without_pipelining")
@pytest.mark.parametrize("step", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize("reply", ["451 4.3.0 try again", "550 5.7.1 no", "421 4.3.2 shutting down", "what?", CLOSE])
def test_an_email_that_the_server_does_not_ask_for_has_no_handover(step: str, reply: str) -> None:
    """So it can be sent again after a crash."""
    handovers = Handovers()
    deliver({step: reply, "HELO": reply}, handover=handovers)

    assert handovers.count == 0


@pytest.mark.usefixtures("with_and_without_pipelining")
@pytest.mark.parametrize("reply", ["250 2.0.0 Ok", HANG])
def test_no_reply_to_data_but_354_begins_a_handover(reply: str) -> None:
    """Not even a positive one."""
    handovers = Handovers()
    receipt, server = deliver({"DATA": reply}, timeout_s=0.3, handover=handovers)

    assert (receipt.outcome, handovers.count, server.messages) == (Outcome.NOT_NOW, 0, [])


@pytest.mark.parametrize(
    "email",
    [replace(EMAIL, recipients=("jörg@example.org",)), replace(EMAIL, from_address="zoë@example.org")],
    ids=["recipient", "sender"],
)
def test_an_email_with_addresses_that_cannot_be_sent_has_no_handover(email: Email) -> None:
    """The server is not even asked."""
    handovers = Handovers()
    deliver({}, email, handover=handovers)

    assert handovers.count == 0


@pytest.mark.usefixtures("with_and_without_pipelining")
@pytest.mark.parametrize("end", ["451 4.3.0 try again", "550 5.7.1 no", "what?", CLOSE, RESET_INSIDE])
def test_an_email_has_one_handover_whatever_becomes_of_it(end: str) -> None:
    """The handover begins before anybody can know."""
    handovers = Handovers()
    deliver({"DOT": end}, LARGE if end == RESET_INSIDE else EMAIL, handover=handovers)

    assert handovers.count == 1


@pytest.mark.usefixtures("with_and_without_pipelining")
@pytest.mark.parametrize("error", [LookupError, TimeoutError, OSError])
def test_the_server_gets_nothing_of_an_email_if_its_handover_fails(error: type[BaseException]) -> None:
    """The error is raised, even one that looks like a fault of the network, and the connection is closed."""

    async def fail() -> None:
        raise error("not noted")

    with ScriptedServer({}) as server, carrier_to(server.url) as carrier:
        carrier.deliver(EMAIL, unnoted)
        with pytest.raises(error, match=r"^not noted$"):
            carrier.deliver(replace(EMAIL, job_id="job-2"), fail)
        assert carrier.deliver(replace(EMAIL, job_id="job-3"), unnoted).outcome is Outcome.ACCEPTED

    assert server.fragments == [b""]
    assert [b"<job-2@" in message for message in server.messages] == [False, False]
    assert server.connections == 2


def test_a_real_server_drops_an_email_whose_handover_fails() -> None:
    """Without the final dot there is no message (RFC 5321 section 4.1.1.4)."""

    async def fail() -> None:
        raise LookupError

    with real_server() as (mailbox, url), carrier_to(url) as carrier:
        with pytest.raises(LookupError):
            carrier.deliver(EMAIL, fail)
        assert carrier.deliver(replace(EMAIL, job_id="job-2"), unnoted).outcome is Outcome.ACCEPTED

    assert [b"<job-2@" in envelope.content for envelope in mailbox.envelopes] == [True]
    assert mailbox.connections == 2


@pytest.mark.usefixtures("with_and_without_pipelining")
def test_a_handover_that_begins_too_late_means_not_now() -> None:
    """The lease could expire before such a delivery ends, so nothing is handed over."""

    async def take_too_long() -> None:
        await asyncio.sleep((STEPS + 1) * 0.1)

    receipt, server = deliver({}, timeout_s=0.1, handover=take_too_long)

    assert receipt.outcome is Outcome.NOT_NOW
    assert (server.messages, server.fragments) == ([], [b""])
