"""Dead letters: jobs that were refused, failed, or were given up after faults, stored for a while to be replayed.

A letter holds the whole object that was on the wire, so it is private, and is erased when its time is over. A job that
ends here again has the same letter. This module decides under which id a letter is replayed; it enqueues nothing.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    Row,
    Select,
    Text,
    bindparam,
    case,
    cast,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSON as POSTGRES_JSON

from models.database.json_rows import rows_from, rows_param
from models.database.paging import SortKey, fetch_page
from models.database.schema import UtcDateTime, dead_letters
from models.database.statements import insert_for
from models.errors import Reason
from models.messages.answer import iso_time
from models.messages.base import Json
from models.messages.fields import ID, ID_CHARACTERS, ID_MAX
from models.messages.wire import MESSAGES, SEND_TASKS
from models.sends.charges import Charge, State
from models.sends.outcomes import Settlement
from models.users.users import is_erased, organization_of

Status = Literal["refused", "failed", "fault"]

KEPT_TASKS = tuple(task for task in MESSAGES if not task.startswith("views."))
"""Tasks whose jobs are worth keeping. A view that was refused needs no replay."""
JOB_MAX = 4_000_000
"""Characters of the JSON of a job that is kept."""
DEPTH_MAX = 10
"""Levels of nesting in the JSON of a job that is kept. No valid message has half as many."""
GROUP_MAX = 16_000_000
"""Characters of the jobs that are stored by one statement: more than a batch has, and little for a database."""
REPLAY = re.compile(r"(?P<first>.+):r(?P<count>[1-9][0-9]{0,5})")
"""The id of a replay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A dead job as it is stored. `key` is its id, or its Celery task's; `job` is the object that was on the wire."""

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
        """The SHA-256 (hex) by which the same job is recognized."""
        return hashlib.sha256(json.dumps([self.task, self.key, self.job], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """A letter as it was found. `job` is the object that was on the wire, `fields` is everything there is to show."""

    id: int
    at: datetime
    job: Json
    fields: Json


def is_keepable(task: str, given: object) -> bool:
    """Whether an object off the wire, which may be anything, is a job that can be stored as a letter."""
    if task not in KEPT_TASKS or not isinstance(given, dict) or _depth_exceeds(given, DEPTH_MAX):
        return False
    try:
        return len(json.dumps(given, allow_nan=False)) <= JOB_MAX
    except (TypeError, ValueError):  # kombu's JSON knows dates and more
        return False


def _depth_exceeds(value: object, most: int) -> bool:
    level = [value]
    for _ in range(most):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


def keep_letters(connection: Connection, letters: Sequence[DeadLetter], now: datetime) -> None:
    """Store letters, but none about a user who was erased.

    One that is stored already gets its new end, and counts as not replayed.
    """
    by_digest = {letter.digest: letter for letter in letters}
    rows = [_stored_row(letter, digest) for digest, letter in sorted(by_digest.items())]
    for group in _groups(rows):
        parameters = {**rows_param(connection, group, "letters"), "at": now}
        connection.execute(_upsert_letters(connection.dialect.name), parameters)


def _stored_row(letter: DeadLetter, digest: str) -> Json:
    return {
        "task": letter.task,
        "task_id": letter.task_id,
        "key": letter.key,
        "person": letter.person,
        "status": letter.status,
        "reason": letter.reason,
        "detail": letter.detail,
        "job": json.dumps(letter.job),
        "digest": digest,
    }


def _groups(rows: Sequence[Json]) -> Iterator[list[Json]]:
    """Yield rows in groups for one statement each, of at most `GROUP_MAX` unless a single one has more."""
    group: list[Json] = []
    size = 0
    for row in rows:
        if group and size + len(row["job"]) > GROUP_MAX:
            yield group
            group, size = [], 0
        group.append(row)
        size += len(row["job"])
    if group:
        yield group


@functools.cache
def _upsert_letters(dialect: str) -> Executable:
    columns = ("task", "task_id", "key", "person", "status", "reason", "detail", "digest")
    # A job is the text of its JSON, which PostgreSQL does not unpack: it would refuse half characters and NUL.
    letters = rows_from(dialect, {**{name: dead_letters.c[name].type for name in columns}, "job": Text()}, "letters")
    values: dict[str, ColumnElement[Any]] = {
        **{name: letters.c[name] for name in columns},
        "org_id": organization_of(letters.c.person),
        "job": cast(letters.c.job, POSTGRES_JSON) if dialect == "postgresql" else letters.c.job,
        "at": bindparam("at", type_=UtcDateTime),
    }
    saved_user = case((letters.c.task == "users.save", letters.c.key))
    # In the order of digests, so that two batches with the same letters do not lock each other out.
    rows = (
        select(*(value.label(name) for name, value in values.items()))
        .where(~is_erased(letters.c.person, saved_user))
        .order_by(letters.c.digest)
    )
    insert_letters = insert_for(dialect, dead_letters).from_select(list(values), rows)
    new_end = {name: insert_letters.excluded[name] for name in ("task_id", "status", "reason", "detail", "at")}
    return insert_letters.on_conflict_do_update(
        index_elements=[dead_letters.c.digest], set_={**new_end, "replayed_as": None, "replayed_at": None}
    )


def keep_failed(connection: Connection, settlements: Sequence[Settlement], now: datetime) -> None:
    """Store a letter of each job that failed."""
    failed = [_letter_of(one) for one in settlements if one.state is State.FAILED]
    keep_letters(connection, failed, now)


def _letter_of(failed: Settlement) -> DeadLetter:
    charge = failed.charge
    return DeadLetter(
        task=f"{charge.kind}.send",
        task_id=None,
        key=charge.job_id,
        person=charge.sender,
        status="failed",
        reason=failed.reason,
        detail=failed.detail,
        job=original_job(charge),
    )


def original_job(charge: Charge) -> Json:
    """Return the message of a charge as it was on the wire; a message of a bulk job as one that was sent alone."""
    content = {name: part for name, part in (charge.content or {}).items() if name not in ("recipients", "segments")}
    return {"job_id": charge.job_id, "sender": charge.sender, **content}


def list_letters(
    connection: Connection, *, status: Status | None = None, since: datetime | None = None, cursor: str | None = None
) -> tuple[list[Json], str | None]:
    """Return one page of letters, newest first, without their contents, and the cursor of the next page."""
    newest_first = {name: SortKey(dead_letters.c[name], descending=True) for name in ("at", "id")}
    page = fetch_page(connection, _select(status, since), newest_first, cursor)
    return [_row(row) for row in page.rows], page.next


_HEADER = [column for column in dead_letters.c if column.name not in ("job", "digest", "detail")]


def _select(status: Status | None, since: datetime | None) -> Select[*tuple[Any, ...]]:
    query = select(*_HEADER)
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
        "at": iso_time(row.at),
        "replayed_as": row.replayed_as,
        "replayed_at": iso_time(row.replayed_at),
    }


def unreplayed_ids(connection: Connection, *, status: Status | None = None, since: datetime | None = None) -> list[int]:
    """Return the ids of the letters that were not replayed yet, oldest first."""
    query = _select(status, since).where(dead_letters.c.replayed_at.is_(None)).order_by(dead_letters.c.id)
    return [row.id for row in connection.execute(query)]


def find_letter(connection: Connection, letter_id: int) -> StoredLetter | None:
    """Return one letter with its contents."""
    row = connection.execute(select(dead_letters).where(dead_letters.c.id == letter_id)).one_or_none()
    if row is None:
        return None
    return StoredLetter(row.id, row.at, row.job, {**_row(row), "detail": row.detail, "job": row.job})


def replay_of(letter: StoredLetter) -> tuple[str, Json]:
    """Return the id under which a letter is replayed, and the object to enqueue; always the same for the same letter.

    A send job whose id is taken by its refusal or failure gets a new one. All others keep theirs, so that what was
    perhaps done under it is not done twice.
    """
    key: str = letter.fields["key"]
    if letter.fields["task"] not in SEND_TASKS:
        return key, letter.job
    is_taken = letter.fields["kind"] != "fault" and letter.fields["reason"] != Reason.INVALID_JOB
    new_key = next_replay_id(key) if is_taken or not ID.fullmatch(key) else key
    return new_key, {**letter.job, "job_id": new_key}


def next_replay_id(key: str) -> str:
    """Return the id of a job's replay: `a` becomes `a:r1`, and `a:r1` `a:r2`. A hash replaces what is too long."""
    match = REPLAY.fullmatch(key)
    first, count = (match["first"], int(match["count"])) if match else (key, 0)
    end = f":r{count + 1}"
    if ID.fullmatch(first) and len(first) + len(end) <= ID_MAX:
        return first + end
    end = f".{hashlib.sha256(first.encode()).hexdigest()[:16]}{end}"
    return re.sub(f"[^{ID_CHARACTERS}]", ".", first)[: ID_MAX - len(end)] + end


def replay_before(key: str) -> str | None:
    """Return the id whose replay has the id `key`, if that is how replays are called."""
    match = REPLAY.fullmatch(key)
    if match is None:
        return None
    first, count = match["first"], int(match["count"])
    return first if count == 1 else f"{first}:r{count - 1}"


def mark_replayed(connection: Connection, letter: StoredLetter, key: str, now: datetime) -> None:
    """Note that a letter was replayed as `key`, unless the job has ended as a dead letter again meanwhile."""
    connection.execute(
        update(dead_letters)
        .where(dead_letters.c.id == letter.id, dead_letters.c.at == letter.at)
        .values(replayed_as=key, replayed_at=now)
    )
