"""A mail server that dies, or hangs, while another one is there."""

import time
from typing import Final

from tests.chaos.faults import Fault
from tests.chaos.mail import MailServer
from tests.chaos.plan import Plan, Size, carry_out
from tests.chaos.rig import Rig, wait_until

ANSWER_S: Final = 0.02
"""How long the mail server that is lost takes to answer a message, so that some wait for that when it dies."""
BEFORE_S: Final = 3.0
"""How long a rate is looked at, before a mail server is lost, in seconds."""
WINDOW_S: Final = 1.0
SAME: Final = 0.9
BACK_WITHIN_S: Final = 90.0


def carrier_dies(rig: Rig, size: Size, prefix: str) -> Plan:
    """Let the first of two mail servers die, then hang, and come back each time: meanwhile all goes to the second."""
    first, second = rig.outside.servers
    rig.use(smtp_url=f"{rig.outside.mail_url(0, priority=1)} {rig.outside.mail_url(1, priority=2)}")
    plan = Plan(rig.jobs(size.jobs, prefix), ahead=size.jobs, producers=16)

    def loses(how: str) -> Fault:
        def lose(rig: Rig) -> set[str]:
            silent = rig.outside.mail.silent.total()
            lost_at = time.monotonic()
            if how == "died":
                first.die()
            else:
                first.hang()
            time.sleep(size.lasts_s)
            first.come_back()
            back_at = time.monotonic()
            wait_until(lambda: _accepted(rig, first, back_at) or rig.is_idle(), BACK_WITHIN_S)
            unanswered = rig.outside.mail.silent.total() - silent
            plan.notes.append(lambda: _what_happened(rig, how, (lost_at, back_at), (first, second), unanswered))
            return set()

        return lose

    def publish_and_lose(rig: Rig, plan: Plan) -> set[str]:
        first.answer_s = ANSWER_S
        try:
            return carry_out(rig, plan)
        finally:
            first.answer_s = 0.0

    plan.faults = [loses("died"), loses("hung")] * (size.faults // 2)
    plan.carry_out = publish_and_lose
    return plan


def _accepted(rig: Rig, server: MailServer, since: float) -> list[float]:
    """Give when a server accepted messages since then."""
    return [at for at, name, _ in list(rig.outside.mail.taken_at) if name == server.name and at >= since]


def _what_happened(
    rig: Rig, how: str, times: tuple[float, float], servers: tuple[MailServer, MailServer], unanswered: int
) -> str:
    (lost_at, back_at), (first, second) = times, servers
    before = [at for at, _, _ in list(rig.outside.mail.taken_at) if lost_at - BEFORE_S <= at < lost_at]
    rate = len(before) / (lost_at - before[0]) if before else 0.0
    by_second = _accepted(rig, second, lost_at)
    recovered = next(
        (at - lost_at for number, at in enumerate(by_second) if _goes_on(by_second[number:], at, SAME * rate)), None
    )
    again = _accepted(rig, first, back_at)
    words = [
        f"the mail server {how} with {unanswered} messages unanswered, at {rate:.0f} messages/s",
        "the other one never was as fast"
        if recovered is None
        else f"the other one was as fast after {recovered:.1f} s",
        f"it was used again {again[0] - back_at:.1f} s after it was back" if again else "it was not needed again",
    ]
    return "; ".join(words)


def _goes_on(accepted: list[float], since: float, rate: float) -> bool:
    """Whether in the window that begins here as many are accepted as at this rate."""
    wanted = max(1, int(rate * WINDOW_S))
    return len(accepted) >= wanted and accepted[wanted - 1] <= since + WINDOW_S
