"""Carriers that do what none should, beside good ones: what they have heard, and what became of it."""

import re
from contextlib import ExitStack
from typing import Final, NamedTuple

from tests.broken_http import BREAKAGES, NOT_TAKEN, HttpServer
from tests.broken_smtp import BROKEN, Broken, BrokenServer, broken_server
from tests.chaos.mail import job_of, named_in, percentile
from tests.chaos.outside import Json
from tests.chaos.plan import Plan, Size
from tests.chaos.rig import Rig

TOGETHER: Final = 24
"""Broken carriers at a time."""
WINDOW_S: Final = 3
"""How long broken gateways are said to know a text again, in seconds."""
LEFT_OUT: Final = {"answers twice, later", "refuses before it is asked"}
"""A refusal that comes while a text is on its way cannot be told from that text's own answer, in HTTP/1.1."""
KEY: Final = re.compile(rb"Idempotency-Key: ([^@\r]+)")
RECIPIENT: Final = re.compile(rb"RCPT TO:<([^@>]+)@")


class _Kind(NamedTuple):
    """A way to be broken."""

    name: str
    is_mail: bool


def carrier_broken(rig: Rig, size: Size, prefix: str) -> Plan:
    """Make carriers of the highest priority broken, each in its own way, some at a time beside a good one."""
    kinds = [_Kind(name, is_mail=True) for name in BROKEN]
    kinds += [_Kind(name, is_mail=False) for name in BREAKAGES if name not in LEFT_OUT]
    kinds = rig.rng.sample(kinds, min(size.faults, len(kinds)))
    groups = [kinds[first : first + TOGETHER] for first in range(0, len(kinds), TOGETHER)]
    jobs = [_job(rig, f"{prefix}-{number:06}") for number in range(size.jobs)]
    plan = Plan(jobs, count=len(kinds))

    def meet_all(rig: Rig, _: Plan) -> set[str]:
        in_doubt: set[str] = set()
        for number, group in enumerate(groups):
            end = (number + 1) * len(jobs) // len(groups)
            in_doubt |= _meet(rig, group, jobs[number * len(jobs) // len(groups) : end], prefix, (end, size.quiet_s))
        plan.notes.append(lambda: _say(rig, plan))
        return in_doubt

    plan.carry_out = meet_all
    return plan


def _job(rig: Rig, job_id: str) -> tuple[str, Json]:
    sender = rig.rng.choice(["owner", "ann", "bob", "cid", "dan", "eve"])
    return rig.email(job_id, sender) if rig.rng.random() < 0.6 else rig.sms(job_id, sender)


def _meet(
    rig: Rig, kinds: list[_Kind], jobs: list[tuple[str, Json]], prefix: str, until: tuple[int, float]
) -> set[str]:
    """Give these jobs to good carriers and these broken ones, until so many have ended. Returns what is in doubt."""
    with ExitStack() as stack:
        mail = {kind.name: stack.enter_context(broken_server(BROKEN[kind.name].talk)) for kind in kinds if kind.is_mail}
        gateways = {
            kind.name: stack.enter_context(HttpServer(BREAKAGES[kind.name])) for kind in kinds if not kind.is_mail
        }
        rig.use(
            smtp_url=" ".join([
                rig.outside.mail_url(weight=max(1, len(mail))),
                *(_mail_url(name, server) for name, server in mail.items()),
            ]),
            sms_url=" ".join([
                f"{rig.outside.sms_url}&weight={max(1, len(gateways))}",
                *(f"{server.url}&name={_short('http', name)}&connections=4&window={WINDOW_S}s"
                  for name, server in gateways.items()),
            ]),
        )  # fmt: skip
        rig.producer.publish_meanwhile(jobs, lambda: True, threads=4)
        rig.wait_until_ended(until[0], prefix, until[1])
        for name, server in mail.items():
            _note_mail(rig, BROKEN[name], server)
        return {job for name, gateway in gateways.items() for job in _note_texts(rig, name, gateway)}


def _mail_url(name: str, server: BrokenServer) -> str:
    starttls = "require" if BROKEN[name].needs_tls else "never"
    return f"{server.url}?name={_short('smtp', name)}&connections=4&starttls={starttls}"


def _short(kind: str, name: str) -> str:
    """Give the name under which a broken server is a carrier."""
    names = [*BROKEN, *BREAKAGES]
    return f"{kind}-{names.index(name)}-{re.sub('[^a-z]+', '-', name.lower())}"[:40].rstrip("-")


def _note_mail(rig: Rig, broken: Broken, server: BrokenServer) -> None:
    """Note what a broken mail server has heard: whole messages, and those whose end is missing."""
    mail = rig.outside.mail
    for heard in server.heard:
        *whole, rest = bytes(heard).split(b"\r\n.\r\n")
        for job in map(named_in, whole):
            if broken.outcome == "accepted":
                mail.accept(job, "broken")
            else:
                mail.leave_unanswered(job)
        if broken.outcome == "unsure" or broken.hears_nothing:
            mail.cut.update(job_of(address.decode()) for address in RECIPIENT.findall(rest))


def _note_texts(rig: Rig, name: str, gateway: HttpServer) -> set[str]:
    """Note what a broken gateway has heard, unless its answer says for certain that it has not taken it."""
    if name in NOT_TAKEN:
        return set()
    jobs = {key.decode() for peer in gateway.peers for key in KEY.findall(peer.received)}
    rig.outside.gateway.kept.update({f"{job} at {name}": job for job in jobs})
    return jobs


def _say(rig: Rig, plan: Plan) -> str:
    published, ids = rig.producer.published_at, set(plan.messages)
    by_good = [at - published[job] for at, server, job in rig.outside.mail.taken_at if server == "a" and job in ids]
    by_good += [at - published[job] for job, at in rig.outside.gateway.taken_at.items() if job in ids]
    shown = [f"{percentile(by_good, share):.2f}" for share in (0.5, 0.9, 1.0)]
    most = f"90 % within {shown[1]} s, all within {shown[2]} s"
    return f"{len(by_good)} messages were taken by good carriers, half of them within {shown[0]} s, {most}"
