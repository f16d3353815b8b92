"""`python -m bench.enqueuing`: how fast `tasks.client` enqueues beside plain `send_task`, and in how much memory."""

import argparse
import gc
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

from celery import Celery
from rich.console import Console

from models.messages.sends import SendEmail
from tasks.client import enqueue, producer_app
from tests.servers import ValkeyServer


def emails(count: int) -> Iterator[SendEmail]:
    """Short emails, made one by one."""
    for number in range(count):
        yield SendEmail(
            job_id=f"job-{number}", sender="mary", to=[f"{number}@example.org"], subject="Hello", text="Hello! " * 20
        )


def one_by_one(app: Celery, count: int) -> None:
    """What a producer does that knows nothing of the client."""
    for email in emails(count):
        app.send_task("email.send", args=[email.model_dump(mode="json", exclude_unset=True)], ignore_result=True)


def rate(run: Callable[[Celery, int], object], app: Celery, count: int) -> float:
    """Jobs a second."""
    gc.collect()
    begun = time.perf_counter()
    run(app, count)
    return count / (time.perf_counter() - begun)


def memory(app: Celery, count: int) -> float:
    """The most that enqueuing had in use at a time, in megabytes."""
    tracemalloc.start()
    enqueue(app, emails(count))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most / 1e6


def main() -> None:
    """Measure both in turn, on a broker of their own."""
    parser = argparse.ArgumentParser(prog="python -m bench.enqueuing", description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs of the client a round; send_task has a third")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stream", type=int, default=100_000, help="jobs of the generator whose memory is measured")
    given = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder, ValkeyServer(Path(folder)) as server:
        app = producer_app(server.url())
        enqueue(app, emails(1000))
        ratios = []
        for _ in range(given.rounds):
            alone = rate(one_by_one, app, given.jobs // 3)
            together = rate(lambda app, count: enqueue(app, emails(count)), app, given.jobs)
            ratios.append(together / alone)
            console.print(f"send_task {alone:6.0f}/s   enqueue {together:6.0f}/s   {ratios[-1]:.1f} times as many")
            server.flush()
        console.print(f"median {statistics.median(ratios):.1f} times")
        few, many = memory(app, given.stream // 10), memory(app, given.stream)
        console.print(f"memory for {given.stream // 10} jobs {few:.1f} MB, for {given.stream} {many:.1f} MB")


if __name__ == "__main__":
    main()
