"""The scenarios: jobs, faults while they run, and the verdict once everything has ended."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from tests.chaos import faults as inject
from tests.chaos.at_the_dot import killed_at_the_dot
from tests.chaos.broken import carrier_broken
from tests.chaos.losing import carrier_dies
from tests.chaos.mail import DROP_AFTER_DOT, DROP_BEFORE_DOT, HANG, HANG_EARLY, NOT_NOW
from tests.chaos.outside import ALL_QUEUES
from tests.chaos.plan import Plan, Size, carry_out
from tests.chaos.rates import rate
from tests.chaos.rig import Rig
from tests.chaos.verdict import Verdict, fill_in

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
"""What the mail server does in the attempts of one job."""


def worker_killed(rig: Rig, size: Size, prefix: str) -> Plan:
    """Kill workers at random moments under full load."""
    return Plan(rig.jobs(size.jobs, prefix), [inject.kill_worker] * size.faults)


def prefork_killed(rig: Rig, size: Size, prefix: str) -> Plan:
    """Do the same with a pool of processes, which are also killed one by one."""
    return worker_killed(rig, size, prefix)


def bulk_killed(rig: Rig, size: Size, prefix: str) -> Plan:
    """Kill the broker, and then workers, while bulk jobs are charged and sent.

    They are not killed in turn, for a worker that is started while there is no broker says so and ends, as it should.
    """
    brokers = size.faults // 2
    kills = [inject.kill_valkey] * brokers + [inject.kill_worker] * (size.faults - brokers)
    return Plan(rig.bulks(size.jobs, prefix), kills, ahead=500)


def worker_stopped(rig: Rig, size: Size, prefix: str) -> Plan:
    """Stop a worker for longer than lease and visibility timeout, and then continue it."""
    stopped_s = float(str(rig.settings["visibility_timeout_s"])) + 4
    plan = Plan(rig.jobs(size.jobs, prefix), [inject.stop_worker(stopped_s)] * size.faults)
    plan.ahead, plan.pace = max(50, size.jobs // 4), size.jobs / (stopped_s * size.faults + 5)
    return plan


def redis_gone(rig: Rig, size: Size, prefix: str) -> Plan:
    """Kill, stop or restart the broker, or cut all connections to it."""
    kinds = (inject.kill_valkey, inject.stop_valkey, inject.cut_valkey, inject.restart_valkey)
    return Plan(rig.jobs(size.jobs, prefix), _in_turn(kinds, size.faults), ahead=500)


def postgres_gone(rig: Rig, size: Size, prefix: str) -> Plan:
    """Kill the database, which recovers, or restart it."""
    kinds = (inject.kill_postgres, inject.restart_postgres)
    return Plan(rig.jobs(size.jobs, prefix), _in_turn(kinds, size.faults), ahead=500)


def _in_turn(kinds: Sequence[inject.Fault], count: int) -> list[inject.Fault]:
    return [kinds[number % len(kinds)] for number in range(count)]


def delivered_thrice(rig: Rig, size: Size, prefix: str) -> Plan:
    """Publish every message three times, and put some queue items on their queues again as they are."""
    return Plan(rig.jobs(size.jobs, prefix), [inject.republish] * size.faults, copies=3)


def smtp_moody(rig: Rig, size: Size, prefix: str) -> Plan:
    """Let the mail server hang, drop the connection before or after the final dot, or say not now."""
    jobs = rig.jobs(size.jobs, prefix)
    emails = [job["job_id"] for task, job in jobs if task == "email.send" and job["sender"] != "fay"]
    moody = rig.rng.sample(emails, min(size.faults, len(emails)))
    plan = Plan(jobs, count=len(moody))
    for number, job_id in enumerate(moody):
        rig.outside.mail.will(job_id, *MOODS[number % len(MOODS)])
    return plan


def garbage(rig: Rig, size: Size, prefix: str) -> Plan:
    """Put items that can never be a job on every queue, with good jobs between them."""

    def push(queue: str) -> inject.Fault:
        def fault(rig: Rig) -> set[str]:
            items = inject.garbage(rig.rng, queue)
            rig.garbage.extend(items)
            items += inject.refusable(queue)
            rig.rng.shuffle(items)
            for item in items:
                rig.redis.lpush(queue, item)
            return set()

        return fault

    pushes = [push(queue) for queue in ALL_QUEUES] * max(1, size.faults // len(ALL_QUEUES))
    return Plan(rig.jobs(size.jobs, prefix), pushes)


SCENARIOS: Final[dict[str, Callable[[Rig, Size, str], Plan]]] = {
    "worker-killed": worker_killed,
    "prefork-killed": prefork_killed,
    "bulk-killed": bulk_killed,
    "worker-stopped": worker_stopped,
    "redis-gone": redis_gone,
    "postgres-gone": postgres_gone,
    "delivered-thrice": delivered_thrice,
    "smtp-moody": smtp_moody,
    "carrier-dies": carrier_dies,
    "carrier-broken": carrier_broken,
    "killed-at-the-dot": killed_at_the_dot,
    "rate": rate,
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
    "carrier-dies": Size(10_000, 2, lasts_s=6),
    "carrier-broken": Size(6_000, 150),
    "killed-at-the-dot": Size(1_000, 12),
    "rate": Size(6_000, 0, lasts_s=60),
    "garbage": Size(2_000, 12),
}

WORKERS: Final = {"rate": 3}
POOLS: Final = {"prefork-killed": ("--pool", "prefork")}


def run(name: str, folder: Path, seed: int, size: Size, *, options: Sequence[str] = (), **rest: Any) -> Verdict:
    """Run one scenario in a rig of its own, until nothing more happens."""
    rest |= {"workers": WORKERS[name]} if name in WORKERS else {}
    with Rig(folder, seed, options=[*POOLS.get(name, ()), *options], **rest) as rig:
        began = time.monotonic()
        verdict = run_in(rig, name, size)
        rig.wait_until_quiet(size.jobs, size.quiet_s)
        verdict = fill_in(rig, verdict, quiet=True)
        verdict.seconds = round(time.monotonic() - began, 1)
    verdict.rig = list(dict.fromkeys([*verdict.rig, *rig.broken]))
    return verdict


def run_in(rig: Rig, name: str, size: Size) -> Verdict:
    """Run one scenario in a rig that others may have used before, until all its jobs are final or unknown."""
    rig.use()
    if not rig.wait_until_workers_answer():
        rig.broken.append(f"not all workers were at work before {name}")
    began = time.monotonic()
    plan = SCENARIOS[name](rig, size, name)
    starts = sum(worker.starts for worker in rig.workers)
    taken, failures = rig.outside.taken, rig.producer.failures
    in_doubt = (plan.carry_out or carry_out)(rig, plan)
    last_fault = time.monotonic()
    rig.wait_until_ended(len(plan.messages), name, size.quiet_s)
    ended = time.monotonic()
    verdict = Verdict(name, rig.seed, len(plan.messages), plan.count or len(plan.faults))
    verdict.job_ids = plan.messages
    verdict.in_doubt, verdict.measured = in_doubt, plan.wrong
    verdict.seconds = round(ended - began, 1)
    verdict.notes = [
        f"{rig.outside.taken - taken} messages taken by carriers",
        f"all jobs ended {ended - last_fault:.0f} s after the last fault",
        f"{rig.producer.failures - failures} publishes tried again",
        f"{sum(worker.starts for worker in rig.workers) - starts} worker starts",
        *(note() for note in plan.notes),
    ]
    return fill_in(rig, verdict, quiet=False)
