"""Postage and stock Celery: each side once through its jobs."""

import itertools
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Protocol

import psutil

from bench import figures
from bench.rig import ROOT, Bench, Place, emails, texts
from bench.workers import Json, SideError, publish, time_through, wait_until_done, workers
from models.database.engine import utc_now
from models.messages.wire import parse
from models.sends.charges import SendJob
from models.sends.charging import charge_jobs
from tasks import sending
from tests.chaos.outside import Outside
from worker.broker import fair_queue

PROCESSES: Final = 2
"""Worker processes of either side: as many as two cores can bear. More make neither side faster."""
WARM_MIN: Final = 200
POSTAGE: Final = (sys.executable, "-P", "-m", "worker", "worker", "-n", "postage%n@%h")
STOCK: Final = (sys.executable, "-m", "celery", "-A", "bench.stock", "worker", "-P", "solo", "-n", "stock%n@%h",
                "-l", "WARNING", "--without-mingle", "--without-gossip")  # fmt: skip
"""`solo` is the pool in which it is fastest here: the others spend their time handing jobs from thread to thread."""


class Side(Protocol):
    """Something to measure. `jobs` is what it gets to do; it may round that."""

    def measure(self, bench: Bench, jobs: int) -> figures.Figures:
        """Measure once."""


def warm_up_of(jobs: int) -> int:
    """How many jobs a side does before its time is taken."""
    return max(WARM_MIN, jobs // 10)


@dataclass(frozen=True)
class Stock:
    """Stock Celery with one of its tasks."""

    task: str
    events: bool

    def measure(self, bench: Bench, jobs: int) -> figures.Figures:
        """Send jobs through."""
        with (
            bench.fresh() as place,
            workers(STOCK, PROCESSES, self.environment(bench, place), bench.folder) as running,
        ):

            def put(count: int) -> None:
                publish(bench.redis, self.task, "celery", emails(count))

            return time_through(bench.redis, running, bench.servers, ["celery"], put, jobs, warm=warm_up_of(jobs))

    def environment(self, bench: Bench, place: Place) -> dict[str, str]:
        """What stock.py is told."""
        return {
            "BENCH_BROKER": bench.valkey.url(),
            "BENCH_DATABASE": place.url.replace("postgresql://", "postgresql+psycopg://"),
            "BENCH_EVENTS": str(int(self.events)),
            "PYTHONPATH": str(ROOT),
        }


@dataclass(frozen=True)
class Sends:
    """Postage with `email.send`: each message charged and delivered."""

    owners: int | None = None
    events: bool = True
    grown: bool = False
    in_order: bool = False
    smtp_url: str = "null://"

    def measure(self, bench: Bench, jobs: int) -> figures.Figures:
        """Send jobs through, and make sure that each was sent."""
        opened = bench.grown if self.grown else bench.fresh
        with opened() as place:
            settings = bench.environment(place.url, smtp_url=self.smtp_url, task_events=self.events)
            with workers(POSTAGE, PROCESSES, settings, bench.folder) as running:

                def put(count: int) -> None:
                    publish(bench.redis, "email.send", "email", emails(count, self.owners, in_order=self.in_order))

                warm = warm_up_of(jobs)
                figures = time_through(bench.redis, running, bench.servers, ["email"], put, jobs, warm=warm)
            place.require_sent(jobs + warm)
        return figures


@dataclass(frozen=True)
class Bulk:
    """Postage with `email.send_many`; the rate is that of messages, charged alone or delivered too."""

    delivered: bool
    size: int = 500
    smtp_url: str = "null://"

    def measure(self, bench: Bench, jobs: int) -> figures.Figures:
        """Send whole bulk jobs through."""
        messages, warm = (max(1, round(count / self.size)) * self.size for count in (jobs, warm_up_of(jobs)))
        queues = ["bulk", "email"] if self.delivered else ["bulk"]
        command = (*POSTAGE, "-Q", ",".join(queues))
        with bench.fresh() as place:
            settings = bench.environment(place.url, smtp_url=self.smtp_url)
            with workers(command, PROCESSES, settings, bench.folder) as running:

                def put(count: int) -> None:
                    publish(bench.redis, "email.send_many", "bulk", self._jobs(count // self.size))

                figures = time_through(bench.redis, running, bench.servers, queues, put, messages, warm=warm)
            if self.delivered:
                place.require_sent(messages + warm)
            else:
                place.require_charged(messages + warm)
        return figures

    def _jobs(self, count: int) -> Iterator[Json]:
        recipients = [{"to": f"someone-{n}@people.example", "values": {"name": f"n{n}"}} for n in range(self.size)]
        for _ in range(count):
            yield {"job_id": str(uuid.uuid4()), "sender": "user-1", "subject": "Hello", "text": "Hello {{name}}.",
                   "recipients": recipients}  # fmt: skip


@dataclass(frozen=True)
class LedgerAlone:
    """The ledger's charges over one connection, on the hot owner; nothing is sent. Jobs are ready beforehand."""

    batch: int

    def measure(self, bench: Bench, jobs: int) -> figures.Figures:
        """Charge."""
        with bench.fresh() as place:
            prepared = (_job(email) for email in emails(jobs))
            batches = [list(itertools.islice(prepared, self.batch)) for _ in range(jobs // self.batch)]
            self._charge(place, [[_job(email) for email in emails(self.batch)] for _ in range(20)])
            began = time.monotonic()
            self._charge(place, batches)
            took = time.monotonic() - began
        return {"rate": len(batches) * self.batch / took, "timed_s": took}

    @staticmethod
    def _charge(place: Place, batches: list[list[SendJob]]) -> None:
        for batch in batches:
            now = utc_now()
            with place.database.engine.begin() as connection:
                charged = charge_jobs(
                    connection, batch, lease_id=uuid.uuid4().hex, now=now, lease_until=now + timedelta(seconds=300)
                )
            if not all(one.is_new for one in charged):
                msg = "a charge was refused"
                raise SideError(msg)


def _job(email: Json) -> SendJob:
    message: Any = parse("email.send", email)
    return sending.as_send_job(message)


@dataclass(frozen=True)
class BySmtp:
    """Postage with emails to Postfix's `smtp-sink`, a mail server in C that keeps nothing, on the same cores."""

    bulk: bool = False

    def measure(self, bench: Bench, jobs: int) -> figures.Figures:
        """Send jobs through."""
        with _smtp_sink() as url:
            side: Side = Bulk(delivered=True, smtp_url=url) if self.bulk else Sends(smtp_url=url)
            return side.measure(bench, jobs)


@dataclass(frozen=True)
class Texts:
    """Postage with `sms.send` to an HTTP gateway."""

    sms_url: str
    processes: int = PROCESSES

    def measure(self, bench: Bench, jobs: int) -> figures.Figures:
        """Send jobs through, and make sure that each was sent."""
        with bench.fresh() as place:
            settings = bench.environment(place.url, sms_url=self.sms_url)
            with workers(POSTAGE, self.processes, settings, bench.folder) as running:

                def put(count: int) -> None:
                    publish(bench.redis, "sms.send", "sms", texts(count))

                warm = warm_up_of(jobs)
                figures = time_through(bench.redis, running, bench.servers, ["sms"], put, jobs, warm=warm)
            place.require_sent(jobs + warm)
        return figures


@dataclass(frozen=True)
class ByHttp:
    """Postage with `sms.send` to nginx, which answers every request at once, on the same cores."""

    def measure(self, bench: Bench, jobs: int) -> figures.Figures:
        """Send jobs through."""
        with _nginx(bench.folder) as url:
            return Texts(url).measure(bench, jobs)


@dataclass(frozen=True)
class Slow:
    """One worker process of Postage with `sms.send` to a gateway that takes its time, over so many connections."""

    connections: int
    answer_s: float = 0.5

    def measure(self, bench: Bench, jobs: int) -> figures.Figures:
        """Send jobs through."""
        port = _free_port()
        with _running([sys.executable, "-m", "bench.slow_gateway", str(port), str(self.answer_s)], port):
            url = f"http://127.0.0.1:{port}/?connections={self.connections}"
            return Texts(url, processes=1).measure(bench, jobs)


@contextmanager
def _smtp_sink() -> Iterator[str]:
    """Run `smtp-sink`; gives its address for POSTAGE_SMTP_URL."""
    program = _program("smtp-sink", "it comes with Debian's postfix, apt-get install postfix")
    port = _free_port()
    who = ["-u", "nobody"] if os.getuid() == 0 else []
    with _running([program, *who, f"127.0.0.1:{port}", "1024"], port):
        yield f"smtp://127.0.0.1:{port}?starttls=never&connections=64"


NGINX: Final = """
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path {folder}/nginx-1; proxy_temp_path {folder}/nginx-2; fastcgi_temp_path {folder}/nginx-3;
  uwsgi_temp_path {folder}/nginx-4; scgi_temp_path {folder}/nginx-5;
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{ default_type application/json; return 201 '{{"id": "msg-7"}}'; }}
  }}
}}
"""
"""A web server that says that it has taken everything."""


@contextmanager
def _nginx(folder: Path) -> Iterator[str]:
    """Run nginx; gives its address for POSTAGE_SMS_URL."""
    program = _program("nginx", "apt-get install nginx-light")
    port = _free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port))
    with _running([program, "-c", str(config), "-e", str(folder / "nginx.log")], port):
        yield f"http://127.0.0.1:{port}/messages?connections=64"


def _program(name: str, how: str) -> str:
    program = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if program is None:
        msg = f"{name} is not here: {how}"
        raise SideError(msg)
    return program


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    """Run a server that listens on a port."""
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
    try:
        _await_port(port)
        yield
    finally:
        process.terminate()
        process.wait()


def _await_port(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


class _Timed(Counter[str]):
    """Which messages a mail server accepted, and when each first was."""

    def __init__(self) -> None:
        super().__init__()
        self.at: dict[str, float] = {}

    def __setitem__(self, job_id: str, count: int) -> None:
        self.at.setdefault(job_id, time.monotonic())
        super().__setitem__(job_id, count)


@dataclass(frozen=True)
class Latency:
    """From a job's being enqueued to its mail being accepted, with one worker process.

    `waiting` jobs of another sender are on the queue before each; then new ones are added as fast as they are done.
    """

    waiting: int = 0

    def measure(self, bench: Bench, jobs: int) -> figures.Figures:
        """Enqueue one job at a time, at moments that have nothing to do with each other."""
        accepted = _Timed()
        with bench.fresh() as place, Outside() as outside:
            outside.mail.accepted = accepted
            settings = bench.environment(place.url, smtp_url=outside.smtp_url)
            with workers(POSTAGE, 1, settings, bench.folder) as running:
                self._one_by_one(bench, accepted, list(emails(LATENCY_WARM_UP)), running)
                self._top_up(bench)
                waits = self._one_by_one(bench, accepted, list(emails(jobs)), running)
                fair_queue.purge(bench.redis, "email")
                wait_until_done(bench.redis, ["email"], running)
        return {"p50_ms": figures.percentile(waits, 0.5) * 1000, "p99_ms": figures.percentile(waits, 0.99) * 1000,
                "most_ms": max(waits) * 1000}  # fmt: skip

    def _one_by_one(
        self, bench: Bench, accepted: _Timed, given: list[Json], running: list[psutil.Popen]
    ) -> list[float]:
        """How long each took. With jobs waiting before them, several are under way at a time."""
        began: dict[str, float] = {}
        for email in given:
            began[email["job_id"]] = time.monotonic()
            publish(bench.redis, "email.send", "email", [email])
            if not self.waiting:
                _await(lambda job_id=email["job_id"]: job_id in accepted.at, running)
            self._top_up(bench)
            time.sleep(random.uniform(0.01, 0.04))
        _await(lambda: began.keys() <= accepted.at.keys(), running)
        return [accepted.at[job_id] - at for job_id, at in began.items()]

    def _top_up(self, bench: Bench) -> None:
        missing = self.waiting - fair_queue.waiting_count(bench.redis, "email")
        if missing > 0:
            publish(bench.redis, "email.send", "email", emails(missing, 1))


LATENCY_WARM_UP: Final = 30
ACCEPTED_S: Final = 60.0


def _await(done: Callable[[], bool], running: list[psutil.Popen]) -> None:
    deadline = time.monotonic() + ACCEPTED_S
    while not done():
        if time.monotonic() > deadline:
            msg = f"a message was not accepted within {ACCEPTED_S:g} s"
            raise SideError(msg)
        if any(process.poll() is not None for process in running):
            msg = "a worker ended by itself"
            raise SideError(msg)
        time.sleep(0.001)


@dataclass(frozen=True)
class StartUp:
    """How long a worker process takes from being started to taking the job that waits."""

    postage: bool

    def measure(self, bench: Bench, jobs: int) -> figures.Figures:
        """Start one worker."""
        with bench.fresh() as place:
            if self.postage:
                command, environment, queue, task = POSTAGE, bench.environment(place.url), "email", "email.send"
            else:
                stock = Stock("stock.noop", events=True)
                command, environment, queue, task = STOCK, stock.environment(bench, place), "celery", stock.task
            publish(bench.redis, task, queue, emails(1))
            began = time.monotonic()
            with workers(command, 1, environment, bench.folder) as running:
                while fair_queue.waiting_count(bench.redis, queue):
                    if running[0].poll() is not None or time.monotonic() > began + ACCEPTED_S:
                        msg = "the worker took no job"
                        raise SideError(msg)
                    time.sleep(0.002)
                took = time.monotonic() - began
                wait_until_done(bench.redis, [queue], running)
                time.sleep(0.3)
                idle = running[0].memory_info().rss / 2**20
        return {"start_s": took, "idle_mb": idle}
