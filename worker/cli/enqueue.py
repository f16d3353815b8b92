"""The command that enqueues the jobs of a file, many a round trip, and does not wait for them."""

from collections.abc import Iterator
from pathlib import Path

import click
from rich.progress import track

from models.errors import Reason, Refused
from models.messages.base import Json
from tasks import client
from worker.cli import tables
from worker.cli.job_file import JobLine, each_job
from worker.cli.output import json_option, print_answer
from worker.cli.printing import PlainConsole
from worker.cli.session import Need, current_session, needs

SHOWN_MAX = 20
"""Invalid lines that are named."""


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
@needs(Need.BROKER)
def enqueue(*, file: Path, as_json: bool) -> None:
    """Enqueue the jobs in FILE, and do not wait for them.

    Each line of FILE is {"task": …, "job": …}, as for `postage up`. If any is not valid, or a send job lacks its
    job_id, nothing is enqueued. The same FILE can be enqueued again: no job is charged or sent twice. Jobs are done
    side by side: a job that others depend on, such as a purchase, must be done before those are enqueued.
    """
    count, invalid = _check(file)
    if invalid:
        print_answer(_refusal(invalid), as_json=as_json, table=tables.enqueued)
    jobs = track(each_job(file), "Enqueuing", total=count, console=PlainConsole(stderr=True), disable=as_json)
    app = current_session().app
    client.enqueue(app, ((line.task, line.job) for line in jobs), key=app.signature_policy.keys.ours)
    answer = {"status": "done", "reason": None, "detail": None, "enqueued": count}
    print_answer(answer, as_json=as_json, table=tables.enqueued)


def _check(file: Path) -> tuple[int, list[Json]]:
    """Return how many jobs the file has, and what is wrong with which line."""
    count = 0
    invalid: list[Json] = []
    for line in each_job(file):
        count += 1
        invalid += _faults(line)
    return count, invalid


def _faults(line: JobLine) -> Iterator[Json]:
    try:
        client.check_job(line.task, line.job)
    except Refused as why:
        yield {"line": line.number, "task": line.task, "detail": why.detail}


def _refusal(invalid: list[Json]) -> Json:
    sentences = [f"Line {fault['line']} ({fault['task']}): {fault['detail']}" for fault in invalid[:SHOWN_MAX]]
    if len(invalid) > SHOWN_MAX:
        sentences.append(f"And {len(invalid) - SHOWN_MAX} more lines.")
    detail = "\n".join([*sentences, "Nothing was enqueued."])
    return {"status": "refused", "reason": Reason.INVALID_JOB, "detail": detail, "enqueued": 0, "lines": invalid}
