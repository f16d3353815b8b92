"""Workers that are killed with a message at the final dot: the mail server says when."""

import queue
import time
from collections import Counter
from typing import Final

from tests.chaos.mail import KILL_AMID, KILL_ANSWERED, KILL_ASKED, KILLS, Moment
from tests.chaos.plan import Plan, Size
from tests.chaos.rig import Rig

LONG_TEXT: Final = "A line of a long text, which does not come in one piece.\n" * 20_000
LATER_S: Final = 0.03
"""How long after a moment a worker is killed at most, in seconds, where it goes on meanwhile."""


def killed_at_the_dot(rig: Rig, size: Size, prefix: str) -> Plan:
    """Kill workers between the note of a handover and the final dot, and between the dot and the answer.

    A mail server kills when it has asked for a message, so perhaps before the worker has noted the handover; when a
    part of a long message has come, so after that and before the dot; when it has the whole message, which it does not
    answer; and when it has answered, so perhaps before the worker has settled what it was told.
    """
    jobs = rig.jobs(size.jobs, prefix)
    emails = [job for task, job in jobs if task == "email.send" and job["sender"] != "fay"]
    for number, job in enumerate(rig.rng.sample(emails, size.faults)):
        kill = KILLS[number % len(KILLS)]
        rig.outside.mail.will(job["job_id"], kill)
        if kill == KILL_AMID:
            job["text"] = LONG_TEXT
    kills: Counter[str] = Counter()

    def kill_at_moments(rig: Rig, plan: Plan) -> set[str]:
        before = rig.outside.taken
        rig.producer.publish_meanwhile(jobs, lambda: rig.producer.published < rig.outside.taken - before + plan.ahead)
        in_doubt: set[str] = set()
        until = time.monotonic() + size.quiet_s
        while rig.ended_jobs(prefix) < len(jobs) and time.monotonic() < until:
            try:
                moment = rig.outside.mail.moments.get(timeout=0.2)
            except queue.Empty:
                continue
            in_doubt |= _kill(rig, moment)
            kills[moment.kill] += 1
        plan.count = kills.total()
        return in_doubt

    plan = Plan(jobs, carry_out=kill_at_moments)
    plan.notes.append(lambda: ", ".join(f"{count} {kill.removeprefix('kill ')}" for kill, count in kills.items()))
    return plan


def _kill(rig: Rig, moment: Moment) -> set[str]:
    if moment.kill in (KILL_ASKED, KILL_ANSWERED):
        time.sleep(rig.rng.uniform(0.0, LATER_S))
    worker = next(worker for worker in rig.workers if worker.name == moment.worker)
    rig.kill(worker, group=False)
    return rig.in_doubt(worker)
