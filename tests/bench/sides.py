"""What is measured: each side once through its jobs, on servers that all sides share."""

import itertools
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from redis import Redis
from sqlalchemy import create_engine, text

from models import ledger
from models.database import Database
from models.messages import read
from models.migrations import migrate
from tasks import billing
from tasks.context import Context, utc_now
from tasks.sending import job_of
from tests.bench.workers import Json, Measured, publish, time_through, workers
from tests.chaos.outside import Outside
from tests.servers import PostgresServer, ValkeyServer

ROOT: Final = Path(__file__).parents[2]
OWNERS: Final = 1_000
CREDIT_USERS: Final = 20
RICH: Final = 10**9
PROCESSES: Final = 2
"""As many as this machine has cores: more make neither side faster."""


POSTAGE: Final = (sys.executable, "-P", "-m", "worker", "worker", "-n", "postage%n@%h")


class Bench:
    """A broker, a database, and people, for the length of the block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.valkey = ValkeyServer(folder / "valkey")
        self.postgres = PostgresServer(folder / "postgres", durable=True)
        self._stack = ExitStack()
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.valkey)
            stack.enter_context(self.postgres)
            self.postgres.create_database("bench")
            self.url = self.postgres.url("bench")
            migrate(self.url)
            self.database = Database(self.url, pool_size=2)
            stack.callback(self.database.close)
            self.redis: Redis = Redis.from_url(self.valkey.url())
            stack.callback(self.redis.close)
            self._make_people()
            self._make_textbook_people()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _make_people(self) -> None:
        """An owner whose credits many use, and a thousand owners who use their own."""
        context = Context(database=self.database, carriers={}, enqueue=lambda _task, _given: None)

        def do(use_case: Callable[[Context, Any], Json], task: str, given: Json) -> None:
            use_case(context, read(task, given, job_id="bench"))

        do(billing.save_role, "roles.save",
           {"organization": "acme", "role": "admin", "rights": ["view_user_list", "edit_user"]})  # fmt: skip
        owners = ["hot", *(f"owner-{number}" for number in range(OWNERS))]
        for user in (*owners, *(f"user-{number}" for number in range(CREDIT_USERS))):
            person = {"user_id": user, "organization": "acme", "name": user, "email": f"{user}@bench.example"}
            do(billing.save_user, "users.save", {**person, "role": "admin", "billing": {"name": "Acme Ltd"}})
        for number in range(CREDIT_USERS):
            change = {"change_id": f"change-{number}", "actor": "hot", "user": f"user-{number}", "owner": "hot"}
            do(billing.set_owner, "credits.set_owner", change)
        for owner in owners:
            bought = {"credits": {"email": RICH, "sms": RICH}, "amount": 1, "currency": "EUR"}
            do(billing.purchase, "credits.purchase", {"order_id": f"order-{owner}", "buyer": owner, **bought})

    def _make_textbook_people(self) -> None:
        os.environ["BENCH_BROKER"] = self.valkey.url(1)
        from tests.bench import stock  # noqa: PLC0415  it reads its broker when it is imported

        engine = create_engine(self.url)
        stock.Base.metadata.create_all(engine)
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO bench_accounts VALUES ('hot', 1000000000000)"))
            for number in range(CREDIT_USERS):
                connection.execute(text("INSERT INTO bench_users VALUES (:user, 'hot')"), {"user": f"user-{number}"})
        engine.dispose()

    def emails(self, count: int, senders: int | None = None) -> Iterator[Json]:
        """New emails: of the credit users of the hot owner, or of `senders` owners in turn."""
        run = uuid.uuid4().hex[:8]
        for number in range(count):
            sender = f"user-{number % CREDIT_USERS}" if senders is None else f"owner-{number % senders}"
            yield {
                "job_id": f"{run}-{number}",
                "sender": sender,
                "to": f"someone-{number}@people.example",
                "subject": "Hello from the bench",
                "text": "Hello there.\n" * 20,
            }

    def through(  # noqa: PLR0917
        self, command: Sequence[str], environment: dict[str, str], put: Callable[[int], None], redis: Redis, queue: str,
        jobs: int, processes: int = PROCESSES,
    ) -> Measured:  # fmt: skip
        """Start workers, send jobs through them, and end them."""
        with workers(command, processes, environment, self.folder) as pids:
            return time_through(redis, pids, queue, put, jobs, warm=max(200, jobs // 10))


@dataclass(frozen=True)
class Stock:
    """Stock Celery with one of its tasks, in as many `solo` workers as there are cores: its fastest form here."""

    task: str
    events: bool

    def measure(self, bench: Bench, jobs: int) -> Measured:
        """Send jobs through."""
        with Redis.from_url(bench.valkey.url(1)) as redis:
            environment = {
                "BENCH_BROKER": bench.valkey.url(1),
                "BENCH_DATABASE": bench.url.replace("postgresql://", "postgresql+psycopg://"),
                "BENCH_EVENTS": str(int(self.events)),
                "PYTHONPATH": str(ROOT),
            }
            command = [sys.executable, "-m", "celery", "-A", "tests.bench.stock", "worker", "-P", "solo", "-n",
                       "stock%n@%h", "-l", "WARNING", "--without-mingle", "--without-gossip"]  # fmt: skip

            def put(count: int) -> None:
                publish(redis, self.task, "celery", bench.emails(count))

            return bench.through(command, environment, put, redis, "celery", jobs)


@dataclass(frozen=True)
class Sends:
    """Postage with `email.send`."""

    owners: int | None = None
    smtp_url: str = "null://"
    processes: int = PROCESSES

    def measure(self, bench: Bench, jobs: int) -> Measured:
        """Send jobs through, and make sure that each was sent and charged."""
        before = sent(bench.database)

        def put(count: int) -> None:
            publish(bench.redis, "email.send", "email", bench.emails(count, self.owners))

        measured = bench.through(POSTAGE, environment_of(bench, smtp_url=self.smtp_url), put,
                                 bench.redis, "email", jobs, self.processes)  # fmt: skip
        expected = jobs + max(200, jobs // 10)
        if sent(bench.database) - before != expected:
            msg = f"{sent(bench.database) - before} of {expected} jobs were sent."
            raise AssertionError(msg)
        return measured


@dataclass(frozen=True)
class Bulk:
    """Postage with `email.send_many` of 500 recipients; the rate is that of messages charged. They are not sent."""

    size: int = 500

    def measure(self, bench: Bench, jobs: int) -> Measured:
        """Send whole bulk jobs through."""

        def put(count: int) -> None:
            run = uuid.uuid4().hex[:8]
            recipients = [{"to": f"someone-{n}@people.example", "values": {"name": f"n{n}"}} for n in range(self.size)]
            publish(bench.redis, "email.send_many", "bulk", [
                {"job_id": f"{run}-{number}", "sender": "user-1", "subject": "Hello", "text": "Hello {{name}}.",
                 "recipients": recipients}
                for number in range(max(1, count // self.size))
            ])  # fmt: skip

        whole = jobs // self.size * self.size
        measured = bench.through((*POSTAGE, "-Q", "bulk"), environment_of(bench), put, bench.redis, "bulk", whole)
        bench.redis.delete("email")  # the requests to send them
        return measured


def environment_of(bench: Bench, **settings: object) -> dict[str, str]:
    """The settings of Postage's processes."""
    all_settings = {"broker_url": bench.valkey.url(), "database_url": bench.url, "var": bench.folder,
                    "log_level": "WARNING", **settings}  # fmt: skip
    return {f"POSTAGE_{name.upper()}": str(value) for name, value in all_settings.items()}


def sent(database: Database) -> int:
    """How many charges are sent."""
    with database.read() as connection:
        return int(connection.execute(text("SELECT count(*) FROM charges WHERE state = 'sent'")).scalar_one())


@dataclass(frozen=True)
class LedgerAlone:
    """The ledger's charges in batches over one connection, on the hot owner; nothing is sent."""

    batch: int = 100

    def measure(self, bench: Bench, jobs: int) -> Measured:
        """Charge."""
        batches = []
        emails = bench.emails(jobs)
        for _ in range(jobs // self.batch):
            some = itertools.islice(emails, self.batch)
            batches.append([job_of("email.send", read("email.send", email)) for email in some])  # type: ignore[arg-type]
        began = time.monotonic()
        for number, batch in enumerate(batches):
            now = utc_now()
            with bench.database.begin() as connection:
                charged = ledger.charge(connection, batch, holder=f"{began}-{number}"[:32], now=now, lease_until=now)
            assert all(one.fresh for one in charged)
        took = time.monotonic() - began
        with bench.database.begin() as connection:  # so that no sweep takes them for dead
            connection.execute(text("UPDATE charges SET state = 'sent', lease_until = NULL, content = NULL, "
                                    "final_at = created_at WHERE state = 'sending'"))  # fmt: skip
        return Measured(len(batches) * self.batch / took, 0.0, 0.0)


@dataclass(frozen=True)
class CreditLedger:
    """The package `credit-ledger`, charging one hot account from one thread."""

    def measure(self, bench: Bench, jobs: int) -> Measured:
        """Charge one by one, as it knows no batches."""
        from credit_ledger import metering  # noqa: PLC0415  a peer, for this side alone

        engine = create_engine(bench.url.replace("postgresql://", "postgresql+psycopg://"))
        with engine.begin() as connection:
            for statement in CREDIT_LEDGER_SCHEMA:
                connection.execute(text(statement))
        metering.grant("hot", RICH, engine=engine)
        run = uuid.uuid4().hex[:8]
        began = time.monotonic()
        for number in range(jobs):
            assert metering.decrement("hot", 1, idempotency_key=f"{run}-{number}", engine=engine).ok
        took = time.monotonic() - began
        engine.dispose()
        return Measured(jobs / took, 0.0, 0.0)


CREDIT_LEDGER_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS credit_balance (
        tenant_id text PRIMARY KEY, credits numeric(18,4) NOT NULL, updated_at timestamptz NOT NULL DEFAULT now())""",
    """CREATE TABLE IF NOT EXISTS credit_ledger (
        id uuid PRIMARY KEY, tenant_id text NOT NULL, delta numeric(18,4) NOT NULL, reason text, idempotency_key text,
        balance_after numeric(18,4), at timestamptz DEFAULT now(), UNIQUE (tenant_id, idempotency_key))""",
)
"""As its functions expect it; the package brings no schema of its own."""


@dataclass(frozen=True)
class BySmtp:
    """Postage with `email.send` to Postfix's `smtp-sink`, a mail server in C that keeps nothing."""

    def measure(self, bench: Bench, jobs: int) -> Measured:
        """Send jobs through."""
        with smtp_sink() as url:
            return Sends(smtp_url=url).measure(bench, jobs)


SMTP_SINK: Final = "/usr/sbin/smtp-sink"
"""Of Debian's package postfix."""


@contextmanager
def smtp_sink() -> Iterator[str]:
    """Run `smtp-sink`; gives its address for POSTAGE_SMTP_URL."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen([SMTP_SINK, "-u", "nobody", f"127.0.0.1:{port}", "1024"], stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        yield f"smtp://127.0.0.1:{port}?starttls=never"
    finally:
        process.terminate()
        process.wait()


@dataclass(frozen=True)
class Latency:
    """One mail at a time on an idle worker: from being enqueued to being accepted by a mail server."""

    def measure(self, bench: Bench, jobs: int) -> Measured:
        """Send one mail after the other; `rate` is that of the slowest of a hundred, so 1 ÷ p99."""
        waits: list[float] = []
        with Outside() as outside, workers(POSTAGE, 1, environment_of(bench, smtp_url=outside.smtp_url), bench.folder):
            for number, email in enumerate(bench.emails(jobs + WARM_UP)):
                began = time.monotonic()
                publish(bench.redis, "email.send", "email", [email])
                while not outside.mail.accepted[email["job_id"]]:
                    if time.monotonic() - began > STUCK_S:
                        msg = f"{email['job_id']} was never accepted."
                        raise TimeoutError(msg)
                    time.sleep(0.0002)
                if number >= WARM_UP:
                    waits.append(time.monotonic() - began)
                time.sleep(0.03)
        ordered = sorted(waits)
        note = ", ".join(
            f"{name} {ordered[int(len(waits) * part)] * 1000:.1f} ms" for name, part in PERCENTILES.items()
        )
        return Measured(1 / ordered[int(len(waits) * 0.99)], 0.0, 0.0, note)


WARM_UP: Final = 20
STUCK_S: Final = 60.0
PERCENTILES: Final = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
