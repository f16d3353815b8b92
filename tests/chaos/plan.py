"""What a scenario does: its jobs, and the faults while they run."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.chaos.faults import Fault
from tests.chaos.outside import Json
from tests.chaos.rig import Rig, wait_until

STUCK_S: Final = 30.0
"""How long a fault waits for progress of the jobs before it is done all the same."""


@dataclass(frozen=True)
class Size:
    """How many jobs and faults of a scenario are run."""

    jobs: int
    faults: int
    quiet_s: float = 180.0
    """How long it may take until everything is quiet."""
    lasts_s: float = 2.0
    """How long a fault lasts, or something is measured."""


@dataclass
class Plan:
    """Jobs, and the faults while they run."""

    jobs: Sequence[tuple[str, Json]]
    faults: Sequence[Fault] = ()
    count: int = 0
    """How many faults were done. It is set at once where the faults are not in `faults`."""
    ahead: int = 2_000
    """How many jobs may be enqueued that no carrier has taken yet."""
    pace: float | None = None
    """How many jobs a second are enqueued at most, once `ahead` of them are."""
    copies: int = 1
    producers: int = 1
    """Threads that publish: each waits until the broker has each job on its disk."""
    carry_out: "Callable[[Rig, Plan], set[str]] | None" = None
    """How the jobs are published and the faults done, if not as usual. Returns what the faults leave in doubt."""
    notes: list[Callable[[], str]] = field(default_factory=list)
    """What is to be said once all jobs have ended."""
    wrong: list[str] = field(default_factory=list)
    """What was measured, and is not as it should be."""

    @property
    def messages(self) -> list[str]:
        """The ids of all messages."""
        return [message_id for _, job in self.jobs for message_id in _messages_of(job)]


def _messages_of(job: Json) -> list[str]:
    if "recipients" not in job:
        return [job["job_id"]]
    return [f"{job['job_id']}/{place}" for place in range(len(job["recipients"]))]


def carry_out(rig: Rig, plan: Plan) -> set[str]:
    """Publish the jobs, and do the faults at random moments meanwhile. Returns what they leave in doubt."""
    began, before = time.monotonic(), rig.outside.taken
    published = rig.producer.published

    def may_publish() -> bool:
        count = rig.producer.published - published
        is_too_fast = plan.pace is not None and count > plan.ahead + plan.pace * (time.monotonic() - began)
        return not is_too_fast and count < rig.outside.taken - before + plan.ahead

    rig.producer.publish_meanwhile(plan.jobs, may_publish, plan.copies, threads=plan.producers)
    in_doubt: set[str] = set()
    for moment in sorted(rig.rng.uniform(0.02, 0.9) * len(plan.messages) for _ in plan.faults):
        wait_until(lambda moment=moment: rig.outside.taken - before >= moment, STUCK_S)  # type: ignore[misc]
        time.sleep(rig.rng.uniform(0.0, 0.3))
        in_doubt |= plan.faults[plan.count](rig)
        plan.count += 1
    return in_doubt
