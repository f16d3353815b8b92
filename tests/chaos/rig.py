"""The rig: real Valkey, PostgreSQL, worker and beat processes, and a supervisor that starts again what has ended.

Valkey writes every command to disk before it answers (`appendfsync always`), so killing it loses no job that a producer
was told is enqueued: the rig tests what Postage does, not what a lenient broker forgets. PostgreSQL runs with its own
defaults, where a commit that was answered is durable.
"""

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from kombu.exceptions import OperationalError
from redis import Redis, RedisError
from sqlalchemy import Select, func, select

from models.database.engine import Database
from models.database.migrations import migrate
from models.database.schema import charges
from models.messages.wire import parse
from models.sends.charges import OPEN, State
from tasks import billing
from tasks.context import Context
from tasks.engine import DeliveryEngine
from tests.chaos.outside import ALL_QUEUES, Json, Outside, Producer
from tests.forking import Forked, Forker
from tests.servers import PostgresServer, ValkeyServer
from worker.broker import fair_queue

SETTINGS: Final = {
    "smtp_timeout_s": 2,
    "smtp_dot_timeout_s": 2,
    "sms_timeout_s": 2,
    "lease_s": 12,
    "visibility_timeout_s": 24,
    "attempts_max": 20,
    "retry_base_s": 0.5,
    "retry_max_s": 2,
    "sweep_s": 0.5,
    "log_format": "json",
}
END_WITHIN_S: Final = 30.0
GIVEN_UP_AFTER: Final = 50
"""Times that no job was found on its way before missing ones are given up."""
POOL: Final = ("owner", "ann", "bob", "cid", "dan")
"""An owner, and four users who spend their credits."""
ALONE: Final = ("eve", "fay")
"""Two users who spend their own credits; fay has few."""
RICH: Final = 1_000_000

JOB_QUEUES: Final = tuple(queue for queue in ALL_QUEUES if queue != "upkeep")


@dataclass
class Program:
    """One of Postage's processes, which is started again whenever it has ended."""

    name: str
    arguments: Sequence[str]
    process: Forked | None = None
    starts: int = 0
    killed: set[int] = field(default_factory=set)
    """The process ids that the rig has killed."""
    ended: list[tuple[int, int]] = field(default_factory=list)
    """The process ids, and exit codes, of those that ended by themselves."""

    @property
    def pid(self) -> int | None:
        """Its process id if it runs."""
        process = self.process
        return process.pid if process is not None and process.poll() is None else None


class Rig:
    """All servers and processes. They end with the block, each by its process id."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        *,
        workers: int = 2,
        threads: int = 8,
        options: Sequence[str] = (),
        **settings: object,
    ) -> None:
        """Prepare everything. `options` are more arguments for `postage worker`, `settings` go to the environment."""
        self.folder = folder
        self.seed = seed
        self.rng = random.Random(seed)
        self.threads = threads
        self.workers = [
            Program(f"worker{n}", ["worker", "-n", f"chaos{n}@%h", "-c", str(threads), *options])
            for n in range(workers)
        ]
        self.beat = Program("beat", ["beat", "--pidfile", ""])
        self.outside = Outside()
        self.valkey = ValkeyServer(folder / "valkey", appendonly=True, appendfsync="always")
        self.postgres = PostgresServer(folder / "postgres", durable=True)
        self.settings: dict[str, object] = {**SETTINGS, **settings}
        self._changes: dict[str, object] = {}
        self.garbage: list[bytes] = []
        """What was pushed onto queues and can never be a job."""
        self.broken: list[str] = []
        """What went wrong with the rig itself."""
        self._wanted: list[Program] = [*self.workers, self.beat]
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._forker = Forker()
            stack.callback(self._forker.end)
            for part in (self.outside, self.valkey, self.postgres):
                stack.enter_context(part)
            self.postgres.create_database("chaos")
            url = self.postgres.url("chaos")
            migrate(url)
            self.database = Database(url, pool_size=3)
            stack.callback(self.database.close)
            self.redis: Redis = Redis.from_url(self.valkey.url(), socket_timeout=10)
            stack.callback(self.redis.close)
            self.producer = stack.enter_context(Producer(self.valkey.url()))
            self.settings |= {
                "var": self.folder / "var",
                "database_url": url,
                "broker_url": self.valkey.url(),
                "smtp_url": self.outside.smtp_url,
                "sms_url": self.outside.sms_url,
            }
            (self.folder / "var").mkdir(parents=True, exist_ok=True)
            self._make_people()
            self._supervisor = threading.Thread(target=self._supervise, name="supervisor")
            self._supervisor.start()
            stack.callback(self._end_programs)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # -- people and jobs ----------------------------------------------------------------------------------------------

    def _make_people(self) -> None:
        """Make an owner with four credit users, and two users who are alone, one of them poor."""
        context = Context(
            database=self.database,
            engine=DeliveryEngine({}, self.database),
            enqueue=lambda _task, _given: None,
            enqueue_again=lambda _jobs: None,
        )

        def do(use_case: Callable[[Context, Any], Json], task: str, given: Json) -> None:
            use_case(context, parse(task, given, job_id="chaos"))

        do(billing.save_role, "roles.save",
           {"organization": "acme", "role": "admin", "rights": ["view_user_list", "edit_user"]})  # fmt: skip
        for user in (*POOL, *ALONE):
            address = f"{user}@chaos.example"
            user_job = {"user_id": user, "organization": "acme", "name": user, "email": address, "role": "admin"}
            do(billing.save_user, "users.save", {**user_job, "billing": {"name": "Acme Ltd"}})
        owner, *members = POOL
        for user in members:
            do(billing.set_owner, "credits.set_owner",
               {"change_id": f"share-{user}", "actor": owner, "user": user, "owner": owner})  # fmt: skip
        self.bought: dict[str, int] = {owner: RICH, "eve": RICH, "fay": 20}
        for user, credits_ in self.bought.items():
            bought = {"credits": {"email": credits_, "sms": credits_}, "amount": 100, "currency": "EUR"}
            do(billing.purchase, "credits.purchase", {"order_id": f"order-{user}", "buyer": user, **bought})

    def jobs(self, count: int, prefix: str = "job") -> list[tuple[str, Json]]:
        """Make jobs of distinct ids: most of one owner's credit users, some of a poor user, some text messages."""
        senders = [*POOL * 4, "eve", "eve", "fay"]
        return [self._job(f"{prefix}-{number:06}", self.rng.choice(senders)) for number in range(count)]

    def bulks(self, messages: int, prefix: str = "bulk") -> list[tuple[str, Json]]:
        """Make bulk jobs with so many messages in all, of users who can pay for them."""
        jobs = []
        while messages:
            count = min(messages, self.rng.randint(1, 60))
            messages -= count
            jobs.append(self._bulk(f"{prefix}-{messages:06}", self.rng.choice([*POOL, "eve"]), count))
        return jobs

    def _bulk(self, job_id: str, sender: str, count: int) -> tuple[str, Json]:
        values = [{"name": f"n{number}"} for number in range(count)]
        if self.rng.random() < 0.1:
            recipients = [{"to": "+4915112345678", "values": given} for given in values]
            job = {"job_id": job_id, "sender": sender, "text": "Hello {{name}}", "recipients": recipients}
            return "sms.send_many", job
        addresses = [f"{job_id}={place}@people.example" for place in range(count)]
        recipients = [{"to": to, "values": given} for to, given in zip(addresses, values, strict=True)]
        text = "Hello {{name}}.\n" * 20
        job = {"job_id": job_id, "sender": sender, "subject": job_id, "text": text, "recipients": recipients}
        return "email.send_many", job

    def _job(self, job_id: str, sender: str) -> tuple[str, Json]:
        return self.sms(job_id, sender) if self.rng.random() < 0.1 else self.email(job_id, sender)

    def sms(self, job_id: str, sender: str) -> tuple[str, Json]:
        """Make a text message."""
        return "sms.send", {"job_id": job_id, "sender": sender, "to": "+4915112345678", "text": f"Text {job_id}"}

    def email(self, job_id: str, sender: str) -> tuple[str, Json]:
        """Make an email, some of them to two recipients."""
        to = [f"{job_id}@people.example"] + [f"too+{job_id}@people.example"] * (self.rng.random() < 0.1)
        return "email.send", {"job_id": job_id, "sender": sender, "to": to, "subject": job_id, "text": "Hello.\n" * 20}

    # -- processes ----------------------------------------------------------------------------------------------------

    def _supervise(self) -> None:
        while not self._closing.wait(0.02):
            with self._lock:
                for program in self._wanted:
                    self._restart(program)
        with self._lock:
            self._end([program for program in (*self.workers, self.beat) if program.process is not None])

    def _restart(self, program: Program) -> None:
        process = program.process
        if process is not None:
            if process.poll() is None:
                return
            if process.pid not in program.killed:
                program.ended.append((process.pid, process.returncode))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("POSTAGE_")}
        with (self.folder / f"{program.name}.log").open("ab") as log:
            environment = inherited | self._environment(program)
            program.process = self._forker.fork(program.arguments, self.folder, environment, log, log)
        program.starts += 1
        if program.starts - len(program.killed) > 20:
            self.broken.append(f"{program.name} ends again and again")
            time.sleep(1.0)

    def _environment(self, program: Program) -> dict[str, str]:
        """Give the settings of a program. Mail servers know a worker by the name with which it greets them."""
        settings = {name: str(value) for name, value in (self.settings | self._changes).items()}
        settings["smtp_url"] = " ".join(f"{url}&ehlo={program.name}" for url in settings["smtp_url"].split())
        return {f"POSTAGE_{name.upper()}": value for name, value in settings.items()}

    def use(self, **changes: object) -> None:
        """Let the workers go on with other settings than usual; with the usual ones if nothing is changed."""
        if changes == self._changes:
            return
        with self._lock:
            self._changes = changes
            self._end([worker for worker in self.workers if worker.process is not None])
        self.wait_until_workers_answer()

    def _end(self, programs: Sequence[Program]) -> None:
        for program in programs:
            assert program.process is not None
            program.killed.add(program.process.pid)
            with contextlib.suppress(ProcessLookupError):
                program.process.send_signal(signal.SIGCONT)
                program.process.terminate()
        deadline = time.monotonic() + END_WITHIN_S
        for program in programs:
            assert program.process is not None
            try:
                program.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.broken.append(f"{program.name} did not end when asked, and was killed")
                program.process.kill()
                program.process.wait()
            program.process = None

    def _end_programs(self) -> None:
        self._closing.set()
        self._supervisor.join()

    def stop_beat(self) -> None:
        """End beat for good, so that it enqueues nothing more."""
        with self._lock:
            self._wanted.remove(self.beat)
            self._end([self.beat])

    def kill(self, program: Program, *, group: bool) -> bool:
        """Kill a process, or its whole group, at once. Returns False if it is not running."""
        with self._lock:
            pid = program.pid
            if pid is None:
                return False
            program.killed.add(pid)
            (os.killpg if group else os.kill)(pid, signal.SIGKILL)
            return True

    def wait_until_workers_answer(self) -> bool:
        """Wait until every worker is at work, so that no fault meets one that only starts. Returns False if one is not.

        A worker that is started while there is no broker says so and ends, as it should.
        """
        control, count = self.producer.app.control, len(self.workers)
        return wait_until(lambda: len(control.ping(timeout=1.0, limit=count)) >= count, END_WITHIN_S)

    # -- what is going on ---------------------------------------------------------------------------------------------

    def open_jobs(self) -> int:
        """How many jobs Postage still works on."""
        return self._count(select(func.count()).where(charges.c.state.in_(OPEN)))

    def known_jobs(self) -> int:
        """How many jobs have come as far as the database."""
        return self._count(select(func.count()).select_from(charges))

    def _count(self, query: Select[tuple[int]]) -> int:
        return self.database.read(lambda connection: int(connection.execute(query).scalar_one()))

    def in_doubt(self, *workers: Program) -> set[str]:
        """The messages that are left in doubt if these workers are killed now, or were killed just now.

        A mail server has asked one of them for the message, and how that ended is not in the database: nobody notes a
        handover before the mail server asks for the message, and nothing is in doubt afterwards.
        """
        asked = {job for worker in workers for job in set(self.outside.mail.asked[worker.name])}
        unsettled = select(charges.c.job_id).where(charges.c.state.in_((*OPEN, State.UNKNOWN)))
        return asked & self.database.read(lambda connection: set(connection.execute(unsettled).scalars()))

    def waiting(self, *queues: str) -> int:
        """How many messages are on these queues, or on all if none is named."""
        redis: Any = self.redis
        return sum(fair_queue.waiting_count(redis, queue) for queue in queues or ALL_QUEUES)

    def unacked(self) -> list[bytes]:
        """The messages that workers have taken and not acknowledged, those of crashed workers included."""
        redis: Any = self.redis
        held: list[bytes] = redis.hvals("unacked")
        return held

    def quarantine(self) -> list[bytes]:
        """The messages in the quarantine."""
        redis: Any = self.redis
        items: list[bytes] = redis.zrange("postage.quarantined", 0, -1)
        return items

    def ended_jobs(self, prefix: str) -> int:
        """How many jobs of this prefix are final or unknown."""
        ended = charges.c.job_id.startswith(f"{prefix}-") & charges.c.state.not_in((*OPEN, State.BULK))
        return self._count(select(func.count()).where(ended))

    def wait_until_ended(self, jobs: int, prefix: str, within_s: float) -> None:
        """Wait until so many jobs of this prefix are final or unknown, for `within_s` at most."""
        wait_until(lambda: self.ended_jobs(prefix) >= jobs, within_s)

    def is_idle(self) -> bool:
        """Whether no job is on its way: all are published, and only what beat enqueues still comes."""
        if not self.producer.is_done or self.waiting(*JOB_QUEUES):
            return False
        return all(b'"upkeep.' in held for held in self.unacked()) and not self.open_jobs()

    def wait_until_quiet(self, jobs: int, within_s: float) -> float:
        """Wait until nothing more happens, for `within_s` at most. Returns how long that took.

        If no job is on its way for a while, those that the database does not know are given up.
        """
        began = time.monotonic()
        idle = 0

        def quiet() -> bool:
            nonlocal idle
            idle = idle + 1 if self.is_idle() else 0
            return idle > 0 and (self.known_jobs() >= jobs or idle > GIVEN_UP_AFTER)

        wait_until(quiet, within_s)
        self.stop_beat()
        wait_until(lambda: not self.unacked() and not self.waiting(), within_s)
        return time.monotonic() - began


def wait_until(condition: Callable[[], object], within_s: float) -> bool:
    """Wait until the condition is true. Returns False if it was not in time."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        with contextlib.suppress(RedisError, OperationalError):
            if condition():
                return True
        time.sleep(0.1)
    return False
