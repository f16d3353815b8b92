"""A database that the release with migration 0005 has filled is migrated, and means the same afterwards.

How it was filled says release_0005/generate.py.
"""

import json
import secrets
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import select, text

from models.database.engine import Database
from models.database.migrations import migrate
from models.database.schema import charges, organizations
from models.messages.fields import KINDS
from models.sends.carrier import Outcome, Receipt
from models.sends.charges import State
from models.sends.retry_policy import RetryPolicy
from tasks import operating, upkeep
from tasks.context import Context
from tests.chains import broken_hashes
from tests.factories import email_job, purchase_order
from tests.fakes import Clock, FakeCarrier, answer, carrier_of, make_context, run_enqueued
from tests.integration.audited import audit
from tests.integration.stored import charge_of, decisions_of, findings, letters_of
from tests.servers import PostgresServer

FOLDER = Path(__file__).parent / "release_0005"
ANSWERS: Final = json.loads((FOLDER / "answers.json").read_text())
NOW: Final = datetime.fromisoformat(ANSWERS["now"])
REPLAYS: Final[list[tuple[str, Any, Any]]] = [json.loads(line) for line in ANSWERS["replays"]]
VIEWS: Final[list[tuple[str, Any, Any]]] = [json.loads(line) for line in ANSWERS["views"]]


def fill(url: str) -> None:
    """Make the database of the old release."""
    migrate(url, "0005")
    with closing(Database(url)) as database, database.engine.begin() as connection:
        if not database.is_sqlite:
            connection.exec_driver_sql("SET LOCAL TIME ZONE 'UTC'")
        for statement in (FOLDER / "database.sql").read_text().split(";\n"):
            connection.exec_driver_sql(statement.replace("%", "%%")) if statement else None
        if not database.is_sqlite:
            for table in ("accounts", "refusals", "dead_letters", "decisions"):
                connection.exec_driver_sql(
                    f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}))"
                )


@pytest.fixture(params=["sqlite", "postgresql"])
def old_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Give the URL of the database of the old release, once of either kind."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'old.db'}"
        fill(url)
        yield url
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    name = f"old_{secrets.token_hex(8)}"
    server.create_database(name)
    fill(server.url(name))
    yield server.url(name)
    server.drop_database(name)


@pytest.fixture
def migrated(old_url: str) -> Iterator[Database]:
    """Give the database, migrated."""
    migrate(old_url)
    with closing(Database(old_url)) as database:
        yield database


def context_of(database: Database) -> Context:
    """Give a context at the time at which the old release was stopped."""
    return make_context(database, FakeCarrier(), FakeCarrier(), Clock(NOW), RetryPolicy(attempts_max=3))


def test_the_old_database_holds_what_there_is_to_migrate(old_url: str) -> None:
    with closing(Database(old_url)) as database, database.snapshot() as connection:
        states = set(connection.execute(text("SELECT DISTINCT state FROM charges")).scalars())
        counts = {
            table: connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
            for table in (
                "dead_letters",
                "decisions",
                "refusals",
                "usage_days",
                "leases",
                "audit_marks",
                "owner_changes",
            )
        }
        bulks = "SELECT count(*) FROM charges WHERE state = 'bulk' AND messages IS {}NULL"
        old, new = (connection.execute(text(bulks.format(word))).scalar_one() for word in ("", "NOT "))

    assert states == {str(state) for state in State}
    assert min(counts.values()) > 0
    assert (old, new) == (1, 2)


def test_audits_find_nothing_after_the_migration(migrated: Database) -> None:
    assert findings(migrated, NOW) == []
    assert audit(migrated, NOW).findings == []
    assert audit(migrated, NOW, whole=True).findings == []


def test_jobs_of_the_old_release_get_their_first_answers(migrated: Database) -> None:
    context = context_of(migrated)
    carriers = {kind: carrier_of(context, kind) for kind in KINDS}

    answers = [(task, given, answer(context, task, given, "replay")) for task, given, _ in REPLAYS]

    assert [answered[:2] for answered in answers] == [(task, given) for task, given, _ in REPLAYS]
    for (task, _, answered), (_, _, before) in zip(answers, REPLAYS, strict=True):
        if task.startswith("credits.") and before["status"] == "refused":
            assert before["credits"] == 0  # the old release said a number here, where the answer is an object
            assert shows(answered, before | {"credits": None}), (task, answered, before)
        else:
            assert shows(answered, before), (task, answered, before)
    assert (carriers["email"].messages, carriers["sms"].messages) == ([], [])
    assert findings(migrated, NOW) == []


def test_views_show_what_they_showed(migrated: Database) -> None:
    context = context_of(migrated)

    assert [(task, given) for task, given, before in VIEWS if not shows(answer(context, task, given), before)] == []


def shows(shown: Any, before: Any) -> bool:
    """Whether a view shows everything that it showed before; it may have new fields."""
    if isinstance(before, dict):
        return before.keys() <= shown.keys() and all(shows(shown[name], value) for name, value in before.items())
    if isinstance(before, list):
        return len(shown) == len(before) and all(map(shows, shown, before))
    return bool(shown == before)


def test_the_hashes_of_each_account_make_a_chain(migrated: Database) -> None:
    with migrated.snapshot() as connection:
        assert broken_hashes(connection) == []


def test_everything_has_its_organization(migrated: Database) -> None:
    by_organization = (
        select(organizations.c.name, charges.c.job_id)
        .outerjoin_from(charges, organizations, organizations.c.id == charges.c.org_id)
        .where(charges.c.job_id.in_(["before", "stranger", "olgas", "sent", "bulk-1/0"]))
    )
    with migrated.snapshot() as connection:
        found = {row.job_id: row.name for row in connection.execute(by_organization)}

    assert found == {"before": "acme", "stranger": None, "olgas": "other", "sent": "acme", "bulk-1/0": "acme"}


def test_charges_name_the_owner_who_paid(migrated: Database) -> None:
    """Peter's owner changed from john to peter, mary, peter and john again."""
    with migrated.snapshot() as connection:
        versions = dict(
            connection.execute(
                select(charges.c.job_id, charges.c.owner_version)
                .where(charges.c.job_id.like("of-%") | (charges.c.job_id == "slow-clock"))
                .order_by(charges.c.job_id)
            ).all()  # type: ignore[arg-type]
        )

    assert {job_id: versions[job_id] for job_id in ("of-0", "of-1", "of-2", "of-3", "of-4")} == {
        "of-0": 1, "of-1": 2, "of-2": 3, "of-3": 4, "of-4": 5,
    }  # fmt: skip
    assert versions["slow-clock"] in (1, 5)


def test_work_goes_on_where_the_old_release_left_it(migrated: Database) -> None:
    """What waited is sent, what was held is tried again or unknown, what was unknown can be decided."""
    context = context_of(migrated)
    clock: Any = context.now
    carriers = {kind: carrier_of(context, kind) for kind in KINDS}
    carriers["email"].script = [Receipt(Outcome.NEVER, "No.")]
    refunded = operating.decide(context, "refund", ["unknown-1"], operator="ops", note=None)

    for _ in range(3):
        clock.forward(timedelta(hours=1))
        upkeep.sweep(context)
        run_enqueued(context)
    upkeep.roll_up(context)

    assert refunded["status"] == "done"
    states = {job_id: charge_of(migrated, job_id).state for job_id in ("waits", "held", "held-in-doubt", "unknown-2")}
    assert states.pop("held-in-doubt") is states.pop("unknown-2") is State.UNKNOWN
    assert (
        sorted({"waits-partly", *(f"bulk-waits/{place}" for place in range(3))} - set(carriers["email"].job_ids)) == []
    )
    assert {message.org_id for message in carriers["email"].messages} == {None}, "a carrier knows them by their ids"
    assert set(states.values()) <= {State.SENT, State.FAILED}
    assert [job_id for job_id, *_ in decisions_of(migrated)] == ["unknown-refunded", "unknown-resent", "unknown-1"]
    assert len(letters_of(migrated)) > 0
    assert findings(migrated, clock.now) == []


def test_new_jobs_are_charged_after_the_migration(migrated: Database) -> None:
    context = context_of(migrated)
    bought = answer(context, "credits.purchase", purchase_order("order-new", "mary", email=1))
    sent = answer(context, "email.send", email_job("new", "peter"))
    refused = answer(context, "email.send", email_job("bad", "peter", to="?"))

    assert (bought["status"], sent["status"], refused["reason"]) == ("done", "sent", "invalid_job")
    assert [message.org_id for message in carrier_of(context, "email").messages] == [charge_of(migrated, "new").org_id]
    assert findings(migrated, NOW) == []
