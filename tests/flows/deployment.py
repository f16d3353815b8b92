"""A deployment for flow tests: real worker and beat processes on a real broker and database, and a look inside."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Final, Self, TypeVar

from redis import Redis
from sqlalchemy import Row, select

from models.database.engine import Database, utc_now
from models.database.schema import refusals
from models.reports.audit import Finding
from models.sends.charges import OPEN, Charge, JobKey, State, count_bulk_states, find_everywhere
from tests.audits import audit_everything
from tests.entries import entries_of
from tests.flows.outside import QUEUES, Json, MailServer, Producer, SmsGateway
from tests.forking import forker
from worker.broker import fair_queue
from worker.local.valkey import dying_with_parent

DEADLINE_S: Final = 90.0
"""How long anything may take before a test fails."""
CHECK_EVERY_S: Final = 0.03

SETTINGS: Final = {
    "smtp_timeout_s": 15,
    "sms_timeout_s": 15,
    "lease_s": 150,
    "visibility_timeout_s": 300,
    "attempts_max": 4,
    "retry_base_s": 0.2,
    "retry_max_s": 0.4,
    "sweep_s": 0.25,
    "log_level": "DEBUG",
    "log_format": "json",
}
"""Timeouts are long, as in production, so that a slow machine fails no test; retries and sweeps come at once."""

PATIENT: Final = {"smtp_timeout_s": 50, "lease_s": 300, "visibility_timeout_s": 600}
"""For tests that hold mails at the server while they do what takes longer on a slow machine."""

BILLING: Final = {"name": "Acme Ltd", "country": "NL"}

T = TypeVar("T")
Deploy = Callable[..., "Deployment"]
"""What the fixture `deploy` gives."""
_numbers = itertools.count(1)


def wait_until(condition: Callable[[], T | None], what: str | Callable[[], str], within_s: float = DEADLINE_S) -> T:
    """Check the condition again and again until its result is true, and return that result. `what` names it."""
    deadline = time.monotonic() + within_s
    while not (result := condition()):
        if time.monotonic() > deadline:
            msg = f"This did not happen within {within_s:g} s: {what if isinstance(what, str) else what()}."
            raise AssertionError(msg)
        time.sleep(CHECK_EVERY_S)
    return result


def environment(settings: Mapping[str, object]) -> dict[str, str]:
    """Give the environment of a process with these settings, without those of this process."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("POSTAGE_", "FLOWER_"))}
    return inherited | {f"POSTAGE_{name.upper()}": str(value) for name, value in settings.items()}


def command(*arguments: str) -> list[str]:
    """Give the command line of one of Postage's own commands, for a process that does not outlive this one."""
    return dying_with_parent([sys.executable, "-P", "-m", "worker", *arguments], signal.SIGKILL)


def _start_anew(
    arguments: Sequence[str], cwd: Path, env: Mapping[str, str], stdout: IO[bytes], stderr: IO[bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
    )


class Program:
    """One of Postage's own commands as a process, forked or started `anew`, whose output goes to a file."""

    def __init__(
        self,
        folder: Path,
        name: str,
        arguments: Sequence[str],
        settings: Mapping[str, object],
        *,
        anew: bool = False,
        **variables: str,
    ) -> None:
        self.log = folder / f"{name}.log"
        self.name = name
        with self.log.open("ab") as log:
            start = _start_anew if anew else forker().fork
            self.process = start(arguments, folder, environment(settings) | variables, log, log)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def output(self) -> str:
        """Everything that it has written so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def warnings(self) -> str:
        """The last lines that it wrote above the level of information."""
        lines = [line for line in self.output.splitlines() if '"level": "info"' not in line and '"debug"' not in line]
        return "\n".join(line[:1500] for line in lines[-10:])

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def check(self) -> None:
        """Fail if it has ended."""
        assert self.is_running(), f"The {self.name} ended with exit code {self.process.returncode}:\n{self.warnings}"

    def ask_to_end(self, signum: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to end, without waiting for it."""
        self.process.send_signal(signum)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let it stand still for the length of the block."""
        self.process.send_signal(signal.SIGSTOP)
        yield
        self.process.send_signal(signal.SIGCONT)

    def end(self, signum: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end, and return its exit code."""
        if self.is_running():
            self.ask_to_end(signum)
        return self.wait()

    def wait(self) -> int:
        """Wait until it ends by itself, and return its exit code."""
        try:
            return self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            msg = f"The {self.name} did not end and was killed:\n{self.output[-4000:]}"
            raise AssertionError(msg) from None


@dataclass(frozen=True)
class CommandResult:
    """The exit code and output of a command that has ended."""

    code: int
    out: str
    err: str


def run(*arguments: str, cwd: Path, anew: bool = False, **settings: object) -> CommandResult:
    """Run one of Postage's own commands, forked or started `anew`, to its end."""
    with TemporaryFile() as out, TemporaryFile() as err:
        start = _start_anew if anew else forker().fork
        process = start(arguments, cwd, environment(settings), out, err)
        try:
            code = process.wait(DEADLINE_S)
        finally:
            process.kill()
        for file in (out, err):
            file.seek(0)
        return CommandResult(code, out.read().decode(), err.read().decode())


class Deployment:
    """A worker, and perhaps beat, with a mail server, an SMS gateway and a producer. All of it ends with the block."""

    def __init__(
        self,
        folder: Path,
        database_url: str,
        broker_url: str,
        *,
        beat: bool = False,
        producer: Producer | None = None,
        redis: Redis | None = None,
        **settings: object,
    ) -> None:
        self.folder = folder
        self.mail_server = MailServer()
        self.gateway = SmsGateway()
        self.producer = producer or Producer(broker_url)
        self.database = Database(database_url, pool_size=2)
        self.redis: Redis = redis or Redis.from_url(broker_url)
        self.settings: dict[str, object] = {
            **SETTINGS,
            "var": folder / "var",
            "database_url": database_url,
            "broker_url": broker_url,
            "smtp_url": self.mail_server.url,
            "sms_url": self.gateway.url,
            **settings,
        }
        self._programs = ["worker", "beat"] if beat else ["worker"]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self.database.close)
            stack.callback(self.redis.close)
            for part in (self.mail_server, self.gateway, self.producer):
                stack.enter_context(part)
            (self.folder / "var").mkdir(parents=True, exist_ok=True)
            self.worker = self._start("worker", stack)
            if "beat" in self._programs:
                self._start("beat", stack)
            wait_until(self._worker_answers, "the worker answers")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start_worker(self) -> None:
        """Start another worker in place of one that has ended."""
        self.worker = self._start("worker", self._stack)

    def restart_worker(self, *, by_force: bool = False, empty_queues: bool = True) -> None:
        """Start another worker if the first has ended, or `by_force`; `empty_queues` if a message may be to blame."""
        if by_force:
            self.worker.end(signal.SIGKILL)
        if not self.worker.is_running():
            if empty_queues:
                self.redis.flushdb()
            self.start_worker()
            wait_until(self._worker_answers, "the new worker answers")

    def _start(self, name: str, stack: ExitStack) -> Program:
        program = Program(self.folder, name, [name], self.settings)
        stack.callback(program.end)
        return program

    def _worker_answers(self) -> bool:
        self.worker.check()
        return self.producer.control("ping", timeout=1.0) is not None

    def ask(self, task: str, job: object) -> Json:
        """Enqueue a job, and return its answer."""
        self.worker.check()
        return self.producer.ask(task, job)

    def send(self, task: str, job: object, task_id: str | None = None) -> str:
        """Enqueue a job. Returns its task id."""
        return self.producer.send(task, job, task_id)

    def people(self, *, email: int = 0, sms: int = 0) -> tuple[str, str]:
        """Make an owner with these credits and a member who uses them, in an organization of their own."""
        number = next(_numbers)
        organization, owner, member = f"org-{number}", f"owner-{number}", f"member-{number}"
        do = self.producer.do
        do("roles.save", {"organization": organization, "role": "admin", "rights": ["view_user_list", "edit_user"]})
        do("roles.save", {"organization": organization, "role": "member", "rights": []})
        for user, role in ((owner, "admin"), (member, "member")):
            address = f"{user}@postage.example"
            user_job = {"user_id": user, "organization": organization, "name": user, "email": address, "role": role}
            do("users.save", {**user_job, "billing": BILLING})
        do("credits.set_owner", {"change_id": f"share-{number}", "actor": owner, "user": member, "owner": owner})
        bought = {"credits": {"email": email, "sms": sms}, "amount": 100, "currency": "EUR"}
        if email or sms:
            do("credits.purchase", {"order_id": f"order-{number}", "buyer": owner, **bought})
        return owner, member

    def message(self, viewer: str, job_id: str) -> Json:
        """The answer to a send job, as a producer reads it with a view."""
        return self.ask("views.message", {"viewer": viewer, "job_id": job_id})

    def remaining(self, viewer: str) -> Json:
        """The credits that are left, as a producer reads them with a view."""
        remaining: Json = self.ask("views.overview", {"viewer": viewer})["remaining"]
        return remaining

    def wait_until_final(self, *job_ids: str) -> dict[str, Charge]:
        """Wait until each of these jobs, and each message of a bulk job, has ended. Returns their charges."""
        return wait_until(lambda: self._ended(job_ids), f"{job_ids[:3]} and so on end")

    def _ended(self, job_ids: Sequence[str]) -> dict[str, Charge] | None:
        self.worker.check()
        with self.database.snapshot() as connection:
            found = find_everywhere(connection, job_ids)
            if len(found) < len(set(job_ids)) or any(charge.state in OPEN for charge in found.values()):
                return None
            bulk = [key for key, charge in found.items() if charge.state is State.BULK]
            counts = [count_bulk_states(connection, key) for key in bulk]
            return None if any(state in count for count in counts for state in OPEN) else _by_id(found)

    def charges(self, job_ids: Sequence[str]) -> dict[str, Charge]:
        """The charges of these jobs as they are now."""
        with self.database.snapshot() as connection:
            return _by_id(find_everywhere(connection, job_ids))

    def refusals(self, task_ids: Sequence[str]) -> list[Row[Any]]:
        """The refusals that were recorded of these tasks."""
        with self.database.snapshot() as connection:
            return list(connection.execute(select(refusals).where(refusals.c.task_id.in_(task_ids))))

    def moves(self, owner: str, kind: str = "email") -> list[tuple[str, int]]:
        """The cause and amount of every entry of an owner's account after its opening, in order."""
        with self.database.snapshot() as connection:
            return [(entry.cause, entry.amount) for entry in entries_of(connection, owner, kind)]

    def findings(self) -> list[Finding]:
        """What an audit finds."""
        with self.database.snapshot() as connection:
            return audit_everything(connection, utc_now())

    def result_keys(self, *task_ids: str) -> list[str]:
        """Those of these task ids whose result the broker keeps."""
        return [task_id for task_id in task_ids if self.redis.exists(f"celery-task-meta-{task_id}")]

    def wait_until_idle(self) -> None:
        """Wait until no job waits on a queue and the worker has none."""
        wait_until(lambda: self.worker.check() or self.is_idle(), "every job is answered")

    def is_idle(self) -> bool:
        """Whether no job waits on a queue and the worker has none."""
        unacknowledged: Any = self.redis.hvals("unacked")
        waits = any(fair_queue.waiting_count(self.redis, queue) for queue in set(QUEUES.values()))
        return not waits and all(b"upkeep." in message for message in unacknowledged)


def _by_id(found: Mapping[JobKey, Charge]) -> dict[str, Charge]:
    return {key.job_id: charge for key, charge in found.items()}
