"""docs/carriers.md: its example is a carrier that works, and its tables are those of the code."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from models.messages.fields import KINDS
from models.sends.carrier import Outcome, Receipt, Sms
from worker.carrier_urls import COMMON, SCHEMES, check_carrier_urls, parse_carrier_url
from worker.carriers.routes import CARRIERS

PAGE = Path("docs/carriers.md").read_text()
TEXT = Sms(job_id="job-1", org_id=7, to="+12025550123", sender_id=None, text="Grüße", segments=1)
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def example() -> Any:
    """Run the example of the page, and give its class."""
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102  what the page shows
    return names["LineCarrier"]


def says(answer: bytes, *, reads: bool = True) -> Answer:
    """Answer a line, and end."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if reads:
            line = await reader.readline()
            assert line == b'{"to": "+12025550123", "text": "Gr\\u00fc\\u00dfe"}\n'
        writer.write(answer)
        writer.close()

    return serve


async def never_answers(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Keep the connection for longer than anybody waits."""
    await asyncio.sleep(1)
    writer.close()


async def hand_over(answer: Answer, timeout_s: float) -> tuple[Receipt, list[str]]:
    noted, served = [], asyncio.Event()

    async def note() -> None:
        noted.append("noted")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
            with suppress(OSError):
                await writer.wait_closed()
        finally:
            served.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        carrier = example()(parse_carrier_url(f"https://127.0.0.1:{port}?connections=3"), timeout_s)
        assert carrier.capacity == 3
        assert await carrier.find_fault() is None
        receipt = await carrier.deliver(TEXT, note)
        await carrier.close()
        await served.wait()
    return receipt, noted


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (says(b"OK ref-7\n"), Outcome.ACCEPTED),
        (says(b"NO\n"), Outcome.NEVER),
        (says(b"\xff\xfe\n"), Outcome.UNSURE),
        (says(b""), Outcome.UNSURE),
        (says(b"x" * 5_000), Outcome.UNSURE),
    ],
    ids=["ok", "no", "garbage", "nothing", "too long"],
)
def test_the_example_is_a_carrier_that_works(answer: Answer, outcome: Outcome) -> None:
    receipt, noted = asyncio.run(hand_over(answer, 20))

    assert (receipt.outcome, receipt.is_failing) == (outcome, outcome is Outcome.UNSURE)
    assert receipt.reference == ("ref-7" if outcome is Outcome.ACCEPTED else None)
    assert noted == ["noted"]


def test_the_example_ends_whatever_the_other_end_does() -> None:
    receipt, _ = asyncio.run(hand_over(never_answers, 0.2))

    assert (receipt.outcome, receipt.is_failing) == (Outcome.UNSURE, True)


def test_the_page_has_every_option_that_all_carriers_have() -> None:
    [_, rows] = PAGE.split("| option | default | |\n|---|---|---|\n")
    assert set(re.findall(r"^\| `(\w+)` \|", rows.partition("\n\n")[0], re.MULTILINE)) == set(COMMON)


def test_the_page_has_every_outcome() -> None:
    assert re.findall(r"^\| `([A-Z_]+)` \|", PAGE, re.MULTILINE) == [outcome.name for outcome in Outcome]


def test_every_scheme_that_the_settings_take_has_a_carrier() -> None:
    assert {kind: set(CARRIERS[kind]) for kind in KINDS} == {kind: set(SCHEMES[kind]) for kind in KINDS}


def test_the_addresses_of_the_page_can_be_used() -> None:
    urls = dict(re.findall(r'^POSTAGE_(SMTP|SMS)_URL="(.*)"$', PAGE, re.MULTILINE))

    check_carrier_urls("email", urls["SMTP"])
    check_carrier_urls("sms", urls["SMS"])
