"""Worker processes of either side, and how long they take for what waits on a queue."""

import base64
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psutil
from redis import Redis

from bench import figures
from worker.broker import fair_queue
from worker.local.valkey import dying_with_parent

Json = dict[str, Any]
PUBLISHED_AT_ONCE: Final = 500
START_S: Final = 60.0
STUCK_S: Final = 120.0
"""Without any progress."""
LOOK_EVERY_S: Final = 0.01
SETTLE_S: Final = 0.3


class SideError(Exception):
    """A side could not be measured; the message says why, and what to do."""


def message(task: str, queue: str, job: Json) -> str:
    """A task message as Celery's own client writes it on Redis."""
    task_id = str(uuid.uuid4())
    headers = {
        "lang": "py", "task": task, "id": task_id, "shadow": None, "eta": None, "expires": None, "group": None,
        "group_index": None, "retries": 0, "timelimit": [None, None], "root_id": task_id, "parent_id": None,
        "argsrepr": f"(job={job['job_id']}, sender={job['sender']})", "kwargsrepr": "{}", "origin": "bench",
        "ignore_result": True, "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {},
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
def workers(
    command: Sequence[str], count: int, environment: Mapping[str, str], folder: Path
) -> Iterator[list[psutil.Popen]]:
    """Run `count` worker processes for the length of the block. `%n` is the number of each.

    Raises
    ------
    SideError
        If one of them ended by itself, with the end of its log.

    """
    processes: list[psutil.Popen] = []
    # As anywhere: compiled modules are kept, or a start-up would be spent on compiling ours each time.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    logs = [folder / f"worker{number}.log" for number in range(count)]
    try:
        for number, path in enumerate(logs):
            words = [word.replace("%n", str(number)) for word in command]
            with path.open("wb") as log:
                processes.append(
                    psutil.Popen(
                        dying_with_parent(words, signal.SIGKILL),
                        env={**inherited, **environment},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
        yield processes
    except Exception as error:
        ended = [number for number, process in enumerate(processes) if process.poll() is not None]
        if ended:
            words = logs[ended[0]].read_text(errors="replace")[-600:].strip()
            msg = f"a worker ended by itself with {processes[ended[0]].returncode}: {words}"
            raise SideError(msg) from error
        raise
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in processes:
            try:
                process.wait(30)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait()


def time_through(  # noqa: PLR0917
    redis: Redis, processes: Sequence[psutil.Popen], servers: Mapping[str, int], queues: Sequence[str],
    put: Callable[[int], None], jobs: int, *, warm: int,
) -> figures.Figures:  # fmt: skip
    """How fast the workers get through `jobs` that all wait when they begin, after `warm` others.

    `servers` are the processes, by name, whose CPU time counts beside that of the workers.
    """
    put(warm)
    wait_until_done(redis, queues, processes)
    time.sleep(SETTLE_S)
    pids = [process.pid for process in processes]
    idle_mb = _memory_mb(pids)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    put(jobs)
    at_work = {"worker": pids, **{name: [pid] for name, pid in servers.items()}}
    before = {name: cpu_s(some) for name, some in at_work.items()}
    began = time.monotonic()
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    wait_until_done(redis, queues, processes)
    took = time.monotonic() - began
    cpu_ms = {name: (cpu_s(some) - before[name]) / jobs * 1000 for name, some in at_work.items()}
    return {
        "rate": jobs / took,
        **{f"{name}_cpu_ms": value for name, value in cpu_ms.items()},
        "all_cpu_ms": sum(cpu_ms.values()),
        "idle_mb": idle_mb,
        "loaded_mb": _memory_mb(pids),
        "timed_s": took,
    }


def wait_until_done(redis: Any, queues: Sequence[str], processes: Sequence[psutil.Popen]) -> None:
    """Return when nothing waits and nothing is in hand.

    Raises
    ------
    SideError
        If a worker ended, or nothing has moved for long.

    """
    left, moved = -1, time.monotonic()
    while now_left := sum(fair_queue.waiting_count(redis, queue) for queue in queues) + redis.hlen("unacked"):
        if now_left != left:
            left, moved = now_left, time.monotonic()
        if time.monotonic() > moved + STUCK_S:
            msg = f"{left} jobs wait or are in hand, and nothing has moved for {STUCK_S:g} s"
            raise SideError(msg)
        if any(process.poll() is not None for process in processes):
            msg = "a worker ended by itself"
            raise SideError(msg)
        time.sleep(LOOK_EVERY_S)


def cpu_s(pids: Iterable[int]) -> float:
    """CPU time of processes and of all below them, in seconds, ended ones included."""
    total = 0.0
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            for one in (process, *process.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    times = one.cpu_times()
                    total += times.user + times.system + times.children_user + times.children_system
    return total


def machine_cpu_s() -> float:
    """CPU time that the whole machine has worked, in seconds."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + getattr(times, "irq", 0) + getattr(times, "softirq", 0))


def _memory_mb(pids: Sequence[int]) -> float:
    return sum(psutil.Process(pid).memory_info().rss for pid in pids) / len(pids) / 2**20
