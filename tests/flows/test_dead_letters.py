"""Jobs that end as dead letters or in the quarantine of a real worker, and how they are replayed."""

import json
import os
import signal
from collections.abc import Callable, Iterator

import pytest
from aiosmtpd.smtp import SMTP, Envelope

from models.sends.charges import State
from tests.flows.deployment import CommandResult, Deploy, Deployment, run, wait_until
from tests.flows.jobs import email_job
from tests.flows.outside import Json
from worker.broker import fair_queue
from worker.local.sinks import LoopbackController

pytestmark = pytest.mark.timeout(400)

POISON = "poison@customer.example"


class CrashingMailServer:
    """A mail server that kills the worker when it names one recipient, and accepts everything else."""

    def __init__(self) -> None:
        self.kill_worker: Callable[[], None] = lambda: None
        self.accepted: list[str] = []
        self._controller = LoopbackController(self)
        self._controller.start()
        self.url = f"smtp://127.0.0.1:{self._controller.port}?starttls=never"

    def close(self) -> None:
        self._controller.stop()

    async def handle_RCPT(  # noqa: N802  aiosmtpd's
        self, server: SMTP, session: object, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address == POISON:
            self.kill_worker()
            return "451 Nobody is there to hear it"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: object, envelope: Envelope) -> str:  # noqa: N802
        self.accepted += envelope.rcpt_tos
        return "250 OK"


@pytest.fixture
def crashing_mail_server() -> Iterator[CrashingMailServer]:
    server = CrashingMailServer()
    yield server
    server.close()


def postage(deployment: Deployment, *arguments: str) -> CommandResult:
    """Run a command with the settings of a deployment."""
    return run(*arguments, cwd=deployment.folder, **deployment.settings)


def postage_dead(deployment: Deployment, *arguments: str) -> list[Json]:
    """Run `postage dead`, and give the rows that it prints."""
    rows: list[Json] = json.loads(postage(deployment, "dead", *arguments, "--json").out)["rows"]
    return rows


def test_a_job_that_crashes_its_worker_each_time_is_set_aside(
    deploy: Deploy, crashing_mail_server: CrashingMailServer
) -> None:
    """Three workers crash over it. Its credits go back, it becomes a dead letter, and other jobs are sent."""
    times = {"smtp_timeout_s": 1.5, "sms_timeout_s": 1.5, "lease_s": 9, "visibility_timeout_s": 18}
    with deploy(beat=True, smtp_url=crashing_mail_server.url, **times) as deployment:
        owner, member = deployment.people(email=10)
        crashing_mail_server.kill_worker = lambda: os.kill(deployment.worker.pid, signal.SIGKILL)
        deployment.send("email.send", email_job("poison", member, to=POISON))

        for number in range(3):
            wait_until(lambda: not deployment.worker.is_running(), "the job crashes its worker")
            assert deployment.worker.wait() == -signal.SIGKILL
            deployment.start_worker()
            deployment.send("email.send", email_job(f"good-{number}", member, to="ada@customer.example"))
        ended = deployment.wait_until_final("poison", "good-0", "good-1", "good-2")

        poison = ended.pop("poison")
        assert (poison.state, poison.reason, poison.crashes) == (State.FAILED, "carrier_unavailable", 3)
        assert "may be what crashes them" in (poison.detail or "")
        assert {charge.state for charge in ended.values()} == {State.SENT}
        assert crashing_mail_server.accepted == ["ada@customer.example"] * 3
        assert deployment.remaining(owner)["email"] == 7
        assert [move for move in deployment.moves(owner) if move[0].startswith("refund")] == [("refund:poison", 1)]
        assert deployment.worker.is_running()
        [letter] = postage_dead(deployment, "list")
        assert (letter["kind"], letter["key"], letter["person"]) == ("failed", "poison", member)
        assert deployment.findings() == []


def test_dead_letters_and_the_quarantine_are_replayed(deploy: Deploy) -> None:
    """A failed email is sent as another job, and a message of an unknown task goes to the quarantine again."""
    with deploy() as deployment:
        owner, member = deployment.people(email=10)
        deployment.mail_server.will_answer("refused", "550 5.7.1 Not today")
        refused = email_job("refused", member, to="ada@customer.example", bcc="eve@customer.example")
        deployment.send("email.send", refused)
        deployment.wait_until_final("refused")
        deployment.producer.app.send_task(
            "email.fly", args=[email_job("fly", member, to="bob@customer.example")], queue="email"
        )
        wait_until(lambda: deployment.redis.zcard(fair_queue.QUARANTINE) == 1, "the unknown task is quarantined")

        listed = postage_dead(deployment, "list")
        outcomes = postage_dead(deployment, "replay", "--all")
        deployment.wait_until_final("refused:r1")

        assert [(row["kind"], row["task"]) for row in listed] == [
            ("failed", "email.send"),
            ("quarantined", "email.fly"),
        ]
        assert [row["replayed_as"] for row in outcomes] == ["refused:r1", "email"]
        [mail] = deployment.mail_server.mails_of("refused:r1")
        assert sorted(mail.recipients) == ["ada@customer.example", "eve@customer.example"]
        assert deployment.remaining(owner)["email"] == 8
        wait_until(lambda: deployment.redis.zcard(fair_queue.QUARANTINE) == 1, "the unknown task is quarantined again")
        assert deployment.worker.output.count("quarantined") == 2
        assert "bob@customer.example" not in deployment.worker.output
        assert deployment.findings() == []
