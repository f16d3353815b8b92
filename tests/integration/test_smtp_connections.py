"""Connections to a mail server: which ones are kept, used again, replaced and closed."""

import asyncio
from dataclasses import replace

import pytest

from models.sends.carrier import Outcome
from tests.integration.smtp_server import (
    CLOSE,
    EMAIL,
    Replies,
    ScriptedServer,
    carrier_to,
    deliver,
    real_server,
    unnoted,
)


def test_one_connection_is_used_for_one_email_after_the_other() -> None:
    """Connecting costs more than sending."""
    with real_server() as (mailbox, url), carrier_to(url) as carrier:
        for _ in range(10):
            assert carrier.deliver(EMAIL, unnoted).outcome is Outcome.ACCEPTED

    assert (len(mailbox.envelopes), mailbox.connections) == (10, 1)


def test_messages_at_the_same_time_do_not_share_a_mail_transaction() -> None:
    """Each email arrives once and whole, over no more connections than are allowed."""
    emails = [replace(EMAIL, job_id=f"job-{n}", recipients=(f"r{n}@example.org",)) for n in range(200)]
    with real_server() as (mailbox, url), carrier_to(f"{url}?connections=8") as carrier:
        receipts = carrier.deliver_all(emails)

    assert {receipt.outcome for receipt in receipts} == {Outcome.ACCEPTED}
    arrived = {envelope.rcpt_tos[0]: envelope.content for envelope in mailbox.envelopes}
    assert len(mailbox.envelopes) == len(emails)
    assert arrived.keys() == {email.recipients[0] for email in emails}
    assert all(f"<{email.job_id}@".encode() in arrived[email.recipients[0]] for email in emails)
    assert mailbox.connections <= 8


def test_a_closed_carrier_ends_its_connections_with_quit() -> None:
    """It does so with the connections that it has kept."""
    _, server = deliver({})

    assert server.commands[-1] == "QUIT"


def test_a_connection_that_was_idle_for_too_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers close idle connections, and firewalls drop them silently."""
    monkeypatch.setattr("worker.carriers.smtp_pool.IDLE_MAX_S", 0.05)
    with ScriptedServer({}) as server, carrier_to(server.url) as carrier:
        carrier.deliver(EMAIL, unnoted)
        carrier.run(asyncio.sleep(0.3))
        assert server.commands[-1] == "QUIT"
        assert carrier.deliver(EMAIL, unnoted).outcome is Outcome.ACCEPTED

    assert server.connections == 2


@pytest.mark.usefixtures("with_and_without_pipelining")
@pytest.mark.parametrize("end", [CLOSE, "421 4.4.2 idle for too long"])
def test_a_kept_connection_that_is_dead_is_replaced(end: str) -> None:
    """Nothing was sent over it, so the email goes over a new one at once."""
    with ScriptedServer({"MAIL": ["250 Ok", end, "250 Ok"]}) as server, carrier_to(server.url) as carrier:
        carrier.deliver(EMAIL, unnoted)
        receipt = carrier.deliver(replace(EMAIL, job_id="job-2"), unnoted)

    assert receipt.outcome is Outcome.ACCEPTED
    assert (server.connections, len(server.messages)) == (2, 2)


@pytest.mark.usefixtures("with_and_without_pipelining")
@pytest.mark.parametrize("end", [CLOSE, "421 4.3.2 shutting down"])
def test_a_new_connection_that_breaks_is_not_replaced(end: str) -> None:
    """A server that is down is not tried for ever."""
    receipt, server = deliver({"MAIL": end})

    assert receipt.outcome is Outcome.NOT_NOW
    assert server.connections == 1


@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA", "DOT"])
def test_a_connection_is_used_again_after_a_refusal(step: str) -> None:
    """RSET makes it ready for the next email (RFC 5321 section 4.1.1.5), and so does the final dot (4.1.1.4)."""
    script: Replies = {step: ["550 5.7.1 no", "354 go on" if step == "DATA" else "250 Ok"]}
    with ScriptedServer(script) as server, carrier_to(server.url) as carrier:
        carrier.deliver(EMAIL, unnoted)
        assert carrier.deliver(EMAIL, unnoted).outcome is Outcome.ACCEPTED

    assert server.connections == 1
    assert ("RSET" in server.commands) == (step != "DOT")


def test_a_connection_that_cannot_be_reset_is_closed() -> None:
    """The next email must not continue in the middle of another mail transaction."""
    with ScriptedServer({"RCPT": ["550 no", "250 Ok"], "RSET": CLOSE}) as server:
        with carrier_to(server.url) as carrier:
            carrier.deliver(EMAIL, unnoted)
            assert carrier.deliver(EMAIL, unnoted).outcome is Outcome.ACCEPTED

        assert server.connections == 2
