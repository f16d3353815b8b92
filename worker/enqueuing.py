"""The command that enqueues the jobs of a file, many a round trip, and does not wait for them."""

from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.progress import track

from models.errors import Reason, Refused
from tasks.client import BrokerAwayError, check
from tasks.client import enqueue as publish
from tasks.context import Json
from worker.jobfile import JobLine, each_job
from worker.showing import as_json, show, the_app

SHOWN_MAX = 20
"""Bad lines that are named."""


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@as_json
@click.pass_context
def enqueue(ctx: click.Context, file: Path, as_json: bool) -> None:  # noqa: FBT001
    """Enqueue the jobs in FILE, and do not wait for them.

    Each line of FILE is {"task": …, "job": …}, as for `postage up`. If any is not valid, or a send job lacks its
    job_id, nothing is enqueued. The same FILE can be enqueued again: no job is charged or sent twice. Jobs are done
    side by side: what others depend on, such as a purchase, must be done before theirs are enqueued.
    """
    count, bad = _examine(file)
    if bad:
        show(_refusal(bad), as_json=as_json, screen=_screen)
    jobs = track(each_job(file), "Enqueuing", total=count, console=Console(stderr=True), disable=as_json)
    try:
        publish(the_app(ctx), ((line.task, line.job) for line in jobs))
    except BrokerAwayError as error:
        raise click.ClickException(str(error)) from error
    show({"status": "done", "reason": None, "detail": None, "enqueued": count}, as_json=as_json, screen=_screen)


def _examine(file: Path) -> tuple[int, list[Json]]:
    """How many jobs the file has, and what is wrong with which line."""
    count = 0
    bad: list[Json] = []
    for line in each_job(file):
        count += 1
        bad += _wrong(line)
    return count, bad


def _wrong(line: JobLine) -> Iterator[Json]:
    try:
        check(line.task, line.job)
    except Refused as why:
        yield {"line": line.number, "task": line.task, "detail": why.detail}


def _refusal(bad: list[Json]) -> Json:
    sentences = [f"Line {one['line']} ({one['task']}): {one['detail']}" for one in bad[:SHOWN_MAX]]
    if len(bad) > SHOWN_MAX:
        sentences.append(f"And {len(bad) - SHOWN_MAX} more lines.")
    detail = "\n".join([*sentences, "Nothing was enqueued."])
    return {"status": "refused", "reason": Reason.INVALID_JOB, "detail": detail, "enqueued": 0, "lines": bad}


def _screen(console: Console, answer: Json) -> None:
    console.print(f"{answer['enqueued']} jobs are on their queues. `postage status JOB_ID` shows what becomes of each.")
