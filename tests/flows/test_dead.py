"""Jobs that die under a real worker: one that kills it, one that its carrier refuses, one that nobody knows."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, Envelope

from models.sends.charges import State
from tests.flows.conftest import OpenHouse
from tests.flows.house import Deployment, Ran, run, until
from tests.flows.outside import Json
from worker.broker import fair_queue
from worker.local.sinks import LoopbackController

pytestmark = pytest.mark.timeout(400)

POISON = "poison@customer.example"


class DeadlyServer:
    """A mail server at which whoever names one recipient dies."""

    def __init__(self) -> None:
        self.kill: Callable[[], None] = lambda: None
        self.taken: list[str] = []
        self._controller = LoopbackController(self)
        self._controller.start()
        self.url = f"smtp://127.0.0.1:{self._controller.port}?starttls=never"

    def close(self) -> None:
        self._controller.stop()

    async def handle_RCPT(  # noqa: N802  aiosmtpd's
        self, server: SMTP, session: object, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address == POISON:
            self.kill()
            return "451 Nobody is there to hear it"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: object, envelope: Envelope) -> str:  # noqa: N802
        self.taken += envelope.rcpt_tos
        return "250 OK"


@pytest.fixture
def deadly() -> Iterator[DeadlyServer]:
    server = DeadlyServer()
    yield server
    server.close()


def postage(house: Deployment, *arguments: str) -> Ran:
    """Run a command with the settings of the house."""
    return run(*arguments, cwd=house.folder, **house.settings)


def dead(house: Deployment, *arguments: str) -> list[Json]:
    """Give the rows of `postage dead`."""
    rows: list[Json] = json.loads(postage(house, "dead", *arguments, "--json").out)["rows"]
    return rows


def job(sender: str, job_id: str, to: str) -> dict[str, Any]:
    return {"job_id": job_id, "sender": sender, "to": to, "subject": "Hello", "text": "Hello"}


def test_a_job_that_kills_its_worker_each_time_is_set_aside(open_house: OpenHouse, deadly: DeadlyServer) -> None:
    """Three workers die over it. Its credits go back, it is kept, and the next worker goes on with all others."""
    times = {"smtp_timeout_s": 1.5, "sms_timeout_s": 1.5, "lease_s": 9, "visibility_timeout_s": 18}
    with open_house(beat=True, smtp_url=deadly.url, **times) as house:
        owner, member = house.people(email=10)
        deadly.kill = lambda: os.kill(house.worker.pid, signal.SIGKILL)
        house.send("email.send", job(member, "poison", POISON))

        for death in range(3):
            until(lambda: not house.worker.runs(), "the job kills its worker")
            assert house.worker.wait() == -signal.SIGKILL
            house.worker = house._start("worker", house._stack)
            house.send("email.send", job(member, f"good-{death}", "ada@customer.example"))
        ended = house.wait_until_final("poison", "good-0", "good-1", "good-2")

        poison = ended.pop("poison")
        assert (poison.state, poison.reason, poison.crashes) == (State.FAILED, "carrier_unavailable", 3)
        assert "may be what kills them" in (poison.detail or "")
        assert {charge.state for charge in ended.values()} == {State.SENT}
        assert deadly.taken == ["ada@customer.example"] * 3
        assert house.remaining(owner)["email"] == 7
        assert [move for move in house.moves(owner) if move[0].startswith("refund")] == [("refund:poison", 1)]
        assert house.worker.runs()
        [letter] = dead(house, "list")
        assert (letter["kind"], letter["key"], letter["person"]) == ("failed", "poison", member)
        assert house.findings() == []


def test_the_dead_are_replayed_to_a_real_worker(open_house: OpenHouse) -> None:
    """A failed mail is sent as another job, and an item that nobody knows comes back to the quarantine."""
    with open_house() as house:
        owner, member = house.people(email=10)
        house.mail.will_say("refused", "550 5.7.1 Not today")
        house.send("email.send", {**job(member, "refused", "ada@customer.example"), "bcc": "eve@customer.example"})
        house.wait_until_final("refused")
        house.producer.app.send_task("email.fly", args=[job(member, "fly", "bob@customer.example")], queue="email")
        until(lambda: house.redis.llen(fair_queue.QUARANTINE) == 1, "the unknown task is quarantined")

        listed = dead(house, "list")
        outcomes = dead(house, "replay", "--all")
        house.wait_until_final("refused:r1")

        assert [(row["kind"], row["task"]) for row in listed] == [
            ("failed", "email.send"),
            ("quarantined", "email.fly"),
        ]
        assert [row["replayed_as"] for row in outcomes] == ["refused:r1", "email"]
        [letter] = house.mail.letters_of("refused:r1")
        assert sorted(letter.recipients) == ["ada@customer.example", "eve@customer.example"]
        assert house.remaining(owner)["email"] == 8
        until(lambda: house.redis.llen(fair_queue.QUARANTINE) == 1, "the unknown task is quarantined again")
        assert house.worker.said.count("quarantined") == 2
        assert "bob@customer.example" not in house.worker.said
        assert house.findings() == []
