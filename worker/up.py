"""`postage up`: everything on one machine, and the jobs of a file put through it as any producer would.

The broker and the receivers live in this process's care; worker, beat and Flower are processes of their own, which
end with it.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import FrameType

from celery.exceptions import TimeoutError as ResultTimeoutError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from sqlalchemy import select

from models import views
from models.messages import MESSAGES, View, ViewUsage
from models.migrations import migrate
from models.tables import accounts, users
from tasks.context import Context, Json
from tasks.door import PEOPLE, named
from worker import screens, status
from worker.app import PostageApp, create_app
from worker.embedded import dying_with_parent, embedded_broker
from worker.outbox import MailReceiver, SmsReceiver
from worker.settings import Settings

READY_WITHIN_S = 60.0
ANSWER_WITHIN_S = 120.0
STOP_WITHIN_S = 60.0
LOOK_EVERY_S = 0.2
LOOKED_UP_AT_ONCE = 500
SHOWN_MAX = 50
"""Refused jobs, or pools, that the tables at the end show; files can hold thousands."""
SENDS = tuple(task for task in MESSAGES if task.split(".")[1].startswith("send"))


class UpError(Exception):
    """Something could not be started; the message says what, and where to look."""


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
    UpError
        If something cannot be started, or ends while it should run.

    """
    lines = read_jobs(file) if file else []
    console = Console()
    with ExitStack() as stack:
        stack.enter_context(_terminated_like_interrupted())
        try:
            house = stack.enter_context(_house(settings, console))
            _run(house, lines, console)
            _say_where(house, console)
            if not exit_when_done:
                console.print("Serving on. Ctrl-C ends it.")
                house.serve()
        except KeyboardInterrupt:
            console.print("Ending …")
    console.print("Ended cleanly.")


def read_jobs(file: Path) -> list[Line]:
    """The jobs of a file: one JSON object {"task": …, "job": …} a line; empty lines and lines with # are passed over.

    Raises
    ------
    UpError
        Naming the first line that is none.

    """
    lines = []
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        try:
            given = json.loads(text)
            task, job = given["task"], given["job"]
            known = set(given) == {"task", "job"} and task in MESSAGES
        except (ValueError, KeyError, TypeError, RecursionError):
            known = False
        if not known:
            sentence = (
                f'{file}, line {number}: not {{"task": …, "job": …}} with one of the tasks {", ".join(MESSAGES)}.'
            )
            raise UpError(sentence)
        lines.append(Line(number, task, job, str(uuid.uuid4())))
    return lines


@dataclass(slots=True)
class House:
    """What runs, and where it can be found."""

    app: PostageApp
    children: dict[str, subprocess.Popen[bytes]]
    flower_url: str
    outbox: Path | None
    logs: Path

    @property
    def context(self) -> Context:
        """The database and carriers of this process."""
        return self.app.context

    def check(self) -> None:
        """Make sure that everything still runs.

        Raises
        ------
        UpError
            Naming what ended, and its log.

        """
        for name, child in self.children.items():
            if child.poll() is not None:
                raise UpError(f"The {name} ended with exit code {child.returncode}; its log is {self.logs / name}.log.")

    def serve(self) -> None:
        """Go on until interrupted."""
        while True:
            self.check()
            time.sleep(LOOK_EVERY_S)


@contextmanager
def _house(settings: Settings, console: Console) -> Iterator[House]:
    with ExitStack() as stack:
        settings.var.mkdir(parents=True, exist_ok=True)
        stack.enter_context(exclusive(settings.var / "up.lock"))
        broker = stack.enter_context(embedded_broker(settings))
        console.print(f"Broker    {'embedded Valkey' if broker else 'as set by POSTAGE_BROKER_URL'}")
        migrate(settings.database)
        console.print(f"Database  {'embedded SQLite' if settings.database_url is None else 'as set'}, migrated")
        settings, outbox = _with_receivers(settings, stack)
        settings = settings.model_copy(update={"flower_port": free_port(settings.flower_address, settings.flower_port)})
        logs = settings.var.resolve() / "logs"
        logs.mkdir(exist_ok=True)
        app = create_app(settings)
        stack.callback(app.close_context)
        children: dict[str, subprocess.Popen[bytes]] = {}
        stack.callback(_stop, children, console)
        for name in ("worker", "beat", "flower"):
            children[name] = _start(name, settings, logs)
        house = House(app, children, f"http://{settings.flower_address}:{settings.flower_port}", outbox, logs)
        _await_worker(house)
        console.print("Running   worker, beat, Flower")
        yield house


def _with_receivers(settings: Settings, stack: ExitStack) -> tuple[Settings, Path | None]:
    """Local receivers for the carriers that were not configured."""
    outbox = settings.var / "outbox"
    urls = {}
    if "smtp_url" not in settings.model_fields_set:
        urls["smtp_url"] = stack.enter_context(MailReceiver(outbox)).url
    if "sms_url" not in settings.model_fields_set:
        urls["sms_url"] = stack.enter_context(SmsReceiver(outbox)).url
    return settings.model_copy(update=urls), outbox if urls else None


def _start(name: str, settings: Settings, logs: Path) -> subprocess.Popen[bytes]:
    """One of our own commands as a process, away from the terminal's Ctrl-C, and ending with this one."""
    command = [sys.executable, "-P", "-m", "worker", name]
    if name == "beat":
        command += ["--pidfile", ""]
    with (logs / f"{name}.log").open("ab") as log:
        return subprocess.Popen(  # noqa: S603  our own program
            dying_with_parent(command, signal.SIGTERM),
            env=_environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _environment(settings: Settings) -> dict[str, str]:
    """The settings as a child process reads them."""
    said = settings.model_dump(mode="json", include=settings.model_fields_set | {"smtp_url", "sms_url", "flower_port"})
    return {
        **os.environ,
        **{f"POSTAGE_{name.upper()}": str(value) for name, value in said.items() if value is not None},
        "POSTAGE_VAR": str(settings.var.resolve()),
    }


def _stop(children: dict[str, subprocess.Popen[bytes]], console: Console) -> None:
    """End the children: what makes work first, the worker last, each given time to finish."""
    for name in ("beat", "flower", "worker"):
        child = children.get(name)
        if child is None or child.poll() is not None:
            continue
        child.terminate()
        try:
            child.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            console.print(f"The {name} did not end within {STOP_WITHIN_S:g} s and was killed.")
            child.kill()
            child.wait()


def _await_worker(house: House) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while not house.app.control.inspect(timeout=0.5).ping():
        house.check()
        if time.monotonic() > deadline:
            raise UpError(f"The worker does not answer; its log is {house.logs / 'worker.log'}.")


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
            if line.task in SENDS:
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
    result = house.app.send_task(line.task, args=[line.job], task_id=line.task_id, argsrepr="(…)")
    deadline = time.monotonic() + ANSWER_WITHIN_S
    while time.monotonic() < deadline:
        house.check()
        with contextlib.suppress(ResultTimeoutError):
            answer: Json = result.get(timeout=1.0)
            return answer
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
    rows = screens.table(
        "Not done, and why", "line", "task", "who", "status", "reason", "what to do", numbers=("line",)
    )
    for line, answer in refused[:SHOWN_MAX]:
        who = named(line.job, PEOPLE) or "-"
        outcome = screens.coloured(answer["status"])
        rows.add_row(str(line.number), line.task, who, outcome, answer.get("reason") or "", answer.get("detail") or "")
    if refused:
        console.print(rows)
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
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM end this as cleanly as Ctrl-C."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def free_port(address: str, wanted: int) -> int:
    """`wanted` if nobody listens there, or a port that is free now."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise UpError(f"No port is free on {address}.")


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path` alone, as long as this process lives.

    Raises
    ------
    UpError
        If another process holds it.

    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UpError(f"`postage up` runs already on {path.parent.resolve()}.") from None
        yield
