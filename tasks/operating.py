"""What operators do: refund and resend unknown jobs, replay dead letters, and acknowledge findings."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row

from models.errors import Reason
from models.messages.answer import iso_time, refused_answer
from models.messages.base import Json
from models.money.verification import verify_statement
from models.reports.findings import acknowledge_findings, list_findings
from models.sends.answers import send_answer
from models.sends.charges import Charge, JobKey, find_everywhere
from models.sends.dead_letters import Status, find_letter, mark_replayed, replay_of, unreplayed_ids
from models.sends.unknown import Decision, refund_unknown, resend_unknown, unknown_keys
from models.users.organizations import find_organization, organization_names
from tasks.context import Context

DECISION_BATCH = 100
"""Jobs that are decided in one transaction; charges to the same pool wait meanwhile."""
NOT_UNKNOWN = "It is not unknown, so there is nothing to decide."


def decide(
    context: Context,
    decision: Decision,
    job_ids: Sequence[str] | None,
    *,
    operator: str,
    note: str | None,
    organization: str | None = None,
) -> Json:
    """Refund or resend unknown jobs, all of them if `job_ids` is None, and store who decided it and why.

    Ids are looked up in all organizations, or in the one that is named. Those that are not unknown, or are in several
    organizations, are left alone, and are named in the answer.
    """
    org_id = None
    if organization is not None:
        org_id = context.database.read(lambda connection: find_organization(connection, organization))
        if org_id is None:
            return refused_answer(Reason.NOT_FOUND, f"There is no organization {organization}.")
    found = context.database.read(lambda connection: unknown_keys(connection, job_ids, org_id))
    ambiguous = {} if job_ids is None else _in_several(found)
    chosen = [key for key in found if key.job_id not in ambiguous]
    settled: list[Charge] = []
    for start in range(0, len(chosen), DECISION_BATCH):
        batch = chosen[start : start + DECISION_BATCH]
        settled += _decide_batch(context, decision, batch, operator=operator, note=note)
    rest = set(job_ids or ()) - {charge.job_id for charge in settled} - ambiguous.keys()
    return {
        "status": "failed" if rest or ambiguous else "done",
        "decision": decision,
        "settled": [send_answer(charge) for charge in settled],
        "not_unknown": _not_unknown(context, rest, org_id),
        "ambiguous": _which_of(context, ambiguous),
    }


def _in_several(keys: Sequence[JobKey]) -> dict[str, list[int]]:
    """Return the ids that several organizations use, each with these organizations."""
    org_ids: defaultdict[str, list[int]] = defaultdict(list)
    for org_id, job_id in keys:
        org_ids[job_id].append(org_id)
    return {job_id: using for job_id, using in org_ids.items() if len(using) > 1}


def _which_of(context: Context, ambiguous: Mapping[str, Sequence[int]]) -> list[Json]:
    names = context.database.read(organization_names) if ambiguous else {}
    return [
        {
            "job_id": job_id,
            "organizations": (using := sorted(names[org_id] for org_id in org_ids)),
            "detail": f"It is unknown in {' and '.join(using)}: say which one you mean by --organization.",
        }
        for job_id, org_ids in sorted(ambiguous.items())
    ]


def _decide_batch(
    context: Context, decision: Decision, jobs: Sequence[JobKey], *, operator: str, note: str | None
) -> list[Charge]:
    def work(connection: Connection) -> list[Charge]:
        now = context.now(connection)
        if decision == "resend":
            return resend_unknown(connection, jobs, operator=operator, note=note, now=now)
        return refund_unknown(connection, jobs, operator=operator, note=note, now=now, keep_dead=context.keeps_dead)

    return context.database.write(work)


def _not_unknown(context: Context, job_ids: Collection[str], org_id: int | None) -> list[Json]:
    if not job_ids:
        return []
    everywhere = context.database.read(lambda connection: find_everywhere(connection, job_ids))
    found = {key.job_id: charge for key, charge in everywhere.items() if org_id in (None, key.org_id)}
    return [
        {
            "job_id": job_id,
            "status": str(found[job_id].state) if job_id in found else "not_found",
            "detail": NOT_UNKNOWN,
        }
        for job_id in sorted(job_ids)
    ]


def show_findings(context: Context, *, everything: bool) -> Json:
    """Return the findings of audits that stand, or all there ever were."""
    rows, organizations = context.database.read(
        lambda connection: (list_findings(connection, everything=everything), organization_names(connection))
    )
    return {"status": "done", "rows": [_finding_row(row, organizations) for row in rows]}


def acknowledge(context: Context, ids: Sequence[int] | None, *, operator: str, note: str) -> Json:
    """Note who has seen findings, all that alarm if `ids` is None, and why they may stand: they alarm no more.

    Those of `ids` that do not alarm are left alone, and are named in the answer.
    """
    done, organizations = context.database.write(
        lambda connection: (
            acknowledge_findings(connection, ids, operator=operator, note=note, now=context.now(connection)),
            organization_names(connection),
        )
    )
    rest = sorted(set(ids or ()) - {row.id for row in done})
    return {
        "status": "failed" if rest else "done",
        "rows": [_finding_row(row, organizations) for row in done],
        "not_alarming": rest,
    }


def verify(statement: object) -> Json:
    """Return what is wrong with a statement, as its JSON says it. No database is asked."""
    return verify_statement(statement).as_json()


def _finding_row(row: Row[Any], organizations: Mapping[int, str]) -> Json:
    times = ("first_at", "last_at", "resolved_at", "acknowledged_at")
    return {
        "id": row.id,
        "organization": organizations.get(row.org_id),
        **{name: row._mapping[name] for name in ("invariant", "subject", "difference")},  # noqa: SLF001  public
        **{name: iso_time(row._mapping[name]) for name in times},  # noqa: SLF001  public
        "acknowledged_by": row.acknowledged_by,
        "note": row.note,
    }


def replay_letters(context: Context, status: Status | None, since: datetime | None) -> list[Json]:
    """Replay all dead letters that were not replayed yet. Returns what became of each."""
    waiting = context.database.read(lambda connection: unreplayed_ids(connection, status=status, since=since))
    return [replay_letter(context, letter_id) for letter_id in waiting]


def replay_letter(context: Context, letter_id: int) -> Json:
    """Enqueue the job of one dead letter again. Returns what became of it."""
    letter = context.database.read(lambda connection: find_letter(connection, letter_id))
    if letter is None:
        return replay_result(str(letter_id), why_not=f"There is no dead job {letter_id}.")
    task: str = letter.fields["task"]
    key, job = replay_of(letter)
    # Enqueued first, noted second: after a crash in between it is enqueued once more, which is harmless.
    context.enqueue(task, [job])
    context.database.write(lambda connection: mark_replayed(connection, letter, key, context.now(connection)))
    return replay_result(str(letter_id), task=task, replayed_as=key)


def replay_result(
    dead_id: str, *, task: str | None = None, replayed_as: str | None = None, why_not: str | None = None
) -> Json:
    """Return what became of a replay: under which id, or why not."""
    return {"id": dead_id, "task": task, "replayed_as": replayed_as, "detail": why_not}
