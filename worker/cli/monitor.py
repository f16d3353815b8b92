"""What operators ask of database and broker: how one job stands, and how everything stands."""

import time
from datetime import datetime, timedelta

from kombu.exceptions import OperationalError
from redis import RedisError
from sqlalchemy import Connection

from models.messages.answer import iso_time
from models.messages.base import Json
from models.reports.status import (
    count_dead_letters,
    count_jobs,
    count_postponed,
    count_refusals,
    ended_answers,
    find_answer,
)
from models.sends.resting import Rest, find_rests
from tasks.context import Context
from tasks.queues import Queue
from worker.app import PostageApp
from worker.broker.fair_queue import waiting_count
from worker.broker.quarantine import count_items
from worker.broker.transport import redis_client

LOOK_EVERY_S = 0.1
RECENT = timedelta(days=1)
NOT_TAKEN_UP = "Enqueued. No worker has taken it up yet: `postage worker` runs one, `postage status JOB_ID` asks again."


def job_answer(context: Context, job_id: str) -> Json:
    """Return the answer to a send job."""
    answer = context.database.read(lambda connection: find_answer(connection, job_id))
    return answer or {"status": "refused", "job_id": job_id, "reason": "not_found", "detail": f"No job {job_id}."}


def wait_for_answer(context: Context, task_id: str, task: str, job: Json, *, until: float) -> Json:
    """Return the answer to a job that was just enqueued: once it has ended, or as it stands at `until` (monotonic)."""

    def ended(connection: Connection) -> Json | None:
        return ended_answers(connection, {task_id: (task, job)}).get(task_id)

    while (answer := context.database.read(ended)) is None:
        if time.monotonic() >= until:
            present = context.database.read(lambda connection: find_answer(connection, job["job_id"]))
            return present or {"job_id": job["job_id"], "status": "enqueued", "reason": None, "detail": NOT_TAKEN_UP}
        time.sleep(LOOK_EVERY_S)
    return answer


def overall(app: PostageApp) -> Json:
    """Return how carriers, workers, queues and jobs stand.

    The jobs are those that are open, and those of the last day that have ended.
    """
    since = app.context.database.read(app.context.now) - RECENT
    queues, quarantined = _queues(app)
    return {
        "status": "done",
        "carriers": carriers_as_they_stand(app),
        "workers": _workers(app),
        "queues": queues,
        **app.context.database.read(
            lambda connection: {
                "jobs": count_jobs(connection, since),
                "postponed": count_postponed(connection),
                "refusals": count_refusals(connection, since),
                "dead": count_dead_letters(connection),
            }
        ),
        "quarantined": quarantined,
    }


def carriers_as_they_stand(app: PostageApp) -> list[Json]:
    """Return the carriers, each with whether it works, and those that rest and are not set up here (any more)."""
    rests, now = app.context.database.read(lambda connection: (find_rests(connection), app.context.now(connection)))
    resting = {(rest.kind, rest.carrier): rest for rest in rests}
    set_up = {(kind, url.name): url.address for kind, urls in app.settings.carriers.items() for url in urls}
    return [
        {"kind": kind, "name": name, "address": set_up.get((kind, name)), **_health(resting.get((kind, name)), now)}
        for kind, name in [*set_up, *(key for key in resting if key not in set_up)]
    ]


def _health(rest: Rest | None, now: datetime) -> Json:
    """Return whether a carrier `works`, `rests`, or is to be `tried`, and whose fault it is: `ours`, or `theirs`."""
    if rest is None:
        return {"state": "works", "fault": None, "why": None, "since": None, "until": None, "times": 0}
    return {
        "state": "rests" if rest.until > now else "tried",
        "fault": "ours" if rest.is_our_fault else "theirs",
        "why": rest.detail,
        "since": iso_time(rest.since),
        "until": iso_time(rest.until),
        "times": rest.rests,
    }


def _workers(app: PostageApp) -> list[str]:
    try:
        return sorted(app.control.inspect(timeout=1.0).ping() or {})
    except OperationalError:
        return []


def _queues(app: PostageApp) -> tuple[dict[str, int | None], int | None]:
    """Return the jobs that wait on each queue, and the number of quarantined items; None if the broker is away."""
    try:
        with app.connection_for_read() as connection:
            redis = redis_client(connection.default_channel)
            return {str(queue): waiting_count(redis, queue) for queue in Queue}, count_items(redis)
    except (OperationalError, RedisError):
        return {str(queue): None for queue in Queue}, None
