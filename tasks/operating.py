"""What operators do: refund and resend unknown jobs, replay dead letters, and acknowledge findings."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row

from models.messages.answer import iso_time
from models.messages.base import Json
from models.money.verification import verify_statement
from models.reports.findings import acknowledge_findings, list_findings
from models.sends.answers import send_answer
from models.sends.charges import Charge, JobKey, find_everywhere
from models.sends.dead_letters import Status, find_letter, mark_replayed, replay_of, unreplayed_ids
from models.sends.unknown import Decision, refund_unknown, resend_unknown, unknown_keys
from models.users.organizations import organization_names
from tasks.context import Context

DECISION_BATCH = 100
"""Jobs that are decided in one transaction; charges to the same pool wait meanwhile."""
NOT_UNKNOWN = "It is not unknown, so there is nothing to decide."


def decide(
    context: Context, decision: Decision, job_ids: Sequence[str] | None, *, operator: str, note: str | None
) -> Json:
    """Refund or resend unknown jobs, all of them if `job_ids` is None, and store who decided it and why.

    Those of `job_ids` that are not unknown are left alone, and are named in the answer.
    """
    chosen = context.database.read(lambda connection: unknown_keys(connection, job_ids))
    settled: list[Charge] = []
    for start in range(0, len(chosen), DECISION_BATCH):
        batch = chosen[start : start + DECISION_BATCH]
        settled += _decide_batch(context, decision, batch, operator=operator, note=note)
    rest = [] if job_ids is None else _not_unknown(context, set(job_ids) - {charge.job_id for charge in settled})
    return {
        "status": "failed" if rest else "done",
        "decision": decision,
        "settled": [send_answer(charge) for charge in settled],
        "not_unknown": rest,
    }


def _decide_batch(
    context: Context, decision: Decision, jobs: Sequence[JobKey], *, operator: str, note: str | None
) -> list[Charge]:
    def work(connection: Connection) -> list[Charge]:
        now = context.now()
        if decision == "resend":
            return resend_unknown(connection, jobs, operator=operator, note=note, now=now)
        return refund_unknown(connection, jobs, operator=operator, note=note, now=now, keep_dead=context.keeps_dead)

    return context.database.write(work)


def _not_unknown(context: Context, job_ids: Collection[str]) -> list[Json]:
    everywhere = context.database.read(lambda connection: find_everywhere(connection, job_ids))
    found = {key.job_id: charge for key, charge in everywhere.items()}
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
            acknowledge_findings(connection, ids, operator=operator, note=note, now=context.now()),
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
    context.enqueue(task, job)
    context.database.write(lambda connection: mark_replayed(connection, letter, key, context.now()))
    return replay_result(str(letter_id), task=task, replayed_as=key)


def replay_result(
    dead_id: str, *, task: str | None = None, replayed_as: str | None = None, why_not: str | None = None
) -> Json:
    """Return what became of a replay: under which id, or why not."""
    return {"id": dead_id, "task": task, "replayed_as": replayed_as, "detail": why_not}
