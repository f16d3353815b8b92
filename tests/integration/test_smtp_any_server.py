"""The SMTP carrier and any server: whatever it replies and whenever it breaks, no receipt says more than is certain."""

import asyncio
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from models.sends.carrier import Email, Outcome, Receipt
from tests.integration.smtp_server import EMAIL, LOOPS
from worker.carrier_urls import parse_carrier_url
from worker.carriers.smtp import SmtpCarrier

CLOSE, RESET, HANG, TWICE = "close", "reset", "hang", "twice"
TROUBLE = {
    "GREETING": ["421 4.7.0 too many connections", "554 no", "what?", CLOSE],
    "MAIL": ["451 4.3.0 local error", "550 5.1.8 no", "503 5.5.1 no", "530 5.7.0 log in", "421 4.3.2 bye", CLOSE],
    "RCPT": ["450 4.2.0 later", "452 4.5.3 too many", "552 too many", "550 5.1.1 no", "421 4.3.2 bye", CLOSE],
    "DATA": ["354 go on\r\n250 taken", "250 ok", "451 4.3.0 later", "554 5.7.1 no", "421 4.3.2 bye"],
    "DOT": ["451 4.3.0 later", "554 5.7.1 no", "421 4.3.2 bye", "what?", CLOSE, RESET, HANG, TWICE],
    "RSET": ["500 what", CLOSE],
}
ANYWHERE = ["250-a\r\n250 b", "250-a\r\n550 b", "354 go on", "250x", "2", RESET, HANG, TWICE]


@dataclass
class AnyServer:
    """A server whose replies are drawn, and who knows what it has said to whom."""

    draws: Random
    trouble: float
    """How often a reply is not the usual one."""
    pipelining: bool
    accepted: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often it took a message for a recipient: it got the final dot, and its reply was positive."""
    doubtful: set[tuple[str, str]] = field(default_factory=set)
    """Where it got the final dot and replied something that nobody can understand, or nothing."""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def draw(self, step: str) -> str:
        if self.draws.random() < self.trouble:
            return self.draws.choice(ANYWHERE if self.draws.random() < 0.1 else TROUBLE[step])
        return "354 go on" if step == "DATA" else "250 2.0.0 ok" if step != "GREETING" else "220 hi"

    def reply_to(self, verb: str) -> str:
        if verb == "EHLO":
            return "250-x\r\n250-SIZE\r\n250 PIPELINING" if self.pipelining else "250-x\r\n250 SIZE"
        return "221 bye" if verb == "QUIT" else self.draw(verb)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._talk(reader, writer)
        writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not await self._say(writer, self.draw("GREETING")):
            return
        named: list[str] = []
        while line := (await reader.readline()).decode():
            verb = line[:4].upper().strip()
            reply = self.reply_to(verb)
            if verb == "MAIL":
                named = []
            if verb == "RCPT" and reply.startswith(("250 ", "250-")):
                named.append(re.findall("<(.*)>", line)[0])
            if not await self._say(writer, reply) or verb == "QUIT":
                return
            if verb == "DATA" and reply.startswith("354"):
                content = (await reader.readuntil(b"\r\n.\r\n")).decode()
                job = re.findall(r"Message-ID: <([^@]*)@", content)[0]
                reply = self.draw("DOT")
                self._note(job, named, reply)
                if not await self._say(writer, reply):
                    return

    def _note(self, job: str, named: list[str], reply: str) -> None:
        for recipient in named:
            if reply.startswith("250") or reply == TWICE:
                self.accepted[job, recipient] += 1
            elif not reply.startswith(("4", "5")):
                self.doubtful.add((job, recipient))

    async def _say(self, writer: asyncio.StreamWriter, reply: str) -> bool:
        match reply:
            case "close":
                return False
            case "reset":
                writer.transport.abort()
                return False
            case "hang":
                await asyncio.sleep(30)
                return False
            case "twice":
                reply = "250 2.0.0 ok\r\n250 2.0.0 ok"
        writer.write(f"{reply}\r\n".encode())
        await writer.drain()
        return not reply.startswith("421")


async def deliver_all(server: AnyServer, emails: list[Email], options: str) -> list[tuple[Receipt, int]]:
    """Deliver emails at the same time to the server; returns each receipt, and how many handovers were noted for it."""
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    url = parse_carrier_url(f"smtp://127.0.0.1:{port}?starttls=never&{options}")
    carrier = SmtpCarrier(url, timeout_s=0.2, dot_timeout_s=0.2)

    async def one(email: Email) -> tuple[Receipt, int]:
        handovers = 0

        async def handover() -> None:
            nonlocal handovers
            handovers += 1
            assert not any(job == email.job_id for job, _ in server.accepted)
            await asyncio.sleep(0.001)

        return await carrier.deliver(email, handover), handovers

    try:
        async with asyncio.timeout(60):
            return await asyncio.gather(*map(one, emails))
    finally:
        await carrier.close()
        listening.close()
        for task in server.tasks:
            task.cancel()
        await asyncio.gather(*server.tasks, return_exceptions=True)
        await asyncio.sleep(0)


def check(server: AnyServer, email: Email, receipt: Receipt, handovers: int) -> None:
    """Compare a receipt with what the server knows."""
    for recipient in email.recipients:
        asked = (email.job_id, recipient)
        named = [name for name in ("refused", "deferred", "unsure") if recipient in getattr(receipt, name)]
        assert len(named) <= 1
        assert server.accepted[asked] <= 1, "nobody gets an email twice"
        is_said_to_be_taken = receipt.outcome is Outcome.ACCEPTED and not named
        may_be_taken = named == ["unsure"] or (receipt.outcome is Outcome.UNSURE and not named)
        if server.accepted[asked]:
            assert is_said_to_be_taken or may_be_taken
        if is_said_to_be_taken:
            assert server.accepted[asked]
        if asked in server.doubtful:
            assert may_be_taken
    assert handovers <= 1
    if receipt.outcome in (Outcome.ACCEPTED, Outcome.UNSURE):
        assert handovers == 1
    if receipt.outcome is Outcome.ACCEPTED:
        assert not (receipt.refused.keys() | receipt.deferred.keys() | receipt.unsure.keys()) >= set(email.recipients)
    else:
        assert receipt.detail
        assert receipt.unsure == {}
    assert receipt.sanitized() == receipt


@pytest.mark.parametrize("loop", LOOPS)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10**6),
    trouble=st.sampled_from([0.05, 0.1, 0.3]),
    emails=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    pipelining=st.booleans(),
    options=st.sampled_from(["connections=1", "connections=2", "recipients=2", "connections=1&messages=2"]),
)
def test_no_receipt_says_more_than_is_certain(
    *, loop: str, seed: int, trouble: float, emails: list[int], pipelining: bool, options: str
) -> None:
    """Who is said to have it has it, who may have it is not called refused or deferred, and nobody has it twice."""
    server = AnyServer(Random(seed), trouble, pipelining)
    messages = [
        replace(EMAIL, job_id=f"job-{n}", recipients=tuple(f"r{n}.{r}@example.org" for r in range(count)))
        for n, count in enumerate(emails)
    ]
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        receipts = runner.run(deliver_all(server, messages, options))
    for message, (receipt, handovers) in zip(messages, receipts, strict=True):
        note(f"{message.job_id}: {receipt}")
        check(server, message, receipt, handovers)
