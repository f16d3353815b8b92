"""How jobs stand, for operators and for whoever enqueued them. No rights are checked here."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, cast

from sqlalchemy import Connection, Select, func, select

from models.database.engine import transaction_time
from models.database.schema import (
    accounts,
    audit_progress,
    charges,
    dead_letters,
    findings,
    postponed_jobs,
    refusals,
    users,
)
from models.database.statements import search_by_index
from models.errors import Refused
from models.messages.answer import refused_answer
from models.messages.base import Json
from models.messages.fields import is_id
from models.messages.sends import Send
from models.messages.wire import parse
from models.sends.answers import answer_to
from models.sends.charges import Charge, charged_since, find_everywhere, shown_state
from models.sends.due import is_waiting
from models.sends.leases import is_leased
from models.sends.postponed import find_postponed, postponed_answer

RUNNING: Final = ("sending", "retrying")
"""The statuses of a job that has not ended."""


def find_answer(connection: Connection, job_id: str) -> Json | None:
    """Return the answer to a send job as it stands, or None if there is no such job.

    Of jobs with this id in several organizations it is the one that was made last.
    """
    found = find_everywhere(connection, [job_id]).values()
    if found:
        return answer_to(connection, max(found, key=lambda charge: charge.created_at))
    postponed = find_postponed(connection, job_id)
    return None if postponed is None else postponed_answer(postponed)


def last_clean_audit(connection: Connection) -> tuple[datetime | None, datetime]:
    """Return when an audit last found nothing, or None if none ever did, and the time of this transaction."""
    return connection.execute(select(audit_progress.c.checked_at)).scalar(), transaction_time(connection)


def ended_answers(connection: Connection, jobs: Mapping[str, tuple[str, Any]]) -> dict[str, Json]:
    """Return the answers of those send jobs that are final, refused or unknown, by Celery task id.

    `jobs` has the task and the object of each, as they were enqueued. What was charged under the id of a job may be
    another job: then its refusal is waited for.
    """
    rows = connection.execute(select(refusals).where(refusals.c.task_id.in_(jobs)).order_by(refusals.c.id))
    refused = {
        row.task_id: {"job_id": row.key or row.task_id, **refused_answer(row.reason, row.detail)} for row in rows
    }
    ids = {task_id: _job_id(given, task_id) for task_id, (_, given) in jobs.items() if task_id not in refused}
    charged: defaultdict[str, list[Charge]] = defaultdict(list)
    for charge in find_everywhere(connection, set(ids.values())).values():
        charged[charge.job_id].append(charge)
    answers = refused | {
        task_id: answer_to(connection, charge)
        for task_id, job_id in ids.items()
        for charge in charged[job_id]
        if _is_of(charge, *jobs[task_id], job_id)
    }
    return {task_id: answer for task_id, answer in answers.items() if answer["status"] not in RUNNING}


def _job_id(given: object, task_id: str) -> str:
    """Return the id under which a send job is known."""
    job_id = given.get("job_id") if isinstance(given, dict) else None
    return str(job_id) if is_id(job_id) else task_id


def _is_of(charge: Charge, task: str, given: object, job_id: str) -> bool:
    """Whether a charge is of this send job, and not of another one under its id."""
    try:
        return cast("Send", parse(task, given, job_id=job_id)).has_digest(charge.digest)
    except Refused:
        return False


def count_jobs(connection: Connection, since: datetime) -> dict[str, dict[str, int]]:
    """Return how many send jobs are in each state, by kind: open ones, and those made since then that have ended."""
    search_by_index(connection)
    jobs: dict[str, dict[str, int]] = {}
    for query in _count_queries(since):
        for kind, state, count in connection.execute(query):
            counts = jobs.setdefault(kind, {})
            counts[state] = counts.get(state, 0) + count
    return jobs


def _count_queries(since: datetime) -> Sequence[Select[Any]]:
    """Return queries that count jobs by kind and state, each read from an index, however long the history is."""
    state = shown_state()
    by_state = select(charges.c.kind, state, func.count(charges.c.job_id))
    ended_since = (made & charges.c.final_at.is_not(None) for made in charged_since(since))
    conditions = (*is_waiting(), is_leased(), charges.c.unknown_since.is_not(None), *ended_since)
    return [by_state.where(condition).group_by(charges.c.kind, state) for condition in conditions]


def count_refusals(connection: Connection, since: datetime) -> int:
    """Return the number of refusals since then that took no key."""
    return connection.execute(select(func.count()).where(refusals.c.at >= since)).scalar_one()


def count_dead_letters(connection: Connection) -> int:
    """Return the number of dead letters that were not replayed yet."""
    unreplayed = select(func.count()).select_from(dead_letters).where(dead_letters.c.replayed_at.is_(None))
    return connection.execute(unreplayed).scalar_one()


def count_postponed(connection: Connection) -> int:
    """Return the number of jobs that are not due yet."""
    return connection.execute(select(func.count()).select_from(postponed_jobs)).scalar_one()


class Pool(NamedTuple):
    """A credit owner whose accounts have moved, and who else spends their credits."""

    owner: str
    credit_users: list[str]


def list_pools(connection: Connection) -> list[Pool]:
    """Return all pools that have any history, by owner."""
    moved = select(accounts.c.owner_id).where(accounts.c.seq > 0)
    owners = connection.execute(
        select(users.c.id).where(users.c.id.in_(moved), users.c.is_owner).order_by(users.c.id)
    ).scalars()
    sharing = connection.execute(
        select(users.c.credit_owner_id, users.c.id).where(~users.c.is_owner).order_by(users.c.id)
    ).all()
    return [Pool(owner, [user for its_owner, user in sharing if its_owner == owner]) for owner in owners]


def count_waiting_decisions(connection: Connection, org_id: int) -> Json:
    """Return how many messages of an organization are unknown, and how many findings alarm in its accounts."""
    search_by_index(connection)
    unknown = select(func.count()).where(charges.c.org_id == org_id, charges.c.unknown_since.is_not(None))
    alarms = select(func.count()).where(
        findings.c.org_id == org_id, findings.c.resolved_at.is_(None), findings.c.acknowledged_at.is_(None)
    )
    return {
        "unknown": connection.execute(unknown).scalar_one(),
        "findings": connection.execute(alarms).scalar_one(),
    }
