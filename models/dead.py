"""Dead letters: jobs that were refused, failed, or were given up after faults, kept for a while to be sent again.

A letter has the whole object that was on the wire, so it is private and is erased when its time is over. A job that
dies again is the same letter. What may be replayed under which id is decided here; nothing is enqueued.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, Row, Select, delete, select, update

from models import ledger
from models.answers import iso
from models.charges import Charge, State
from models.database import insert, lock_past
from models.errors import Reason
from models.fields import ID, ID_CHARACTERS, ID_MAX
from models.ledger import Settlement
from models.messages import MESSAGES, SEND_TASKS, View
from models.paging import page_of
from models.tables import dead_letters

Json = dict[str, Any]
Status = Literal["refused", "failed", "fault"]

KEPT_TASKS = tuple(task for task, message in MESSAGES.items() if not issubclass(message, View))
"""Tasks whose jobs are worth keeping: a view that was refused has nothing to be replayed for."""
JOB_MAX = 4_000_000
"""Characters of the JSON of a job that is kept."""
DEPTH_MAX = 10
"""Objects and lists within each other in a job that is kept; no message has half as many."""
REPLAY = re.compile(r"(?P<first>.+):r(?P<count>[1-9][0-9]{0,5})")
"""How the id of a replay ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A dead job as it is kept. `key` is its id, or that of the task that brought it; `job` what was on the wire."""

    task: str
    task_id: str | None
    key: str
    person: str | None
    status: Status
    reason: str | None
    detail: str | None
    job: Json

    @property
    def digest(self) -> str:
        """What makes it the same job."""
        return hashlib.sha256(json.dumps([self.task, self.key, self.job], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Kept:
    """A letter as it was found: `job` is the object that was on the wire, `fields` all there is to show."""

    id: int
    at: datetime
    job: Json
    fields: Json


def can_be_kept(task: str, given: object) -> bool:
    """Whether an object off the wire, which may be anything, is a job that can be kept."""
    if task not in KEPT_TASKS or not isinstance(given, dict) or _depth_exceeds(given, DEPTH_MAX):
        return False
    try:
        return len(json.dumps(given, allow_nan=False)) <= JOB_MAX
    except (TypeError, ValueError):  # kombu's JSON knows dates and more
        return False


def _depth_exceeds(value: object, most: int) -> bool:
    inside = [value]
    for _ in range(most):
        inside = [
            inner
            for one in inside
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return bool(inside)


def keep(connection: Connection, letters: Sequence[Letter], now: datetime) -> None:
    """Keep letters. One that is there already is written anew, and is to be replayed once more."""
    by_digest = {letter.digest: letter for letter in letters}
    for digest, letter in sorted(by_digest.items()):
        ended = {
            "task_id": letter.task_id,
            "status": letter.status,
            "reason": letter.reason,
            "detail": letter.detail,
            "at": now,
        }
        connection.execute(
            insert(connection, dead_letters)
            .values(task=letter.task, key=letter.key, person=letter.person, job=letter.job, digest=digest, **ended)
            .on_conflict_do_update(
                index_elements=[dead_letters.c.digest], set_={**ended, "replayed_as": None, "replayed_at": None}
            )
        )


def settle(
    connection: Connection, settlements: Sequence[Settlement], now: datetime, *, keep_dead: bool, ended_before: int = 0
) -> list[Settlement]:
    """Settle as the ledger does, and keep a letter of each job that failed, or neither."""
    counted = ledger.settle(connection, settlements, now, ended_before=ended_before)
    if keep_dead:
        keep_failed(connection, counted, now)
    return counted


def keep_failed(connection: Connection, counted: Sequence[Settlement], now: datetime) -> None:
    """Keep a letter of each of these jobs that failed."""
    keep(connection, [_letter_of(one) for one in counted if one.state is State.FAILED], now)


def _letter_of(failed: Settlement) -> Letter:
    charge = failed.charge
    return Letter(
        task=f"{charge.kind}.send",
        task_id=None,
        key=charge.job_id,
        person=charge.sender,
        status="failed",
        reason=failed.reason,
        detail=failed.detail,
        job=job_of(charge),
    )


def job_of(charge: Charge) -> Json:
    """The message of a charge as it would be on the wire; one of a bulk job as a message of its own."""
    content = {name: part for name, part in (charge.content or {}).items() if name not in ("recipients", "segments")}
    return {"job_id": charge.job_id, "sender": charge.sender, **content}


def listed(
    connection: Connection, *, status: Status | None = None, since: datetime | None = None, page: int = 1
) -> tuple[list[Json], bool]:
    """The letters of one page without what they say, newest first; and whether there are more."""
    newest_first = _chosen(status, since).order_by(dead_letters.c.at.desc(), dead_letters.c.id.desc())
    found, more = page_of(connection, newest_first, page)
    return [_row(row) for row in found], more


_HEAD = [column for column in dead_letters.c if column.name not in ("job", "digest", "detail")]


def _chosen(status: Status | None, since: datetime | None) -> Select[*tuple[Any, ...]]:
    query = select(*_HEAD)
    if status is not None:
        query = query.where(dead_letters.c.status == status)
    return query if since is None else query.where(dead_letters.c.at >= since)


def _row(row: Row[*tuple[Any, ...]]) -> Json:
    return {
        "id": str(row.id),
        "kind": row.status,
        "task": row.task,
        "task_id": row.task_id,
        "key": row.key,
        "person": row.person,
        "reason": row.reason,
        "at": iso(row.at),
        "replayed_as": row.replayed_as,
        "replayed_at": iso(row.replayed_at),
    }


def waiting(connection: Connection, *, status: Status | None = None, since: datetime | None = None) -> list[int]:
    """The letters that nobody has replayed yet, oldest first."""
    query = _chosen(status, since).where(dead_letters.c.replayed_at.is_(None)).order_by(dead_letters.c.id)
    return [row.id for row in connection.execute(query)]


def read(connection: Connection, letter_id: int) -> Kept | None:
    """One letter with all it says."""
    row = connection.execute(select(dead_letters).where(dead_letters.c.id == letter_id)).one_or_none()
    return None if row is None else Kept(row.id, row.at, row.job, {**_row(row), "detail": row.detail, "job": row.job})


def replay(letter: Kept) -> tuple[str, Json]:
    """Under which id a letter is enqueued again, and the object to enqueue; for the same letter always the same.

    A send job whose id is taken by its refusal or failure needs a new one. All others keep theirs, so that what may
    have been done under it is not done again.
    """
    key: str = letter.fields["key"]
    if letter.fields["task"] not in SEND_TASKS:
        return key, letter.job
    taken = letter.fields["kind"] != "fault" and letter.fields["reason"] != Reason.INVALID_JOB
    new_key = next_key(key) if taken or not ID.fullmatch(key) else key
    return new_key, {**letter.job, "job_id": new_key}


def next_key(key: str) -> str:
    """The id under which a job is replayed: `a` as `a:r1`, `a:r1` as `a:r2`. A hash stands in for what has no room."""
    match = REPLAY.fullmatch(key)
    first, count = (match["first"], int(match["count"])) if match else (key, 0)
    end = f":r{count + 1}"
    if ID.fullmatch(first) and len(first) + len(end) <= ID_MAX:
        return first + end
    end = f".{hashlib.sha256(first.encode()).hexdigest()[:16]}{end}"
    return re.sub(f"[^{ID_CHARACTERS}]", ".", first)[: ID_MAX - len(end)] + end


def mark_replayed(connection: Connection, letter: Kept, key: str, now: datetime) -> None:
    """Note that a letter was enqueued again as `key`, unless the job has died again meanwhile."""
    connection.execute(
        update(dead_letters)
        .where(dead_letters.c.id == letter.id, dead_letters.c.at == letter.at)
        .values(replayed_as=key, replayed_at=now)
    )


def erase(connection: Connection, before: datetime, limit: int) -> int:
    """Remove letters that are older than `before`, at most `limit`; returns how many."""
    ids = lock_past(connection, dead_letters.c.id, dead_letters.c.at, before, limit)
    if ids:
        connection.execute(delete(dead_letters).where(dead_letters.c.id.in_(ids)))
    return len(ids)
