"""Servers that are broken in every way that was thought of: each gives an outcome, and holds up nobody else."""

import asyncio
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from models.sends.carrier import Email, Receipt
from tests.broken_smtp import BROKEN, Broken, broken_server, good, hangs
from tests.integration.smtp_server import EMAIL, LARGE, carrier_to, unnoted

TIMEOUT_S = 0.25
BESIDE_S = 2.0
"""The same where a good connection has to do all it does in time, on a busy machine too."""


def url_for(broken: Broken, url: str) -> str:
    return f"{url}?connections=2&starttls={'require' if broken.needs_tls else 'never'}"


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_server_gives_an_outcome(kind: str) -> None:
    """Nothing is raised, and nothing lasts beyond the limits."""
    broken = BROKEN[kind]
    email = LARGE if "hears nothing" in kind else EMAIL
    with (
        broken_server(broken.talk) as server,
        carrier_to(url_for(broken, server.url), TIMEOUT_S, TIMEOUT_S) as carrier,
    ):
        receipt = carrier.run(asyncio.wait_for(carrier.carrier.deliver(email, unnoted), 30))

    assert (receipt.outcome, receipt.is_failing) == (broken.outcome, broken.is_failing)
    assert receipt.sanitized() == receipt


@pytest.mark.parametrize("kind", [kind for kind in BROKEN if not BROKEN[kind].needs_tls])
def test_a_broken_connection_holds_up_no_other_message(kind: str) -> None:
    """Another message of the same carrier is accepted over a connection of its own."""
    broken = BROKEN[kind]
    email = LARGE if "hears nothing" in kind else EMAIL

    with (
        broken_server(broken.talk, broken_connections=1) as server,
        carrier_to(url_for(broken, server.url), BESIDE_S, BESIDE_S) as carrier,
    ):

        async def both() -> list[Receipt]:
            first = asyncio.create_task(carrier.carrier.deliver(email, unnoted))
            await asyncio.to_thread(server.is_tried.wait, 30)
            second = asyncio.create_task(carrier.carrier.deliver(replace(EMAIL, job_id="job-2"), unnoted))
            return [await first, await second]

        receipts = carrier.run(asyncio.wait_for(both(), 30))

    assert receipts[1].outcome == "accepted"
    # A message for which there is no connection takes that of another one, as soon as it is free.
    assert receipts[0].outcome in (broken.outcome, "accepted" if kind == "takes no connection" else broken.outcome)


def test_many_messages_go_on_beside_one_that_hangs() -> None:
    """They end while the server still says nothing to the first one."""
    emails = [replace(EMAIL, job_id=f"job-{n}") for n in range(50)]
    with broken_server(hangs, 1) as server, carrier_to(f"{server.url}?connections=2", 5) as carrier:

        async def all_of_them() -> bool:
            first = asyncio.create_task(carrier.carrier.deliver(EMAIL, unnoted))
            await asyncio.to_thread(server.is_tried.wait, 30)
            receipts = await asyncio.gather(*[carrier.carrier.deliver(email, unnoted) for email in emails])
            assert {receipt.outcome for receipt in receipts} == {"accepted"}
            is_over = first.done()
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            return is_over

        assert not carrier.run(all_of_them())


@pytest.mark.parametrize("kind", ["speaks HTTP at GREETING", "cannot be decoded", "says random bytes"])
def test_logs_have_nothing_of_what_a_broken_server_says(kind: str) -> None:
    with (
        broken_server(BROKEN[kind].talk) as server,
        carrier_to(url_for(BROKEN[kind], server.url), TIMEOUT_S) as carrier,
        capture_logs() as logs,
    ):
        carrier.deliver(EMAIL)

    assert "html" not in str(logs)
    assert str(logs).isprintable()


def test_a_good_server_is_good() -> None:
    """What the others are compared with."""
    with broken_server(good) as server, carrier_to(server.url) as carrier:
        emails: list[Email] = [replace(EMAIL, job_id=f"job-{n}") for n in range(20)]
        assert {receipt.outcome for receipt in carrier.deliver_all(emails)} == {"accepted"}
