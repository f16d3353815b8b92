"""The verdict: what is in the database, compared with what was enqueued and what the carriers saw."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select

from models.database.engine import Database
from models.database.schema import accounts, charges, entries
from models.reports.invariants import STALE_AFTER
from models.sends.charges import State
from tasks.context import utc_now
from tests.audits import audit_everything
from tests.chaos.rig import Rig

Json = dict[str, Any]
SHOWN_MAX = 5

ENDED = ("sent", "failed", "refused", "unknown")
ZERO = ("lost", "sent_twice", "charged_twice", "drift", "unmatched_refunds", "not_received", "free", "unacked",
        "waiting", "quarantine_wrong", "ended_by_itself")  # fmt: skip
"""Counts of a verdict that must be zero."""


@dataclass
class Verdict:
    """What became of the jobs of one scenario."""

    scenario: str
    seed: int
    jobs: int
    faults: int
    seconds: float = 0.0
    lost: int = 0
    sent_twice: int = 0
    charged_twice: int = 0
    drift: int = 0
    unmatched_refunds: int = 0
    unknown: int = 0
    unknown_least: int = 0
    unknown_most: int = 0
    """How many messages may be unknown: as many as may have been handed over and not settled at the faults."""
    unknown_taken: int = 0
    """How many of the unknown ones a carrier had taken."""
    not_received: int = 0
    """Jobs in the state sent that no carrier accepted."""
    free: int = 0
    """Jobs in the state failed or refused that a carrier took."""
    audit: list[str] = field(default_factory=list)
    unacked: int = 0
    waiting: int = 0
    quarantined: int = 0
    quarantine_wrong: int = 0
    """Garbage that is not in the quarantine, and items in it that are no garbage."""
    ended_by_itself: int = 0
    """Worker and beat processes that ended though nobody killed them."""
    states: dict[str, int] = field(default_factory=dict)
    rig: list[str] = field(default_factory=list)
    """What went wrong with the rig itself."""
    notes: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    job_ids: list[str] = field(default_factory=list, repr=False)

    @property
    def wrong(self) -> list[str]:
        """What is wrong, in words; empty if nothing is."""
        wrong = [f"{name.replace('_', ' ')}: {getattr(self, name)}" for name in ZERO if getattr(self, name)]
        if not self.unknown_least <= self.unknown <= self.unknown_most:
            wrong.append(f"unknown: {self.unknown}, not {self.unknown_least} to {self.unknown_most}")
        return [*wrong, *(f"audit: {finding}" for finding in self.audit), *(f"rig: {what}" for what in self.rig)]

    def as_json(self) -> Json:
        """Everything but the ids, for a file."""
        fields = {name: value for name, value in asdict(self).items() if name != "job_ids"}
        return {**fields, "wrong": self.wrong}


@dataclass(frozen=True)
class Evidence:
    """The state of every charge, and what its entries moved."""

    states: dict[str, str]
    why: dict[str, str]
    charged: Counter[str]
    refunded: Counter[str]
    drift: int
    unmatched_refunds: list[str]


def collect(database: Database, bought: dict[str, int]) -> Evidence:
    """Read everything at one moment. Balances are computed anew from the charges, without the entries."""
    with database.snapshot() as connection:
        rows = connection.execute(
            select(charges.c.job_id, charges.c.state, charges.c.reason, charges.c.detail, charges.c.bulk_id,
                   charges.c.credits)
        ).all()  # fmt: skip
        written = [(cause, amount) for cause, amount in connection.execute(select(entries.c.cause, entries.c.amount))]
        net = func.sum(charges.c.credits - charges.c.refunded)
        spent_by = connection.execute(
            select(charges.c.account_id, net).where(charges.c.account_id.is_not(None)).group_by(charges.c.account_id)
        )
        spent = {account_id: int(total) for account_id, total in spent_by}
        balances = connection.execute(select(accounts.c.id, accounts.c.owner_id, accounts.c.available)).all()
    causes: dict[str, dict[str, list[int]]] = {"charge": {}, "refund": {}, "purchase": {}}
    for cause, amount in written:
        what, _, job_id = cause.partition(":")
        causes[what].setdefault(job_id, []).append(amount)
    cost = {row.job_id: row.credits for row in rows}
    return Evidence(
        states={row.job_id: row.state for row in rows},
        why={row.job_id: f"{row.state}: {row.detail or row.reason}" for row in rows},
        # A bulk job's entry pays for each of its messages.
        charged=Counter(
            {row.job_id: sum(len(causes["charge"].get(job, ())) for job in (row.job_id, row.bulk_id)) for row in rows}
        ),
        refunded=Counter({job_id: len(amounts) for job_id, amounts in causes["refund"].items()}),
        drift=sum(abs(row.available - bought.get(row.owner_id, 0) + spent.get(row.id, 0)) for row in balances),
        unmatched_refunds=[
            job_id
            for job_id, amounts in causes["refund"].items()
            if sum(amounts) > cost.get(job_id, 0) or len(amounts) > 1
        ],
    )


def fill_in(rig: Rig, verdict: Verdict, *, quiet: bool) -> Verdict:
    """Fill in what became of the jobs of a scenario, and what is on the queues too once everything is `quiet`."""
    evidence = collect(rig.database, rig.bought)
    mail, gateway = rig.outside.mail, Counter(rig.outside.gateway.kept.values())
    taken, accepted = mail.accepted + mail.silent + gateway, mail.accepted + gateway
    states = {job_id: evidence.states.get(job_id, "not there") for job_id in verdict.job_ids}
    jobs_by_count = {
        "lost": [job for job, state in states.items() if state not in ENDED],
        "sent_twice": [job for job in states if taken[job] > 1],
        "charged_twice": [job for job in states if evidence.charged[job] > 1],
        "unmatched_refunds": evidence.unmatched_refunds,
        "unknown": [job for job, state in states.items() if state == State.UNKNOWN],
        "not_received": [job for job, state in states.items() if state == State.SENT and not accepted[job]],
        "free": [job for job, state in states.items() if state in (State.FAILED, State.REFUSED) and taken[job]],
    }
    for name, jobs in jobs_by_count.items():
        setattr(verdict, name, len(jobs))
    verdict.drift = evidence.drift
    verdict.states = dict(Counter(states.values()))
    verdict.unknown_taken = sum(1 for job in jobs_by_count["unknown"] if taken[job])
    with rig.database.snapshot() as connection:
        # The audit believes that it is later, so that a lease that is not ended in time is a finding.
        later = timedelta(0) if not quiet else STALE_AFTER
        verdict.audit = [
            f"{finding.invariant}: {finding.subject}, {finding.difference}"
            for finding in audit_everything(connection, utc_now() + later)
        ]
    programs = [*rig.workers, rig.beat]
    verdict.ended_by_itself = sum(len(program.ended) for program in programs)
    verdict.rig = list(rig.broken)
    why = Counter(evidence.why[job] for job, state in states.items() if state in (State.FAILED, State.UNKNOWN))
    named = [
        f"{name.replace('_', ' ')}: {', '.join(jobs_by_count[name][:SHOWN_MAX])}"
        for name in ZERO
        if jobs_by_count.get(name)
    ]
    verdict.details = [f"{count} {words}" for words, count in why.most_common(SHOWN_MAX)] + named
    verdict.details += [f"{program.name} ended by itself: {program.ended}" for program in programs if program.ended]
    if quiet:
        verdict.unacked, verdict.waiting = len(rig.unacked()), rig.waiting()
        verdict.quarantined = len(rig.quarantine())
        wrong_items = different(rig.garbage, rig.quarantine())
        verdict.quarantine_wrong = len(wrong_items)
        verdict.details += [f"quarantine {how} {item[:300]!r}" for how, item in wrong_items[:SHOWN_MAX]]
    return verdict


def different(garbage: Iterable[bytes], quarantined: Sequence[bytes]) -> list[tuple[str, bytes]]:
    """Give the items that the quarantine lacks, and those that should not be there."""
    wanted, found = set(map(plain, garbage)), set(map(plain, quarantined))
    return [
        *(("lacks", item) for item in sorted(wanted - found)),
        *(("should not have", item) for item in sorted(found - wanted)),
    ]


def plain(item: bytes) -> bytes:
    """Give a queue item in a form that can be compared."""
    try:
        message = json.loads(item)
        properties = message["properties"]
        message.get("headers", {}).pop("redelivered", None)
        properties["delivery_info"].pop("redelivered", None)
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return item
    return json.dumps(message, sort_keys=True).encode()
