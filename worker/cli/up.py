"""`postage up`: everything on one machine, and the jobs of a file sent through it as any producer would send them.

The broker and the receivers belong to this process. Worker, beat, Flower and console are processes of their own,
which end with it.
"""

import functools
import os
import shlex
import signal
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import FrameType

import click
from celery.states import READY_STATES
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text
from sqlalchemy import Connection

from models.messages.base import Json
from models.messages.views import View, ViewUsage
from models.messages.wire import SEND_TASKS
from models.reports.status import ended_answers, list_pools
from models.reports.views import show_orders, show_overview, show_usage
from tasks.job_ids import USER_FIELDS, first_id
from tasks.signing_in import link_for
from worker.broker.signing import BY_US
from worker.cli import tables
from worker.cli.job_file import each_job
from worker.cli.printing import PlainConsole
from worker.cli.session import Need, current_session, needs
from worker.local.broker_url import BrokerUrl
from worker.local.stack import LOOK_EVERY_S, LocalStack, StackError, start_stack
from worker.private_files import write_private
from worker.settings import Settings

ANSWER_WITHIN_S = 120.0
ASK_EVERY_S = 0.02
LOOKUP_BATCH = 500
SHOWN_MAX = 50
"""Refused jobs, or pools, that the tables at the end show; files can hold thousands."""


@click.command()
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--exit", "exit_when_done", is_flag=True, help="End when every job has its final state.")
@needs(Need.SERVICE)
def up(*, file: Path | None, exit_when_done: bool) -> None:
    """Run everything on this machine, and the jobs in FILE.

    Starts the broker and the database (under ./var, unless POSTAGE_BROKER_URL and POSTAGE_DATABASE_URL name others), a
    worker, beat, Flower, the console (not with --exit), and local receivers that keep what is sent under ./var/outbox
    (unless POSTAGE_SMTP_URL and POSTAGE_SMS_URL name real carriers). Then enqueues the jobs in FILE like any outside
    producer, shows progress, and how everything ended. Each line of FILE is {"task": …, "job": …}; sends run side by
    side, any other task waits for the lines before it. Goes on running until Ctrl-C, or ends when the jobs are
    done (--exit).
    """
    run_up(current_session().settings, file, exit_when_done=exit_when_done)


@dataclass(slots=True)
class StoryLine:
    """One job of the file, the Celery task id it got, and its answer."""

    number: int
    task: str
    job: Json
    task_id: str
    answer: Json | None = None


def run_up(settings: Settings, file: Path | None, *, exit_when_done: bool) -> None:
    """Start everything, run the jobs of `file`, show how they ended; then go on running, or end.

    Raises
    ------
    JobFileError
        If a line of the file is not a job.
    StackError
        If something cannot be started, or ends while it should run.

    """
    lines = [StoryLine(line.number, line.task, line.job, str(uuid.uuid4())) for line in each_job(file)] if file else []
    console = PlainConsole()
    with ExitStack() as stack:
        stack.enter_context(_ended_by_signals())
        try:
            local = stack.enter_context(start_stack(settings, console, for_people=not exit_when_done))
            _run(local, lines, console)
            _print_places(local, _first_person(lines), console)
            if not exit_when_done:
                console.print("Running. Ctrl-C ends it.")
                local.run_until_interrupted()
        except KeyboardInterrupt:
            console.print("Ending …")
    console.print("Ended cleanly.")


def _run(local: LocalStack, lines: Sequence[StoryLine], console: PlainConsole) -> None:
    """Enqueue the jobs, wait for their ends, and show how they ended."""
    if not lines:
        return
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
    with progress:
        bar = progress.add_task("Jobs", total=len(lines))
        sends: list[StoryLine] = []
        for line in lines:
            if line.task in SEND_TASKS:
                local.app.send_task(line.task, args=[line.job], task_id=line.task_id, argsrepr="(…)", headers=BY_US)
                sends.append(line)
                continue
            # This line may depend on what the lines before it asked for.
            _wait_for_ends(local, sends, progress, bar)
            sends = []
            line.answer = _answer(local, line)
            progress.advance(bar)
        _wait_for_ends(local, sends, progress, bar)
    _print_refused(lines, console)
    local.context.database.read(lambda connection: _print_pools(connection, console))


def _answer(local: LocalStack, line: StoryLine) -> Json:
    """Enqueue one job, and ask for its answer until it is there.

    The result object is dropped at once: it would go on listening to a broker that ends before this process does.
    """
    local.app.send_task(line.task, args=[line.job], task_id=line.task_id, argsrepr="(…)", headers=BY_US)
    deadline = time.monotonic() + ANSWER_WITHIN_S
    while time.monotonic() < deadline:
        local.check()
        result = local.app.backend.get_task_meta(line.task_id)
        if result["status"] in READY_STATES:
            answer: Json = result["result"]
            return answer
        time.sleep(ASK_EVERY_S)
    raise StackError(
        f"Line {line.number} ({line.task}) was not answered; the worker's log is {local.logs / 'worker.log'}."
    )


def _wait_for_ends(local: LocalStack, lines: Sequence[StoryLine], progress: Progress, bar: TaskID) -> None:
    """Wait until each of these send jobs is final or unknown."""
    waiting = {line.task_id: line for line in lines}
    while waiting:
        local.check()
        jobs = {task_id: (line.task, line.job) for task_id, line in islice(waiting.items(), LOOKUP_BATCH)}
        answers = local.context.database.read(functools.partial(ended_answers, jobs=jobs))
        for task_id, answer in answers.items():
            waiting.pop(task_id).answer = answer
        progress.advance(bar, len(answers))
        if not answers:
            time.sleep(LOOK_EVERY_S)


def _print_refused(lines: Sequence[StoryLine], console: PlainConsole) -> None:
    """Print what was not done, and why: a story is told by its refusals."""
    answered = [(line, line.answer or {}) for line in lines]
    not_done = [(line, answer) for line, answer in answered if answer.get("status") in ("refused", "failed", "unknown")]
    if not_done:
        console.print(Text("Not done, and why", style="bold"))
    for line, answer in not_done[:SHOWN_MAX]:
        status = tables.coloured(answer["status"])
        console.print(
            f"  line {line.number}", line.task, f"by {first_id(line.job, USER_FIELDS)}:", status, answer["reason"] or ""
        )
        console.print(Padding(Text(answer["detail"] or "", style="dim"), (0, 0, 0, 4), expand=False))
    if len(not_done) > SHOWN_MAX:
        console.print(f"And {len(not_done) - SHOWN_MAX} more.")


def _print_pools(connection: Connection, console: PlainConsole) -> None:
    """Print overview, usage and orders of each pool that has any history, as its owner sees them."""
    pools = list_pools(connection)
    for owner, credit_users in pools[:SHOWN_MAX]:
        console.heading(f"{owner}'s pool" + (f", shared with {', '.join(credit_users)}" if credit_users else ""))
        tables.overview(console, show_overview(connection, View(viewer=owner)))
        tables.usage(console, show_usage(connection, ViewUsage(viewer=owner)))
        tables.orders(console, show_orders(connection, View(viewer=owner)))
    if len(pools) > SHOWN_MAX:
        console.print(f"And {len(pools) - SHOWN_MAX} more pools: `postage overview USER` shows any.")


def _first_person(lines: Sequence[StoryLine]) -> str | None:
    """Return the first user whom the file has saved."""
    saved = (line.answer for line in lines if line.task == "users.save" and line.answer)
    return next((answer["user_id"] for answer in saved if answer["status"] == "done"), None)


def _print_places(local: LocalStack, person: str | None, console: PlainConsole) -> None:
    console.heading("Where to look")
    if local.console_url is not None:
        _print_console(local, local.console_url, person, console)
    console.print(f"Flower    {local.flower_url}")
    if local.outbox is not None:
        console.print(f"Outbox    {local.outbox}{os.sep}   (each message that was sent, as a file)")
    console.print(f"Logs      {local.logs}{os.sep}")
    if local.broker_url is not None:
        _print_broker(local.broker_url, local.app.settings.embedded_url_file, console)


def _print_console(local: LocalStack, url: str, person: str | None, console: PlainConsole) -> None:
    """Print where the console is. The link that signs in a person of the file is for a person, and in no log."""
    if person is None:
        console.print(f"Console   {url}   (`postage create-admin USER` gives somebody a password)")
        return
    file = local.app.settings.console_link_file
    link = f"{url}/link/{link_for(local.context, person)}"
    write_private(file, f"{link}\n")
    shown = link if console.is_terminal else f"{url}, the link is in {file}"
    console.print(f"Console   {shown}", soft_wrap=True, highlight=False)
    console.print(f"          (signs in as {person}, once, within the hour)")


def _print_broker(url: BrokerUrl, file: Path, console: PlainConsole) -> None:
    """Print how producers reach the broker: with the password for a person, and without it into a log."""
    console.print(f"Broker    {url if console.is_terminal else url.masked}", soft_wrap=True, highlight=False)
    console.print("Producers paste this line first, then README's example runs as it stands:", soft_wrap=True)
    console.print(Text(f"export BROKER_URL=$(cat {shlex.quote(str(file.resolve()))})"), soft_wrap=True)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM end the block as cleanly as Ctrl-C, and Ctrl-C also if our parent has had it ignored."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {which: signal.signal(which, interrupt) for which in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
