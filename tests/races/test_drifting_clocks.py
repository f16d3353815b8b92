"""Workers whose clocks drift apart after their start, some of which are killed during attempts.

The database is on a machine of its own in production, so only the clocks of the processes are set. They note what they
do by the monotonic clock, which is the same for all of them.
"""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
import time_machine

from models.database.engine import utc_now
from models.sends.carrier import Handover, OutboundMessage, Outcome, Receipt
from models.sends.retry_policy import RetryPolicy
from tasks import sending, upkeep
from tasks.context import Context
from tests.fakes import send
from tests.races.racing import Start, buy, email_from, findings, race, save_users, states, worker

LEASE_S = 6.0
LASTS_S = 15.0
POLICY = RetryPolicy(attempts_max=20, base_s=2.0, max_s=2.0, lease_s=LEASE_S)
CLOCKS = {"true": 0, "ahead": 2, "behind": -2}
"""Hours by which the clock of a worker is set."""
PAUSE_S = 0.02


@dataclass
class Diary:
    """What happened when, in a file that outlives a process that is killed."""

    file: Path

    def note(self, event: str, job_id: str) -> None:
        """Add a line, in one write."""
        with self.file.open("ab", buffering=0) as file:
            file.write(f"{event} {job_id} {time.monotonic()}\n".encode())

    def times(self, event: str) -> dict[str, list[float]]:
        """Give the times at which this happened to each job."""
        found: dict[str, list[float]] = {}
        for line in self.file.read_text().splitlines():
            what, job_id, at = line.split()
            if what == event:
                found.setdefault(job_id, []).append(float(at))
        return found


@dataclass
class EventfulCarrier:
    """A carrier that does what the id of a job says, at its first attempt; later ones are accepted at once."""

    diary: Diary
    key_window: ClassVar = timedelta()
    capacity: ClassVar = 4

    async def deliver(self, message: OutboundMessage, handover: Handover) -> Receipt:
        """Be slow, busy, or the end of the process."""
        event, job_id = message.job_id.split("-")[0], message.job_id
        tried = job_id in self.diary.times("tried")
        self.diary.note("tried", job_id)
        if event == "slow" and not tried:
            await asyncio.sleep(LEASE_S / 2)
        if event == "busy" and not tried:
            return Receipt(Outcome.NOT_NOW, "Busy.")
        if event == "killed" and not tried:
            _kill_this_process()
        await handover()
        self.diary.note("took", job_id)
        if event == "doubtful":
            _kill_this_process()
        return Receipt(Outcome.ACCEPTED, reference=job_id)

    async def find_fault(self) -> str | None:
        """Find nothing."""
        return None

    async def close(self) -> None:
        """Do nothing: there is no connection."""


def _kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(LASTS_S)


@pytest.mark.timeout(300)
def test_workers_whose_clocks_drift_apart_neither_lose_nor_take_leases_too_early(
    postgres_url: str, tmp_path: Path
) -> None:
    diary = Diary(tmp_path / "diary")
    diary.file.touch()
    with worker(postgres_url) as context:
        save_users(context, "olga")
        buy(context, "olga", email=10_000)  # more than the fastest machine sends

        race(*((_work, postgres_url, diary, name) for name in CLOCKS))

        found, found_states = findings(context), states(context)
    jobs = {f"{event}-{name}" for event in ("slow", "busy", "killed") for name in CLOCKS}
    quick = {job_id for job_id in diary.times("took") if job_id.startswith("quick")}
    doubtful = {f"doubtful-{name}" for name in CLOCKS}
    tried, took = diary.times("tried"), diary.times("took")
    assert found == []
    assert found_states == {("sent", None): len(jobs | quick), ("unknown", None): len(doubtful)}
    assert Counter({job_id: len(at) for job_id, at in took.items()}) == dict.fromkeys(jobs | quick | doubtful, 1)
    waits = {job_id: at[1] - at[0] for job_id, at in tried.items() if len(at) > 1}
    assert waits.keys() == {job_id for job_id in jobs if not job_id.startswith("slow")}
    assert all(0.9 <= waits[f"busy-{name}"] <= LEASE_S for name in CLOCKS)
    assert all(LEASE_S - 1 <= waits[f"killed-{name}"] <= LASTS_S for name in CLOCKS)


def _work(start: Start, url: str, diary: Diary, name: str) -> None:
    """Do what a worker does whose clock drifts, beside another one with that clock that is killed twice."""
    start()
    with _drifted(name):
        killed = [_forked(url, diary, f"{event}-{name}") for event in ("killed", "doubtful")]
    with worker(url, EventfulCarrier(diary)) as plain:  # type: ignore[arg-type]  it does more than record
        context = _resuming(plain)
        upkeep.sweep(context)  # it has worked before its clock drifts
        with _drifted(name):
            until = time.monotonic() + LASTS_S
            send(context, [email_from(f"busy-{name}", "olga")])
            send(context, [email_from(f"slow-{name}", "olga")])
            number = 0
            while time.monotonic() < until:
                number += 1
                send(context, [email_from(f"quick-{name}-{number}", "olga")])
                upkeep.sweep(context)
                time.sleep(PAUSE_S)
    for pid in killed:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def _drifted(name: str) -> Any:
    return time_machine.travel(utc_now() + timedelta(hours=CLOCKS[name]), tick=True)


def _forked(url: str, diary: Diary, job_id: str) -> int:
    """Fork a worker that sends one job, during which it is killed. Returns its process id."""
    if pid := os.fork():
        return pid
    with worker(url, EventfulCarrier(diary)) as context:  # type: ignore[arg-type]  it does more than record
        send(replace(context, retry_policy=POLICY), [email_from(job_id, "olga")])
    os._exit(0)


def _resuming(plain: Context) -> Context:
    """Give the context of a worker that resumes itself what it has swept."""
    context: Context

    def enqueue(_task: str, given: Sequence[Mapping[str, Any]]) -> None:
        for one in given:
            sending.resume(context, one["org_id"], one["attempts"])

    context = replace(plain, retry_policy=POLICY, enqueue=enqueue)
    return context
