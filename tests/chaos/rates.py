"""A limit that all workers keep together, and that senders share."""

import time
from collections import Counter
from typing import Final

from tests.chaos.plan import Plan, Size
from tests.chaos.rig import Rig, wait_until

RATE: Final = 50
USUAL: Final = {"lease_s": 300, "visibility_timeout_s": 1800}
"""As they are set if nobody says otherwise: messages wait at the door for a third of a lease at most."""
SENDERS: Final = ("ann", "bob", "cid")
RAMP_S: Final = 2.0
"""How long after the first message the measurement begins, in seconds."""
BEGIN_WITHIN_S: Final = 60.0
OFF_MOST: Final = 0.05
UNFAIR_MOST: Final = 0.1
LONG_S: Final = 30.0
"""From how many seconds on what was measured is judged."""


def rate(rig: Rig, size: Size, prefix: str) -> Plan:
    """Give a mail server so many messages a second from three senders, who have more than enough to send."""
    rig.use(smtp_url=rig.outside.mail_url(rate=RATE), **USUAL)
    by_sender = {
        sender: [rig.email(f"{prefix}-{sender}-{number:06}", sender) for number in range(size.jobs // len(SENDERS))]
        for sender in SENDERS
    }
    plan = Plan([job for jobs in by_sender.values() for job in jobs])

    def measure(rig: Rig, plan: Plan) -> set[str]:
        seen = len(rig.outside.mail.taken_at)
        for jobs in by_sender.values():
            rig.producer.publish_meanwhile(jobs, lambda: True, threads=4)
        wait_until(lambda: len(rig.outside.mail.taken_at) > seen, BEGIN_WITHIN_S)
        began = time.monotonic() + RAMP_S
        time.sleep(RAMP_S + size.lasts_s)
        accepted = [one for one in rig.outside.mail.taken_at[seen:] if began <= one[0] < began + size.lasts_s]
        rig.use()  # the rest goes as fast as it can
        plan.notes.append(lambda: _say(accepted, size.lasts_s))
        if size.lasts_s >= LONG_S:
            plan.wrong += _judge(accepted, size.lasts_s)
        return set()

    plan.carry_out = measure
    return plan


def _shares(accepted: list[tuple[float, str, str]]) -> dict[str, int]:
    return dict(Counter(job.split("-")[1] for _, _, job in accepted))


def _say(accepted: list[tuple[float, str, str]], seconds: float) -> str:
    each_second = Counter(int(at - accepted[0][0]) for at, _, _ in accepted).values() if accepted else [0]
    shares = ", ".join(f"{sender} {count}" for sender, count in sorted(_shares(accepted).items()))
    seen = f"{len(accepted)} messages in {seconds:g} s at {RATE} a second"
    return f"{seen}, {min(each_second)} to {max(each_second)} in each second; {shares}"


def _judge(accepted: list[tuple[float, str, str]], seconds: float) -> list[str]:
    wanted, shares = RATE * seconds, _shares(accepted)
    each = len(accepted) / len(SENDERS)
    wrong = []
    if abs(len(accepted) - wanted) > OFF_MOST * wanted:
        wrong.append(f"rate: {len(accepted)} messages, not {wanted:g}")
    if any(abs(shares.get(sender, 0) - each) > UNFAIR_MOST * each for sender in SENDERS):
        wrong.append(f"shares under a rate: {shares}")
    return wrong
