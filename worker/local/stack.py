"""Everything on one machine: broker and receivers within this process; worker, beat, Flower, console as its children.

What is started here ends here, in order, also when this process is killed.
"""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console

from models.database.migrations import migrate
from models.errors import OperatorError
from tasks.context import Context
from worker.app import PostageApp, create_app
from worker.local.broker_url import BrokerUrl
from worker.local.folder import make_private
from worker.local.sinks import MailSink, SmsSink
from worker.local.valkey import dying_with_parent, embedded_broker
from worker.places import UP_LOCK, make_var
from worker.preflight import require_ready
from worker.settings import Settings

READY_WITHIN_S = 60.0
STOP_WITHIN_S = 60.0
LOOK_EVERY_S = 0.2
OWN_FIELDS = {"smtp_url", "sms_url", "flower_port", "console_port"}
"""Settings that are chosen here, whether they were set or not."""


class StackError(OperatorError):
    """A part could not be started, or has ended. The message says which, and where to look."""


@dataclass(slots=True)
class LocalStack:
    """What runs, and where to find it."""

    app: PostageApp
    children: dict[str, subprocess.Popen[bytes]]
    flower_url: str
    console_url: str | None
    broker_url: BrokerUrl | None
    outbox: Path | None
    logs: Path

    @property
    def context(self) -> Context:
        """The database and carriers of this process."""
        return self.app.context

    def check(self) -> None:
        """Make sure that every child still runs.

        Raises
        ------
        StackError
            Naming what ended, and its log.

        """
        for name, child in self.children.items():
            if child.poll() is not None:
                raise StackError(
                    f"The {name} ended with exit code {child.returncode}; its log is {self.logs / name}.log."
                )

    def run_until_interrupted(self) -> None:
        """Return never; Ctrl-C raises KeyboardInterrupt."""
        while True:
            self.check()
            time.sleep(LOOK_EVERY_S)


@contextmanager
def start_stack(settings: Settings, console: Console, *, for_people: bool = True) -> Iterator[LocalStack]:
    """Start everything, and end it after the block. The web application is for people who go on looking.

    Raises
    ------
    StackError
        If something cannot be started.

    """
    with ExitStack() as stack:
        make_var(settings)
        make_private(settings.var)
        stack.enter_context(exclusive(settings.var / UP_LOCK))
        broker = stack.enter_context(embedded_broker(settings))
        console.print(f"Broker    {'embedded Valkey' if broker else 'as set by POSTAGE_BROKER_URL'}")
        require_ready(settings, migrated=False)
        migrate(settings.database)
        console.print(f"Database  {'embedded SQLite' if settings.database_url is None else 'as set'}, migrated")
        settings, outbox = _with_sinks(settings, stack)
        logs = settings.var.resolve() / "logs"
        logs.mkdir(exist_ok=True)
        app = create_app(settings)
        stack.callback(app.close_context)
        children: dict[str, subprocess.Popen[bytes]] = {}
        stack.callback(_stop, children, console)
        for name in ("worker", "beat"):
            children[name] = _start(name, settings, logs)
        flower_url = _open_site("flower", children, settings, logs)
        console_url = _open_site("console", children, settings, logs) if for_people else None
        local = LocalStack(app, children, flower_url, console_url, broker.url if broker else None, outbox, logs)
        _await_worker(local)
        console.print(f"Running   worker, beat, Flower{', console' if for_people else ''}")
        yield local


def _with_sinks(settings: Settings, stack: ExitStack) -> tuple[Settings, Path | None]:
    """Start local receivers for the carriers that are not configured."""
    outbox = settings.var / "outbox"
    urls = {}
    if "smtp_url" not in settings.model_fields_set:
        urls["smtp_url"] = stack.enter_context(MailSink(outbox)).url
    if "sms_url" not in settings.model_fields_set:
        urls["sms_url"] = stack.enter_context(SmsSink(outbox)).url
    return settings.model_copy(update=urls), outbox if urls else None


def _start(name: str, settings: Settings, logs: Path) -> subprocess.Popen[bytes]:
    """Start one of our own commands as a process that ends with this one, and does not get the terminal's Ctrl-C."""
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
    """Return the environment from which a child reads these settings."""
    said = settings.model_dump(mode="json", include=settings.model_fields_set | OWN_FIELDS)
    return {
        **os.environ,
        **{f"POSTAGE_{name.upper()}": str(value) for name, value in said.items() if value is not None},
        "POSTAGE_VAR": str(settings.var.resolve()),
    }


def _stop(children: dict[str, subprocess.Popen[bytes]], console: Console) -> None:
    """End the children, each with time to finish: those that make work first, the worker last."""
    for name in ("beat", "flower", "console", "worker"):
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


def _await_worker(local: LocalStack) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while not local.app.control.inspect(timeout=0.5).ping():
        local.check()
        if time.monotonic() > deadline:
            raise StackError(f"The worker does not answer; its log is {local.logs / 'worker.log'}.")


def _open_site(name: str, children: dict[str, subprocess.Popen[bytes]], settings: Settings, logs: Path) -> str:
    """Start Flower or the console and return its address.

    If another program takes its port first, it starts on another one.
    """
    address = getattr(settings, f"{name}_address")
    for wanted in (getattr(settings, f"{name}_port"), 0, 0):
        port = free_port(address, wanted)
        site = children[name] = _start(name, settings.model_copy(update={f"{name}_port": port}), logs)
        deadline = time.monotonic() + READY_WITHIN_S
        while site.poll() is None and time.monotonic() < deadline:
            if _listens(site):
                return f"http://{address}:{port}"
            time.sleep(LOOK_EVERY_S)
        if site.poll() is None:
            break  # it runs but does not listen; another port would not help
    raise StackError(f"The {name} does not listen; its log is {logs / name}.log.")


def _listens(child: subprocess.Popen[bytes]) -> bool:
    """Whether the process itself listens; an answer on its port might be another program's."""
    try:
        return any(c.status == psutil.CONN_LISTEN for c in psutil.Process(child.pid).net_connections("inet"))
    except psutil.Error:
        return False  # it has just ended


def free_port(address: str, wanted: int) -> int:
    """Return `wanted` if nobody listens there, or else a port that is free now."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise StackError(f"No port is free on {address}.")


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path` exclusively, as long as this process lives.

    Raises
    ------
    StackError
        If another process holds it.

    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sentence = (
                f"Another `postage up` already runs on the folder {path.parent.resolve()}: end it first (Ctrl-C where "
                "it runs), or set POSTAGE_VAR to another folder for this one."
            )
            raise StackError(sentence) from None
        yield
