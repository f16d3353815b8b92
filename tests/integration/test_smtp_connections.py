"""Connections to a mail server: which ones are kept, used again, replaced and closed."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import repeat

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
from worker.carriers.smtp import KEPT_MAX, SmtpCarrier


def test_one_connection_is_used_for_one_email_after_the_other() -> None:
    """Connecting costs more than sending."""
    with real_server() as (mailbox, url), carrier_to(url) as carrier:
        for _ in range(10):
            assert carrier.deliver(EMAIL, unnoted).outcome is Outcome.ACCEPTED

    assert (len(mailbox.envelopes), mailbox.connections) == (10, 1)


def test_threads_do_not_share_a_mail_transaction() -> None:
    """Each of their emails arrives once and whole, over no more connections than there are threads."""
    emails = [replace(EMAIL, job_id=f"job-{n}", recipients=(f"r{n}@example.org",)) for n in range(200)]
    with real_server() as (mailbox, url), carrier_to(url) as carrier, ThreadPoolExecutor(8) as threads:
        receipts = list(threads.map(carrier.deliver, emails, repeat(unnoted)))

    assert {receipt.outcome for receipt in receipts} == {Outcome.ACCEPTED}
    arrived = {envelope.rcpt_tos[0]: envelope.content for envelope in mailbox.envelopes}
    assert len(mailbox.envelopes) == len(emails)
    assert arrived.keys() == {email.recipients[0] for email in emails}
    assert all(f"<{email.job_id}@".encode() in arrived[email.recipients[0]] for email in emails)
    assert mailbox.connections <= 8


def test_connections_beyond_the_limit_are_closed_with_quit() -> None:
    """However many threads there were, the pool is bounded."""
    together = threading.Barrier(KEPT_MAX + 3)

    def connect(carrier: SmtpCarrier) -> None:
        connection = carrier._connect(float("inf"))
        together.wait(30)
        carrier._keep(connection)

    with ScriptedServer({}) as server, carrier_to(server.url) as carrier:
        with ThreadPoolExecutor(KEPT_MAX + 3) as threads:
            list(threads.map(connect, [carrier] * (KEPT_MAX + 3)))
        assert len(carrier._idle) == KEPT_MAX

    assert server.commands.count("quit") == KEPT_MAX + 3


def test_a_closed_carrier_ends_its_connections_with_quit() -> None:
    """It does so with the connections that it has kept."""
    _, server = deliver({})

    assert server.commands[-1] == "quit"


def test_a_connection_that_was_idle_for_too_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers close idle connections, and firewalls drop them silently."""
    with ScriptedServer({}) as server, carrier_to(server.url) as carrier:
        carrier.deliver(EMAIL, unnoted)
        monkeypatch.setattr("worker.carriers.smtp.IDLE_MAX_S", -1.0)
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
    """RSET makes it ready for the next email (RFC 5321 section 4.1.1.5)."""
    script: Replies = {step: ["550 5.7.1 no", "354 go on" if step == "DATA" else "250 Ok"]}
    with ScriptedServer(script) as server, carrier_to(server.url) as carrier:
        carrier.deliver(EMAIL, unnoted)
        assert carrier.deliver(EMAIL, unnoted).outcome is Outcome.ACCEPTED

    assert server.connections == 1
    assert "rset" in server.commands


def test_a_connection_that_cannot_be_reset_is_closed() -> None:
    """The next email must not continue in the middle of another mail transaction."""
    with ScriptedServer({"RCPT": ["550 no", "250 Ok"], "RSET": CLOSE}) as server:
        with carrier_to(server.url) as carrier:
            carrier.deliver(EMAIL, unnoted)
            assert carrier.deliver(EMAIL, unnoted).outcome is Outcome.ACCEPTED

        assert server.connections == 2
