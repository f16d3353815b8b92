"""Postponed jobs: what a producer wants done not before some time waits in the database until then.

Nothing is charged meanwhile: a job is stored as it was on the wire, and is put on its queue again when it is due. A
broker would hold it in the memory of a worker, and deliver it once more after each visibility timeout.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, String, delete, literal, select

from models.database.schema import postponed_jobs, users
from models.database.statements import insert
from models.messages.answer import iso_time
from models.messages.base import Json
from models.messages.wire import SEND_TASKS
from models.users.users import organization_of, take_user_locks


@dataclass(frozen=True, slots=True, kw_only=True)
class PostponedJob:
    """A job that is not due yet. `key` is its id, or its Celery task's; `options` are what Celery is to do with it.

    `digest` is that under which it is stored.
    """

    task: str
    task_id: str
    key: str
    person: str | None
    job: Json
    options: Json
    due_at: datetime
    digest: str | None = None


def postpone_jobs(connection: Connection, jobs: Sequence[PostponedJob], now: datetime) -> set[str]:
    """Store jobs until they are due. One that is stored already is left as it stands.

    Nothing is stored of users who were erased: returns who of those that are named was.
    """
    named = {job.person for job in jobs if job.person is not None}
    take_user_locks(connection, named)  # so that nobody is erased meanwhile
    erased = set(
        connection.execute(select(users.c.id).where(users.c.id.in_(named), users.c.erased_at.is_not(None))).scalars()
    )
    for job in jobs:
        if job.person in erased:
            continue
        connection.execute(
            insert(connection, postponed_jobs)
            .values(
                digest=_digest(job),
                org_id=organization_of(literal(job.person, String)),
                task=job.task,
                task_id=job.task_id,
                key=job.key,
                person=job.person,
                job=job.job,
                options=job.options,
                due_at=job.due_at,
                at=now,
            )
            .on_conflict_do_nothing()
        )
    return erased


def _digest(job: PostponedJob) -> str:
    """Return the SHA-256 (hex) by which the same job is recognized when it is delivered once more."""
    made_of = [job.task, job.task_id, job.job, job.options, job.due_at.isoformat()]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def due_jobs(connection: Connection, now: datetime, limit: int) -> list[PostponedJob]:
    """Return jobs that are due, those first that are due longest."""
    return _find(connection, postponed_jobs.c.due_at <= now, limit=limit)


def lock_postponed(
    connection: Connection, limit: int, *, org_id: int, tasks: Collection[str], key: str | None, person: str | None
) -> list[PostponedJob]:
    """Lock jobs of these tasks, and of a key or of a person, or both, so that nobody else ends them meanwhile."""
    wanted = {"org_id": org_id, "key": key, "person": person}
    its_own = [postponed_jobs.c[name] == value for name, value in wanted.items() if value is not None]
    its_own.append(postponed_jobs.c.task.in_(tasks))
    return _find(connection, *its_own, limit=limit, locked=True)


def find_postponed(connection: Connection, key: str, person: str | None = None) -> Row[Any] | None:
    """Return the row of a send job that is not due yet, by its id or its Celery task's; only a person's, if given."""
    its_own = [postponed_jobs.c.key == key, postponed_jobs.c.task.in_(SEND_TASKS)]
    if person is not None:
        its_own.append(postponed_jobs.c.person == person)
    return connection.execute(
        select(postponed_jobs).where(*its_own).order_by(postponed_jobs.c.due_at).limit(1)
    ).one_or_none()


def delete_postponed(connection: Connection, jobs: Collection[PostponedJob]) -> None:
    """Delete jobs that are on their queue again, or were cancelled."""
    digests = [job.digest for job in jobs]
    if digests:
        connection.execute(delete(postponed_jobs).where(postponed_jobs.c.digest.in_(digests)))


def postponed_answer(row: Any) -> Json:  # noqa: ANN401  a row, or a job
    """Return the answer to a send job that is not due yet. Like one that waits for its first attempt, it is sending."""
    return {
        "job_id": row.key,
        "task": row.task,
        "kind": row.task.partition(".")[0],
        "status": "sending",
        "reason": None,
        "detail": f"It is not to be sent before {iso_time(row.due_at)}. Nothing is charged until then.",
        "sender": row.person,
        "paid_by": None,
        "credits": 0,
        "cost": None,
        "attempts": 0,
        "recipients_refused": {},
        "carrier_reference": None,
        "created_at": None,
        "next_attempt_at": iso_time(row.due_at),
        "final_at": None,
        **({"messages": {}} if row.task.endswith(".send_many") else {}),
    }


def _find(connection: Connection, *wanted: ColumnElement[bool], limit: int, locked: bool = False) -> list[PostponedJob]:
    names = ("task", "task_id", "key", "person", "job", "options", "due_at", "digest")
    query = (
        select(*(postponed_jobs.c[name] for name in names))
        .where(*wanted)
        .order_by(postponed_jobs.c.due_at, postponed_jobs.c.digest)
        .limit(limit)
    )
    found = connection.execute(query.with_for_update() if locked else query)
    return [PostponedJob(**row._mapping) for row in found]  # noqa: SLF001  public
