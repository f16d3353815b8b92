"""Write `database.sql` and `answers.json`: a database that the release with migration 0005 has filled, and its answers.

It runs with the code of that release, whose last commit is 0b38878, and is kept to show where the two files come from:

    git worktree add /tmp/release 0b38878 && cp tests/integration/release_0005/generate.py /tmp/release
    cd /tmp/release && PYTHONPATH=. .venv/bin/python generate.py <folder of the two files>
"""

import json
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import JSON, Boolean, insert, select, update

from models.database.engine import Database
from models.database.migrations import migrate
from models.database.schema import charges, metadata, users
from models.messages.sends import SendEmail
from models.reports.audit import run_audit
from models.sends.carrier import Outcome, Receipt
from models.sends.charging import charge_jobs
from models.sends.retry_policy import RetryPolicy
from tasks import operating, upkeep
from tests.audits import audit_everything
from tests.factories import email_job, ledger_job, purchase_order, save_people, share, sms_job
from tests.fakes import (
    ACCEPTED,
    NEVER,
    NOBODY,
    NOT_NOW,
    UNSURE,
    Clock,
    FakeCarrier,
    answer,
    make_context,
    run_enqueued,
    send,
)

MINUTE = timedelta(minutes=1)
TWO = ["ada@x.test", "bob@x.test"]
PARTIAL = Receipt(Outcome.ACCEPTED, refused={"bob@x.test": "550 No such mailbox"})
DEFERRED = Receipt(Outcome.ACCEPTED, refused={"ada@x.test": "550"}, deferred={"bob@x.test": "451"})


class Release:
    """The database, and every job that it was asked for."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.clock = Clock()
        self.email, self.sms = FakeCarrier(), FakeCarrier()
        self.context = make_context(database, self.email, self.sms, self.clock, RetryPolicy(attempts_max=3))
        self.jobs: list[tuple[str, Any]] = []

    def ask(self, task: str, given: Any, *script: Any) -> Any:
        """Answer a job, whose carrier follows the script."""
        self.clock.forward(MINUTE)
        self.jobs.append((task, given))
        (self.sms if task.startswith("sms") else self.email).script = list(script)
        return answer(self.context, task, given, f"task-{len(self.jobs)}")

    def sweep(self, *script: Any) -> None:
        """Let an hour pass, sweep, and do what is due."""
        self.clock.forward(60 * MINUTE)
        upkeep.sweep(self.context)
        self.email.script = list(script)
        run_enqueued(self.context)

    def share(self, user: str, owner: str) -> None:
        """Change a credit owner."""
        self.clock.forward(MINUTE)
        share(self.database, user, owner, now=self.clock.now)


def bulk(job_id: str, sender: str, count: int) -> Any:
    recipients = [{"to": f"u{number}@x.test", "values": {"n": str(number)}} for number in range(count)]
    return {"job_id": job_id, "sender": sender, "subject": "Hi {{n}}", "text": "Hi", "recipients": recipients}


def fill(release: Release) -> None:  # noqa: PLR0915  a story
    """Let everything happen that the release knows."""
    database, clock, ask = release.database, release.clock, release.ask
    ask("email.send", email_job("before", "nora"))  # who is saved only later
    ask("email.send", email_job("stranger", "nobody"))
    ask("email.send_many", bulk("stranger-bulk", "nobody", 2))
    save_people(database, clock.now)
    nora = {"user_id": "nora", "organization": "acme", "name": "Nora", "email": "nora@acme.test", "role": "member"}
    ask("users.save", nora)
    plan = {"plan": "small", "name": "Small", "credits": {"email": 7, "sms": 7}, "price": 700, "currency": "EUR"}
    ask("plans.save", plan)
    ask("credits.purchase", purchase_order("order-1", "john", email=100, sms=40))
    ask("credits.purchase", {"order_id": "order-2", "buyer": "olga", "plan": "small"})
    ask("credits.purchase", purchase_order("order-3", "mary", email=5))
    ask("credits.purchase", purchase_order("order-0", "peter", email=2))  # for peter himself
    run_audit(database, clock.now, retried_for=5 * MINUTE)
    for number, owner in enumerate(("john", "peter", "mary", "peter", "john")):  # to and fro
        release.share("peter", owner)
        ask("email.send", email_job(f"of-{number}", "peter", to=TWO[:1]), ACCEPTED)
    ask("credits.purchase", purchase_order("order-4", "peter", email=3))  # for john
    with database.engine.begin() as connection:  # by a worker whose clock is behind that of the last change
        slow = ledger_job(email_job("slow-clock", "peter"))
        behind = clock.now - 10 * MINUTE
        charge_jobs(connection, [slow], lease_id="slow", now=behind, lease_until=behind + MINUTE)
    release.jobs.append(("email.send", email_job("slow-clock", "peter")))
    ask("email.send", email_job("sent", "john", to=TWO), ACCEPTED)
    ask("sms.send", sms_job("long-text", "olga", text="x" * 200), ACCEPTED)
    ask("email.send", email_job("olgas", "olga"), ACCEPTED)
    ask("email.send", email_job("partly", "john", to=TWO), PARTIAL)
    ask("email.send", email_job("failed", "peter", to=TWO), NEVER)
    ask("email.send", email_job("no-recipients", "john"), NOBODY)
    ask("sms.send", sms_job("text-failed", "john"), NEVER)
    ask("email.send", email_job("expensive", "mary", to=[f"u{number}@x.test" for number in range(20)]))
    ask("email.send", {"job_id": "not-valid", "sender": "john", "to": "nonsense", "subject": "Hi", "text": "Hi"})
    ask("credits.purchase", {"order_id": "order-5", "buyer": "john", "plan": "unknown"})
    batch = [email_job(f"batch-{number}", ("john", "peter", "mary")[number % 3]) for number in range(6)]
    release.jobs += [("email.send", job) for job in batch]
    release.email.script = [ACCEPTED, NEVER, ACCEPTED]
    send(release.context, "email.send", [SendEmail.model_validate(job) for job in batch])
    ask("email.send_many", bulk("bulk-1", "john", 4))
    release.sweep(ACCEPTED, NEVER, NOT_NOW)
    ask("email.send_many", bulk("bulk-expensive", "mary", 30))
    bulk_by_single_entries(release)
    upkeep.roll_up(release.context)
    ask("email.send", email_job("unknown-1", "john"), UNSURE)
    ask("email.send", email_job("unknown-2", "peter", to=TWO), UNSURE)
    ask("email.send", email_job("unknown-refunded", "john"), UNSURE)
    ask("email.send", email_job("unknown-resent", "john"), UNSURE)
    operating.decide(release.context, "refund", ["unknown-refunded"], operator="ops", note="not in the log")
    operating.decide(release.context, "resend", ["unknown-resent"], operator="ops", note=None)
    release.sweep()
    release.sweep()
    ask("email.send", email_job("waits", "john"), NOT_NOW)
    ask("email.send", email_job("waits-partly", "peter", to=[*TWO, "eve@x.test"]), DEFERRED)
    ask("email.send_many", bulk("bulk-waits", "peter", 3))
    release.context.enqueue.take()  # nobody has begun it
    for job_id, crash in (("held", before_handover), ("held-in-doubt", after_handover)):
        with pytest.raises(ZeroDivisionError):
            ask("email.send", email_job(job_id, "john"), crash)


before_handover = ZeroDivisionError("the worker crashes")


def after_handover(_: object) -> Receipt:
    raise before_handover


def bulk_by_single_entries(release: Release) -> None:
    """Write a bulk job as releases before migration 0004 did: each of its messages has an entry."""
    now = release.clock.now
    messages = [ledger_job(email_job(f"old-{number}", "peter")) for number in range(3)]
    ids = {message.job_id: f"bulk-old/{number}" for number, message in enumerate(messages)}
    for message in messages:
        message.job_id = ids[message.job_id]
    with release.database.engine.begin() as connection:
        charge_jobs(connection, messages, lease_id="old", now=now, lease_until=now + MINUTE)
        connection.execute(
            update(charges)
            .where(charges.c.job_id.in_(ids.values()))
            .values(bulk_id="bulk-old", state="waiting", lease_until=None, attempts=0, due_at=now)
        )
        connection.execute(
            insert(charges).values(
                job_id="bulk-old", task="email.send_many", kind="email", sender="peter", digest="0" * 64, credits=3,
                refunded=0, state="bulk", attempts=0, crashes=0, created_at=now,
            )
        )  # fmt: skip
    release.sweep(ACCEPTED, NEVER, ACCEPTED)


def literal(value: Any, kind: Any) -> str:
    """Give a value as both databases read it."""
    if value is None:
        return "NULL"
    if isinstance(kind, Boolean):
        return "true" if value else "false"
    if isinstance(kind, JSON):
        value = json.dumps(value)
    if isinstance(value, int):
        return str(value)
    if hasattr(value, "tzinfo"):
        value = value.replace(tzinfo=None).isoformat(" ", "microseconds")
    return "'{}'".format(str(value).replace("'", "''"))


def dump(database: Database) -> str:
    """Give all rows as INSERTs, in an order in which foreign keys allow them."""
    lines = []
    with database.snapshot() as connection:
        for table in metadata.sorted_tables:
            order = [users.c.is_owner.desc(), users.c.id] if table is users else table.primary_key
            names = ", ".join(column.name for column in table.c)
            for row in connection.execute(select(table).order_by(*order)):
                values = ", ".join(literal(value, column.type) for value, column in zip(row, table.c, strict=True))
                lines.append(f"INSERT INTO {table.name} ({names}) VALUES ({values});\n")
    return "".join(lines)


VIEWS = [
    (f"views.{name}", {"viewer": viewer, **options})
    for viewer in ("john", "peter", "mary", "olga", "nora")
    for name, options in (("overview", {}), ("usage", {}), ("usage", {"by": "message"}), ("usage", {"of": "self"}),
                          ("orders", {}), ("billing", {}))
]  # fmt: skip


def main(folder: Path) -> None:
    """Write both files."""
    with tempfile.TemporaryDirectory() as place:
        url = f"sqlite:///{place}/old.db"
        migrate(url)
        database = Database(url)
        release = Release(database)
        fill(release)
        with database.snapshot() as connection:
            found = audit_everything(connection, release.clock.now)
        assert found == [], found
        sql = dump(database)
        carriers = len(release.email.messages), len(release.sms.messages)
        replays = []
        for task, given in release.jobs:
            replays.append((task, given, answer(release.context, task, given, "replay")))
        assert carriers == (len(release.email.messages), len(release.sms.messages))
        viewed = [(task, given, answer(release.context, task, given)) for task, given in VIEWS]
        database.close()
    (folder / "database.sql").write_text(sql)
    kept = {"now": release.clock.now.isoformat(), "replays": lines_of(replays), "views": lines_of(viewed)}
    (folder / "answers.json").write_text(json.dumps(kept, indent=1) + "\n")


def lines_of(answers: list[tuple[str, Any, Any]]) -> list[str]:
    """Give each answer in a line of its own, for the sake of the file."""
    return [json.dumps(each) for each in answers]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
