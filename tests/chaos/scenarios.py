"""The scenarios: jobs, faults while they run, and the verdict once everything is quiet."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.chaos import faults as inject
from tests.chaos.outside import ALL_QUEUES, DROP_AFTER_DOT, DROP_BEFORE_DOT, HANG, HANG_EARLY, NOT_NOW, Json
from tests.chaos.rig import Rig, looks_until
from tests.chaos.verdict import Verdict, judge

STUCK_S: Final = 30.0
"""A fault that waits for progress longer than this is done all the same."""
MOODS: Final[tuple[tuple[str, ...], ...]] = (
    (DROP_BEFORE_DOT,),
    (NOT_NOW, NOT_NOW, NOT_NOW),
    (DROP_AFTER_DOT,),
    (HANG_EARLY,),
    (HANG,),
    (NOT_NOW, DROP_AFTER_DOT),
    (DROP_BEFORE_DOT, NOT_NOW, HANG),
    (HANG_EARLY, NOT_NOW),
)


@dataclass(frozen=True)
class Size:
    """How much of a scenario is run."""

    jobs: int
    faults: int
    quiet_s: float = 180.0
    """How long it may take until everything is quiet."""


@dataclass
class Storm:
    """Jobs, and what happens while they run."""

    jobs: Sequence[tuple[str, Json]]
    faults: Sequence[inject.Fault] = ()
    count: int = 0
    """How many faults that makes, where it is not the number of `faults`."""
    ahead: int = 2_000
    """How many jobs may be enqueued that no carrier has taken."""
    pace: float | None = None
    """Jobs a second, at most, once so many are ahead."""
    copies: int = 1
    unknown_least: int = 0
    unknown_most: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def messages(self) -> list[str]:
        """The ids of all messages."""
        return [message_id for _, job in self.jobs for message_id in _messages_of(job)]


def _messages_of(job: Json) -> list[str]:
    if "recipients" not in job:
        return [job["job_id"]]
    return [f"{job['job_id']}/{place}" for place in range(len(job["recipients"]))]


def worker_killed(rig: Rig, size: Size, prefix: str) -> Storm:
    """Workers are killed at random moments under full load."""
    return Storm(rig.jobs(size.jobs, prefix), [inject.kill_worker] * size.faults)


def prefork_killed(rig: Rig, size: Size, prefix: str) -> Storm:
    """The same with a pool of processes, which are killed one by one too."""
    return worker_killed(rig, size, prefix)


def bulk_killed(rig: Rig, size: Size, prefix: str) -> Storm:
    """The broker, which knows what is to be sent, and then workers are killed while bulk jobs are charged and sent.

    Not in turn: a worker that is started while there is no broker says so and ends, as it should.
    """
    brokers = size.faults // 2
    kills = [inject.kill_valkey] * brokers + [inject.kill_worker] * (size.faults - brokers)
    storm = Storm(rig.bulks(size.jobs, prefix), kills, ahead=500)
    # Each thread may have a batch of its own, and messages of it whose outcome is not yet written.
    storm.unknown_most = storm.faults.count(inject.kill_worker) * (rig.threads - 1) * rig.in_doubt_most
    return storm


def worker_stopped(rig: Rig, size: Size, prefix: str) -> Storm:
    """A worker stands still for longer than lease and visibility timeout, and then goes on."""
    stopped_s = float(str(rig.settings["visibility_timeout_s"])) + 4
    storm = Storm(rig.jobs(size.jobs, prefix), [inject.stop_worker(stopped_s)] * size.faults)
    storm.ahead, storm.pace = max(50, size.jobs // 4), size.jobs / (stopped_s * size.faults + 5)
    return storm


def redis_gone(rig: Rig, size: Size, prefix: str) -> Storm:
    """The broker is killed, started again, stands still, or cuts everybody off."""
    kinds = (inject.kill_valkey, inject.stop_valkey, inject.cut_valkey, inject.restart_valkey)
    return Storm(rig.jobs(size.jobs, prefix), _in_turn(kinds, size.faults), ahead=500)


def postgres_gone(rig: Rig, size: Size, prefix: str) -> Storm:
    """The database is killed and recovers, or is started again."""
    kinds = (inject.kill_postgres, inject.restart_postgres)
    return Storm(rig.jobs(size.jobs, prefix), _in_turn(kinds, size.faults), ahead=500)


def _in_turn(kinds: Sequence[inject.Fault], count: int) -> list[inject.Fault]:
    return [kinds[number % len(kinds)] for number in range(count)]


def delivered_thrice(rig: Rig, size: Size, prefix: str) -> Storm:
    """Every message is delivered three times, and some queue items again as they are."""
    return Storm(rig.jobs(size.jobs, prefix), [inject.republish] * size.faults, copies=3)


def smtp_moody(rig: Rig, size: Size, prefix: str) -> Storm:
    """The mail server hangs, drops the connection before or after the final dot, or says not now."""
    jobs = rig.jobs(size.jobs, prefix)
    emails = [job["job_id"] for task, job in jobs if task == "email.send" and job["sender"] != "fay"]
    moody = rig.rng.sample(emails, min(size.faults, len(emails)))
    storm = Storm(jobs, count=len(moody))
    for number, job_id in enumerate(moody):
        mood = MOODS[number % len(MOODS)]
        rig.outside.mail.will(job_id, *mood)
        # A short message goes out in one piece with its dot: its sender cannot tell before which of them it was cut.
        storm.unknown_most += bool({HANG, DROP_AFTER_DOT, DROP_BEFORE_DOT} & set(mood))
        storm.unknown_least += DROP_BEFORE_DOT not in mood and bool({HANG, DROP_AFTER_DOT} & set(mood))
    return storm


def garbage(rig: Rig, size: Size, prefix: str) -> Storm:
    """Every queue gets what can never be a job, with good jobs between."""

    def push(queue: str) -> inject.Fault:
        def fault(rig: Rig) -> int:
            items = inject.garbage(rig.rng, queue)
            rig.garbage.extend(items)
            items += inject.refusable(queue)
            rig.rng.shuffle(items)
            for item in items:
                rig.redis.lpush(queue, item)
            return 0

        return fault

    rounds = [push(queue) for queue in ALL_QUEUES] * max(1, size.faults // len(ALL_QUEUES))
    return Storm(rig.jobs(size.jobs, prefix), rounds)


SCENARIOS: Final[dict[str, Callable[[Rig, Size, str], Storm]]] = {
    "worker-killed": worker_killed,
    "prefork-killed": prefork_killed,
    "bulk-killed": bulk_killed,
    "worker-stopped": worker_stopped,
    "redis-gone": redis_gone,
    "postgres-gone": postgres_gone,
    "delivered-thrice": delivered_thrice,
    "smtp-moody": smtp_moody,
    "garbage": garbage,
}
LONG: Final[dict[str, Size]] = {
    "worker-killed": Size(20_000, 50, 300),
    "prefork-killed": Size(3_000, 20),
    "bulk-killed": Size(10_000, 20),
    "worker-stopped": Size(2_000, 3),
    "redis-gone": Size(6_000, 40),
    "postgres-gone": Size(6_000, 20),
    "delivered-thrice": Size(3_000, 20),
    "smtp-moody": Size(2_000, 200),
    "garbage": Size(2_000, 12),
}


POOLS: Final = {"prefork-killed": ("--pool", "prefork")}


def run(name: str, folder: Path, seed: int, size: Size, *, options: Sequence[str] = (), **rest: Any) -> Verdict:
    """Run one scenario in a rig of its own, until nothing moves any more."""
    with Rig(folder, seed, options=[*POOLS.get(name, ()), *options], **rest) as rig:
        began = time.monotonic()
        verdict = run_in(rig, name, size)
        rig.wait_until_quiet(size.jobs, size.quiet_s)
        verdict = judge(rig, verdict, quiet=True)
        verdict.seconds = round(time.monotonic() - began, 1)
    verdict.rig = list(dict.fromkeys([*verdict.rig, *rig.broken]))
    return verdict


def run_in(rig: Rig, name: str, size: Size) -> Verdict:
    """Run one scenario in a rig that others may have used before, until all its jobs have an end."""
    began = time.monotonic()
    storm = SCENARIOS[name](rig, size, name)
    starts = sum(worker.starts for worker in rig.workers)
    done, failures = rig.outside.taken, rig.producer.failures
    most = storm.unknown_most + _blow(rig, storm)
    stormed = time.monotonic()
    rig.wait_until_ended(len(storm.messages), name, size.quiet_s)
    ended = time.monotonic()
    verdict = Verdict(name, rig.seed, len(storm.messages), storm.count or len(storm.faults))
    verdict.job_ids = storm.messages
    verdict.unknown_least, verdict.unknown_most = storm.unknown_least, most
    verdict.seconds = round(ended - began, 1)
    verdict.notes = [
        f"{rig.outside.taken - done} messages taken by carriers",
        f"all jobs ended {ended - stormed:.0f} s after the last fault",
        f"{rig.producer.failures - failures} publishes tried again",
        f"{sum(worker.starts for worker in rig.workers) - starts} worker starts",
    ]
    return judge(rig, verdict, quiet=False)


def _blow(rig: Rig, storm: Storm) -> int:
    """Publish the jobs and do the faults at random moments while they run; how many may be unknown by them."""
    began, before = time.monotonic(), rig.outside.taken
    published = rig.producer.published

    def may_publish() -> bool:
        count = rig.producer.published - published
        slow = storm.pace is not None and count > storm.ahead + storm.pace * (time.monotonic() - began)
        return not slow and count < rig.outside.taken - before + storm.ahead

    rig.producer.publish_meanwhile(storm.jobs, may_publish, storm.copies)
    unknown = 0
    for moment in sorted(rig.rng.uniform(0.02, 0.9) * len(storm.messages) for _ in storm.faults):
        looks_until(lambda moment=moment: rig.outside.taken - before >= moment, STUCK_S)  # type: ignore[misc]
        time.sleep(rig.rng.uniform(0.0, 0.3))
        unknown += storm.faults[storm.count](rig)
        storm.count += 1
    return unknown
