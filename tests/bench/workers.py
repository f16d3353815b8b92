"""Worker processes of either side, and how long they take for what waits on a queue."""

import base64
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
from redis import Redis

from worker.embedded import dying_with_parent

Json = dict[str, Any]
PUBLISHED_AT_ONCE: Final = 500
START_S: Final = 60.0
STUCK_S: Final = 300.0
LOOK_EVERY_S: Final = 0.01


@dataclass(frozen=True)
class Measured:
    """Jobs a second, and the CPU time that the worker processes spent on each, in milliseconds."""

    rate: float
    cpu_ms: float
    memory_mb: float
    note: str = ""


def message(task: str, queue: str, job: Json) -> str:
    """A task message as Celery's own client writes it on Redis."""
    task_id = str(uuid.uuid4())
    headers = {
        "lang": "py", "task": task, "id": task_id, "shadow": None, "eta": None, "expires": None, "group": None,
        "group_index": None, "retries": 0, "timelimit": [None, None], "root_id": task_id, "parent_id": None,
        "argsrepr": "(…)", "kwargsrepr": "{}", "origin": "bench", "ignore_result": True, "replaced_task_nesting": 0,
        "stamped_headers": None, "stamps": {},
    }  # fmt: skip
    besides = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    return json.dumps({
        "body": base64.b64encode(json.dumps([[job], {}, besides]).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": {
            "correlation_id": task_id, "reply_to": str(uuid.uuid4()), "delivery_mode": 2, "priority": 0,
            "delivery_info": {"exchange": "", "routing_key": queue}, "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    })  # fmt: skip


def publish(redis: Redis, task: str, queue: str, jobs: Iterable[Json]) -> None:
    """Put jobs on a queue, many in a round trip."""
    items = [message(task, queue, job) for job in jobs]
    for first in range(0, len(items), PUBLISHED_AT_ONCE):
        redis.lpush(queue, *items[first : first + PUBLISHED_AT_ONCE])


@contextmanager
def workers(command: Sequence[str], count: int, environment: Mapping[str, str], folder: Path) -> Iterator[list[int]]:
    """Run `count` worker processes for the length of the block; gives their ids. `%n` is the number of each."""
    processes = []
    try:
        for number in range(count):
            words = [word.replace("%n", str(number)) for word in command]
            with (folder / f"worker{number}.log").open("ab") as log:
                processes.append(
                    subprocess.Popen(
                        dying_with_parent(words, signal.SIGKILL),
                        env={**os.environ, **environment},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def time_through(
    redis: Redis, pids: Sequence[int], queue: str, put: Callable[[int], None], jobs: int, *, warm: int
) -> Measured:
    """How fast the workers get through `jobs` that all wait when they begin, after `warm` others."""
    put(warm)
    _wait_until_done(redis, queue)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    put(jobs)
    before = _cpu_s(pids)
    began = time.monotonic()
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    _wait_until_done(redis, queue)
    took = time.monotonic() - began
    cpu_ms = (_cpu_s(pids) - before) / jobs * 1000
    memory = sum(psutil.Process(pid).memory_info().rss for pid in pids) / len(pids) / 2**20
    return Measured(jobs / took, cpu_ms, memory)


def _wait_until_done(redis: Any, queue: str) -> None:
    deadline = time.monotonic() + STUCK_S
    while redis.llen(queue) or redis.hlen("unacked"):
        if time.monotonic() > deadline:
            msg = f"{redis.llen(queue)} jobs wait on {queue} and {redis.hlen('unacked')} are in hand; nothing moves."
            raise TimeoutError(msg)
        time.sleep(LOOK_EVERY_S)


def _cpu_s(pids: Sequence[int]) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(one.user + one.system + one.children_user + one.children_system for one in times)
