"""The verdict: what is in the database, compared with what was enqueued and what the carriers saw."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import select

from models.database.engine import Database, utc_now
from models.database.schema import accounts, charges, entries
from models.reports.state_invariants import STALE_AFTER
from models.sends.charges import State
from tests.audits import audit_everything
from tests.chains import broken_hashes, parts_of_charges
from tests.chaos.rig import Rig

Json = dict[str, Any]
SHOWN_MAX = 5

ENDED = ("sent", "failed", "refused", "unknown")
ZERO = ("lost", "sent_twice", "charged_twice", "drift", "unmatched_refunds", "broken_hashes", "not_received", "free",
        "unacked", "waiting", "quarantine_wrong", "ended_by_itself", "unknown_wrong")  # fmt: skip
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
    """Entries that took more than their charges cost."""
    drift: int = 0
    unmatched_refunds: int = 0
    """Entries that gave back anything but what their charges got back."""
    broken_hashes: int = 0
    """Entries and accounts that break a hash chain."""
    unknown: int = 0
    unknown_least: int = 0
    """How many must be unknown: a mail server had the whole message, and its answer was cut off."""
    unknown_most: int = 0
    """How many may be unknown: those, and the messages that were in doubt at the faults."""
    unknown_wrong: int = 0
    """Messages that must be unknown and are not, or are and may not be."""
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
    measured: list[str] = field(default_factory=list)
    """What was measured, and is not as it should be."""
    rig: list[str] = field(default_factory=list)
    """What went wrong with the rig itself."""
    notes: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    job_ids: list[str] = field(default_factory=list, repr=False)
    in_doubt: set[str] = field(default_factory=set, repr=False)
    """Messages that faults have left in doubt, beside those that mail servers have cut off."""

    @property
    def wrong(self) -> list[str]:
        """What is wrong, in words; empty if nothing is."""
        wrong = [f"{name.replace('_', ' ')}: {getattr(self, name)}" for name in ZERO if getattr(self, name)]
        return [
            *wrong,
            *self.measured,
            *(f"audit: {finding}" for finding in self.audit),
            *(f"rig: {what}" for what in self.rig),
        ]

    def as_json(self) -> Json:
        """Everything but the ids, for a file."""
        fields = {name: value for name, value in asdict(self).items() if name not in ("job_ids", "in_doubt")}
        return {**fields, "wrong": self.wrong}


@dataclass(frozen=True)
class Evidence:
    """The state of every charge, and the entries that moved anything but what their charges say."""

    states: dict[str, str]
    why: dict[str, str]
    charged_twice: list[str]
    unmatched_refunds: list[str]
    broken_hashes: list[str]
    drift: int


def collect(database: Database, bought: dict[str, int]) -> Evidence:
    """Read everything at one moment. Balances are computed anew from the charges, without the entries."""
    with database.snapshot() as connection:
        rows = connection.execute(select(charges)).all()
        written = connection.execute(select(entries).where(entries.c.cause_kind.in_(["charge", "refund"]))).all()
        balances = connection.execute(select(accounts)).all()
        broken = broken_hashes(connection)
    parts = parts_of_charges(rows)
    spent = Counter[tuple[int, int]]()
    for row in rows:
        if row.account_id is not None:
            spent[row.org_id, row.account_id] += row.credits - row.refunded
    charged, given_back = [], []
    for entry in written:
        of_jobs = parts.get((entry.org_id, entry.account_id, entry.cause_kind, entry.cause_id), {})
        named = f"{entry.cause_kind} {entry.cause_id} of {entry.amount} for {len(of_jobs)} jobs"
        if entry.cause_kind == "charge" and entry.amount < sum(of_jobs.values()):
            charged.append(named)
        if entry.cause_kind == "refund" and entry.amount != sum(of_jobs.values()):
            given_back.append(named)
    return Evidence(
        states={row.job_id: row.state for row in rows},
        why={row.job_id: f"{row.state}: {row.detail or row.reason}" for row in rows},
        charged_twice=charged,
        unmatched_refunds=given_back,
        broken_hashes=broken,
        drift=sum(abs(row.available - bought.get(row.owner_id, 0) + spent[row.org_id, row.id]) for row in balances),
    )


def fill_in(rig: Rig, verdict: Verdict, *, quiet: bool) -> Verdict:
    """Fill in what became of the jobs of a scenario, and what is on the queues too once everything is `quiet`."""
    evidence = collect(rig.database, rig.bought)
    mail, gateway = rig.outside.mail, Counter(rig.outside.gateway.kept.values())
    taken, accepted = mail.accepted + mail.silent + gateway, mail.accepted + gateway
    must_be_unknown = (set(mail.silent) | mail.begun).intersection(verdict.job_ids)
    may_be_unknown = must_be_unknown | (mail.cut | verdict.in_doubt).intersection(verdict.job_ids)
    states = {job_id: evidence.states.get(job_id, "not there") for job_id in verdict.job_ids}
    jobs_by_count = {
        "lost": [job for job, state in states.items() if state not in ENDED],
        "sent_twice": [job for job in states if taken[job] > 1],
        "charged_twice": evidence.charged_twice,
        "unmatched_refunds": evidence.unmatched_refunds,
        "broken_hashes": evidence.broken_hashes,
        "unknown": [job for job, state in states.items() if state == State.UNKNOWN],
        "unknown_wrong": [
            job
            for job, state in states.items()
            if (state == State.UNKNOWN and job not in may_be_unknown)
            or (state != State.UNKNOWN and job in must_be_unknown)
        ],
        "not_received": [job for job, state in states.items() if state == State.SENT and not accepted[job]],
        "free": [job for job, state in states.items() if state in (State.FAILED, State.REFUSED) and taken[job]],
    }
    for name, jobs in jobs_by_count.items():
        setattr(verdict, name, len(jobs))
    verdict.unknown_least, verdict.unknown_most = len(must_be_unknown), len(may_be_unknown)
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
    jobs_by_count["unknown_wrong"] = [
        f"{job} ({evidence.why.get(job)}, {_seen(rig, job)})" for job in jobs_by_count["unknown_wrong"]
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


def _seen(rig: Rig, job: str) -> str:
    """Give what mail servers saw of a job."""
    mail = rig.outside.mail
    seen = {
        f"accepted {mail.accepted[job]}": mail.accepted[job],
        f"taken without an answer {mail.silent[job]}": mail.silent[job],
        "begun": job in mail.begun,
        "cut off": job in mail.cut,
    }
    return ", ".join(words for words, is_so in seen.items() if is_so) or "not seen"


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
