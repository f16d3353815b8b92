"""`postage up`: everything on one machine, and the jobs of a file put through it as any producer would.

The broker and the receivers live in this process's care; worker, beat and Flower are processes of their own, which
end with it.
"""

import os
import signal
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import FrameType

from celery.states import READY_STATES
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text
from sqlalchemy import select

from models import views
from models.messages import SEND_TASKS, View, ViewUsage
from models.tables import accounts, users
from tasks.context import Json
from tasks.naming import PEOPLE, named
from worker import screens, status
from worker.house import LOOK_EVERY_S, House, UpError, open_house
from worker.jobfile import each_job
from worker.settings import Settings

ANSWER_WITHIN_S = 120.0
ASK_EVERY_S = 0.02
LOOKED_UP_AT_ONCE = 500
SHOWN_MAX = 50
"""Refused jobs, or pools, that the tables at the end show; files can hold thousands."""


@dataclass(slots=True)
class Line:
    """One job of the file, the Celery task id it got, and what was answered."""

    number: int
    task: str
    job: Json
    task_id: str
    answer: Json | None = None

    @property
    def job_id(self) -> str:
        """The id under which a send job is known."""
        given = self.job.get("job_id") if isinstance(self.job, dict) else None
        return given if isinstance(given, str) else self.task_id


def up(settings: Settings, file: Path | None, *, exit_when_done: bool) -> None:
    """Start everything, run the jobs of `file`, show what became of them; then serve on, or end.

    Raises
    ------
    JobFileError
        If a line of the file is no job.
    UpError
        If something cannot be started, or ends while it should run.

    """
    lines = [Line(one.number, one.task, one.job, str(uuid.uuid4())) for one in each_job(file)] if file else []
    console = Console()
    with ExitStack() as stack:
        stack.enter_context(_ended_by_signals())
        try:
            house = stack.enter_context(open_house(settings, console))
            _run(house, lines, console)
            _say_where(house, console)
            if not exit_when_done:
                console.print("Serving on. Ctrl-C ends it.")
                house.serve()
        except KeyboardInterrupt:
            console.print("Ending …")
    console.print("Ended cleanly.")


def _run(house: House, lines: Sequence[Line], console: Console) -> None:
    """Enqueue the jobs, follow them to their ends, and show what became of them."""
    if not lines:
        return
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
    with progress:
        bar = progress.add_task("Jobs", total=len(lines))
        sends: list[Line] = []
        for line in lines:
            if line.task in SEND_TASKS:
                house.app.send_task(line.task, args=[line.job], task_id=line.task_id, argsrepr="(…)")
                sends.append(line)
                continue
            # What the lines before asked for must have happened: this one may depend on it.
            _follow(house, sends, progress, bar)
            sends = []
            line.answer = _answer(house, line)
            progress.advance(bar)
        _follow(house, sends, progress, bar)
    _show_refused(lines, console)
    _show_pools(house, console)


def _answer(house: House, line: Line) -> Json:
    """Enqueue one job and ask for its answer until it is there.

    The result object is dropped at once: it would go on listening to a broker that ends before this process does.
    """
    house.app.send_task(line.task, args=[line.job], task_id=line.task_id, argsrepr="(…)")
    deadline = time.monotonic() + ANSWER_WITHIN_S
    while time.monotonic() < deadline:
        house.check()
        result = house.app.backend.get_task_meta(line.task_id)
        if result["status"] in READY_STATES:
            answer: Json = result["result"]
            return answer
        time.sleep(ASK_EVERY_S)
    raise UpError(
        f"Line {line.number} ({line.task}) was not answered; the worker's log is {house.logs / 'worker.log'}."
    )


def _follow(house: House, lines: Sequence[Line], progress: Progress, bar: TaskID) -> None:
    """Wait until each of these send jobs is final, or parked as unknown."""
    waiting = {line.task_id: line for line in lines}
    while waiting:
        house.check()
        looked_up = dict(islice(waiting.items(), LOOKED_UP_AT_ONCE))
        ended = status.ended(house.context, {task_id: line.job_id for task_id, line in looked_up.items()})
        for task_id, answer in ended.items():
            waiting.pop(task_id).answer = answer
        progress.advance(bar, len(ended))
        if not ended:
            time.sleep(LOOK_EVERY_S)


def _show_refused(lines: Sequence[Line], console: Console) -> None:
    """What was not done, and why: a story is told by its refusals."""
    outcomes = [(line, line.answer or {}) for line in lines]
    refused = [(line, answer) for line, answer in outcomes if answer.get("status") in ("refused", "failed", "unknown")]
    if refused:
        console.print(Text("Not done, and why", style="bold"))
    for line, answer in refused[:SHOWN_MAX]:
        outcome = screens.coloured(answer["status"])
        console.print(
            f"  line {line.number}", line.task, f"by {named(line.job, PEOPLE)}:", outcome, answer["reason"] or ""
        )
        console.print(Padding(Text(answer["detail"] or "", style="dim"), (0, 0, 0, 4)))
    if len(refused) > SHOWN_MAX:
        console.print(f"And {len(refused) - SHOWN_MAX} more.")


def _show_pools(house: House, console: Console) -> None:
    """Overview, usage and orders of each pool that has any credits or history, as its owner sees them."""
    with house.context.database.read() as connection:
        used = select(accounts.c.owner_id).where(accounts.c.seq > 0)
        owners = connection.execute(
            select(users.c.id).where(users.c.id.in_(used), users.c.is_owner).order_by(users.c.id)
        ).scalars().all()  # fmt: skip
        credit_users = connection.execute(
            select(users.c.credit_owner_id, users.c.id).where(~users.c.is_owner).order_by(users.c.id)
        ).all()
        for owner in owners[:SHOWN_MAX]:
            sharing = [user for its_owner, user in credit_users if its_owner == owner]
            console.rule(f"{owner}'s pool" + (f", shared with {', '.join(sharing)}" if sharing else ""))
            screens.overview(console, views.overview(connection, View(viewer=owner)))
            screens.usage(console, views.usage(connection, ViewUsage(viewer=owner)))
            screens.orders(console, views.order_history(connection, View(viewer=owner)))
    if len(owners) > SHOWN_MAX:
        console.print(f"And {len(owners) - SHOWN_MAX} more pools: `postage overview USER` shows any.")


def _say_where(house: House, console: Console) -> None:
    console.rule("Where to look")
    console.print(f"Flower    {house.flower_url}")
    if house.outbox is not None:
        console.print(f"Outbox    {house.outbox}{os.sep}   (each message that was sent, as a file)")
    console.print(f"Logs      {house.logs}{os.sep}")


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM end this as cleanly as Ctrl-C, and Ctrl-C also where whoever started this had it ignored."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {which: signal.signal(which, interrupt) for which in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
