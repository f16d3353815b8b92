"""What operators ask: what became of a job, and how workers, queues and jobs stand."""

import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from kombu.exceptions import OperationalError
from redis import RedisError
from sqlalchemy import Connection, Row, Select, func, select

from models import charges as charging
from models.answers import bulk_answer, message_answer, refused_answer
from models.charges import Charge, State, made_since
from models.database import search_by_index
from models.due import waits
from models.holding import held
from models.tables import charges, dead_letters, refusals
from tasks.context import Context, Json
from tasks.queues import Queue
from worker.app import PostageApp
from worker.taking import QUARANTINE, waiting
from worker.transport import client_of

LOOK_EVERY_S = 0.1
LATELY = timedelta(days=1)
NOT_TAKEN_UP = "Enqueued. No worker has taken it up yet: `postage worker` runs one, `postage status JOB_ID` asks again."


def job(context: Context, job_id: str) -> Json:
    """The answer to a send job."""
    with context.database.read() as connection:
        answer = _answer(connection, job_id)
    return answer or {"status": "refused", "job_id": job_id, "reason": "not_found", "detail": f"No job {job_id}."}


def wait_for(context: Context, task_id: str, job_id: str, *, until: float) -> Json:
    """The answer to a job that was just enqueued, once it has ended, or as it stands at `until` (monotonic seconds)."""
    while True:
        answer = ended(context, {task_id: job_id}).get(task_id)
        if answer is not None:
            return answer
        if time.monotonic() >= until:
            with context.database.read() as connection:
                answer = _answer(connection, job_id)
            return answer or {"job_id": job_id, "status": "enqueued", "reason": None, "detail": NOT_TAKEN_UP}
        time.sleep(LOOK_EVERY_S)


def ended(context: Context, jobs: Mapping[str, str]) -> dict[str, Json]:
    """Of these send jobs (task id to job id) those that are final, refused or unknown, each with its answer."""
    with context.database.read() as connection:
        rows = connection.execute(select(refusals).where(refusals.c.task_id.in_(jobs)).order_by(refusals.c.id))
        found = {row.task_id: _refusal(row, jobs[row.task_id]) for row in rows}
        charges_ = charging.read(connection, set(jobs.values()))
        for task_id, job_id in jobs.items():
            if task_id not in found and job_id in charges_:
                found[task_id] = _answer_to(connection, charges_[job_id])
    return {task_id: answer for task_id, answer in found.items() if answer["status"] not in ("sending", "retrying")}


def everything(app: PostageApp) -> Json:
    """How workers, queues and jobs stand: the jobs that are open, and what has ended of the last day's."""
    since = app.context.now() - LATELY
    with app.context.database.read() as connection:
        search_by_index(connection)
        states = [row for query in _jobs(since) for row in connection.execute(query)]
        refused = connection.execute(select(func.count()).where(refusals.c.at >= since)).scalar_one()
        dead = dead_letters.c.replayed_at.is_(None)
        kept = connection.execute(select(func.count()).select_from(dead_letters).where(dead)).scalar_one()
    jobs: dict[str, dict[str, int]] = {}
    for kind, state, count in states:
        jobs.setdefault(kind, {})[state] = count
    queues, quarantined = _queues(app)
    return {
        "status": "done",
        "workers": _workers(app),
        "queues": queues,
        "jobs": jobs,
        "refusals": refused,
        "dead": kept,
        "quarantined": quarantined,
    }


def _jobs(since: datetime) -> Sequence[Select[Any]]:
    """Counts of jobs by kind and state, each read from an index, whatever the history."""
    by_state = select(charges.c.kind, charges.c.state, func.count(charges.c.job_id))
    ended_lately = (some & charges.c.final_at.is_not(None) for some in made_since(since))
    of = (*waits(), held(), charges.c.unknown_since.is_not(None), *ended_lately)
    return [by_state.where(some).group_by(charges.c.kind, charges.c.state) for some in of]


def _workers(app: PostageApp) -> list[str]:
    try:
        return sorted(app.control.inspect(timeout=1.0).ping() or {})
    except OperationalError:
        return []


def _queues(app: PostageApp) -> tuple[dict[str, int | None], int | None]:
    """How many jobs wait on each queue, and how many items are in quarantine; None where the broker does not answer."""
    try:
        with app.connection_for_read() as connection:
            redis = client_of(connection.default_channel)
            return {str(queue): waiting(redis, queue) for queue in Queue}, redis.llen(QUARANTINE)
    except (OperationalError, RedisError):
        return {str(queue): None for queue in Queue}, None


def _answer(connection: Connection, job_id: str) -> Json | None:
    charge = charging.read(connection, [job_id]).get(job_id)
    return None if charge is None else _answer_to(connection, charge)


def _answer_to(connection: Connection, charge: Charge) -> Json:
    if charge.state is not State.BULK:
        return message_answer(charge)
    return bulk_answer(
        charge,
        charging.count_states(connection, charge.job_id),
        charging.bulk_payer(connection, charge.job_id),
        charging.charged_now(connection, charge.job_id),
    )


def _refusal(row: Row[*tuple[Any, ...]], job_id: str) -> Json:
    return {"job_id": job_id, **refused_answer(row.reason, row.detail)}
