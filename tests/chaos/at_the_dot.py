"""Workers that are killed with a message at the final dot: the mail server says when."""

import contextlib
import queue
import threading
import time
from collections import Counter
from typing import Final

from tests.chaos.mail import KILL_AMID, KILL_ANSWERED, KILL_ASKED, KILLS, Moment
from tests.chaos.plan import Plan, Size
from tests.chaos.rig import Program, Rig

LONG_TEXT: Final = "A line of a long text, which does not come in one piece.\n" * 15_000
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
    killed: queue.SimpleQueue[Program] = queue.SimpleQueue()

    def kill(moment: Moment) -> None:
        worker = next(worker for worker in rig.workers if worker.name == moment.worker)
        rig.kill(worker, group=False)
        kills[moment.kill] += 1
        killed.put(worker)

    def at_moment(moment: Moment) -> None:
        if moment.kill in (KILL_ASKED, KILL_ANSWERED):
            threading.Timer(rig.rng.uniform(0.0, LATER_S), kill, [moment]).start()
        else:
            kill(moment)

    def kill_meanwhile(rig: Rig, plan: Plan) -> set[str]:
        rig.outside.mail.at_moment = at_moment
        before = rig.outside.taken - rig.producer.published
        rig.producer.publish_meanwhile(jobs, lambda: rig.producer.published + before < rig.outside.taken + plan.ahead)
        in_doubt: set[str] = set()
        until = time.monotonic() + size.quiet_s
        while rig.ended_jobs(prefix) < len(jobs) and time.monotonic() < until:
            with contextlib.suppress(queue.Empty):
                in_doubt |= rig.in_doubt(killed.get(timeout=0.2))
        plan.count = kills.total()
        return in_doubt

    plan = Plan(jobs, carry_out=kill_meanwhile)
    plan.notes.append(lambda: ", ".join(f"{count} {kill.removeprefix('kill ')}" for kill, count in kills.items()))
    return plan
