"""What names people beside the money, and is erased when its time is over."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import select, text, update
from sqlalchemy.exc import DatabaseError

from models.database.engine import Database
from models.database.schema import charges, decisions, refusals
from models.messages.billing import EraseUser
from models.sends import erasure
from models.sends.carrier import Outcome, Receipt
from models.sends.erasure import WORDS_ERASED
from tasks import erasing, upkeep
from tasks.context import Context
from tasks.operating import decide
from tests.factories import buy, email_job, save_people, sms_job
from tests.fakes import ACCEPTED, NOON, UNSURE, Clock, answer, later, make_context
from tests.integration.commands import open_app
from tests.integration.history import analyze, rows_read, write_sent_emails
from tests.integration.queued import put_in_quarantine
from tests.integration.sending import pass_time, read_back, scripted_context
from tests.integration.stored import charge_of, decisions_of, findings, letters_of, tries_of
from tests.integration.templates import database_filled_by
from worker.app import PostageApp
from worker.broker.fair_queue import QUARANTINE
from worker.broker.quarantine import LIST_BEFORE, RedisQuarantine, all_items, list_items

TO = ["ada@example.test", "bob@example.test", "eve@example.test"]
TWO_REFUSED = Receipt(Outcome.ACCEPTED, refused={TO[0]: f"550 <{TO[0]}>", TO[1]: "550"}, reference="ref-1")
NOBODY_HAS = Receipt(Outcome.NEVER, f"550 5.1.1 <{TO[0]}>: no such user", recipients_refused=True)
KEPT = timedelta(days=90)


def rows_of(database: Database, table: Any) -> list[Any]:
    with database.snapshot() as connection:
        return list(connection.execute(select(table)).all())


def sweep_after(context: Context, days: float) -> int:
    """Let days pass and sweep once; gives how much was erased."""
    pass_time(context, timedelta(days=days))
    erased: int = upkeep.sweep(context)["erased"]
    return erased


def test_refused_recipients_are_numbered_when_their_time_is_over(stocked: Database) -> None:
    context = scripted_context(stocked, TWO_REFUSED, NOBODY_HAS, ACCEPTED)
    for job_id in ("partly", "failed", "sent"):
        answer(context, "email.send", email_job(job_id, to=TO))
    before = {job_id: read_back(context, job_id) for job_id in ("partly", "failed", "sent")}

    assert sweep_after(context, 89.9) == 1, "only the dead letter"
    assert {job_id: read_back(context, job_id) for job_id in before} == before
    assert sweep_after(context, 0.2) == 2 + 1, "the charges, and the words about the one that failed"

    partly, failed = read_back(context, "partly"), read_back(context, "failed")
    refused = {"recipient-1": "erased", "recipient-2": "erased"}
    assert partly == before["partly"] | {"recipients_refused": refused}
    assert failed == before["failed"] | {"detail": WORDS_ERASED}
    assert read_back(context, "sent") == before["sent"]
    assert charge_of(stocked, "partly").refunded == len(refused)
    assert "example.test" not in str(rows_of(stocked, charges))
    assert findings(stocked, context.now()) == []
    assert sweep_after(context, 100) == 0, "what is erased is not looked at again"


def test_words_of_attempts_are_erased_when_their_time_is_over(stocked: Database) -> None:
    """Who was asked when, and how that ended, stays; also of a job that ended well in the end."""
    context = scripted_context(stocked, Receipt(Outcome.NOT_NOW, f"450 4.2.0 <{TO[0]}>: greylisted"))
    answer(context, "email.send", email_job("job-1", to=TO))
    later(context)
    before = tries_of(stocked, "job-1")
    assert [(each.outcome, each.number) for each in before] == [("not_now", 1), ("accepted", 2)]

    sweep_after(context, 89.9)
    assert tries_of(stocked, "job-1") == before
    assert sweep_after(context, 0.2) == 1

    assert tries_of(stocked, "job-1") == [before[0]._replace(detail=WORDS_ERASED), before[1]]
    assert sweep_after(context, 100) == 0, "what is erased is not looked at again"


def test_what_is_still_open_is_not_touched(stocked: Database) -> None:
    """Its recipients are needed to know who is still to get it, and what is to be given back."""
    not_now = Receipt(Outcome.ACCEPTED, refused={TO[0]: "550"}, deferred={TO[1]: "450"})
    context = scripted_context(stocked, not_now)
    answer(context, "email.send", email_job("waiting", to=TO))
    before = charge_of(stocked, "waiting")

    pass_time(context, 2 * KEPT)
    erasing.erase_overdue(context)

    assert charge_of(stocked, "waiting") == before
    assert before.recipients_refused == {TO[0]: "550"}


def test_refusals_are_deleted_when_their_time_is_over(stocked: Database) -> None:
    context = scripted_context(stocked)
    answer(context, "email.send", {"job_id": "wrong", "sender": "john"})
    assert read_back(context, "wrong")["reason"] == "invalid_job"

    sweep_after(context, 89.9)
    assert len(rows_of(stocked, refusals)) == 1
    sweep_after(context, 0.2)

    assert rows_of(stocked, refusals) == []
    assert read_back(context, "wrong")["reason"] == "not_found"


@pytest.mark.parametrize(("dead_days", "personal_days", "kept_days"), [(7, 90, 7), (90, 7, 7), (7, 0, 0), (0, 90, 0)])
def test_dead_letters_are_kept_for_the_shorter_time(
    stocked: Database, dead_days: int, personal_days: int, kept_days: int
) -> None:
    context = replace(
        scripted_context(stocked), keep_dead=timedelta(days=dead_days), keep_personal=timedelta(days=personal_days)
    )
    answer(context, "email.send", {"job_id": "wrong", "sender": "john"})
    assert len(letters_of(stocked)) == (kept_days > 0)

    if kept_days:
        sweep_after(context, kept_days - 0.1)
        assert len(letters_of(stocked)) == 1
    sweep_after(context, 0.2)

    assert letters_of(stocked) == []


def test_a_sweep_erases_a_batch_and_the_next_one_goes_on(stocked: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    context = scripted_context(stocked, *[NOBODY_HAS] * 3)
    for number in range(3):
        answer(context, "sms.send", sms_job(f"job-{number}"))
        answer(context, "email.send", {"job_id": f"wrong-{number}", "sender": "john"})
    monkeypatch.setattr(erasing, "ERASE_BATCH", 2)

    assert sweep_after(context, 91) == 2 + 2 + 2 + 2
    assert upkeep.sweep(context)["erased"] == 2 + 1 + 1 + 1
    assert upkeep.sweep(context)["erased"] == 2
    assert upkeep.sweep(context)["erased"] == 0


def test_a_sweep_that_is_interrupted_goes_on_with_the_next_one(
    stocked: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = scripted_context(stocked, NOBODY_HAS)
    answer(context, "email.send", email_job())
    answer(context, "email.send", {"job_id": "wrong", "sender": "john"})
    with monkeypatch.context() as patch:
        patch.setattr(erasing, "erase_recipients", crash_at_once)
        with pytest.raises(ZeroDivisionError):
            sweep_after(context, 91)
    assert (len(rows_of(stocked, refusals)), len(letters_of(stocked))) == (1, 2)

    assert upkeep.sweep(context)["erased"] == 5


def crash_at_once(*_: object) -> int:
    raise ZeroDivisionError


HISTORY = 20_000


def write_history(database: Database) -> None:
    """Write 20,000 emails that john has sent, of the last of which credits went back."""
    save_people(database)
    buy(database, "john", email=HISTORY + 3)
    write_sent_emails(database, "john", [NOON + timedelta(microseconds=number) for number in range(HISTORY)])
    context = scripted_context(database, TWO_REFUSED, clock=Clock(NOON + timedelta(minutes=1)))
    answer(context, "email.send", email_job("partly", to=TO))
    answer(context, "email.send", {"job_id": "wrong", "sender": "john"})
    analyze(database)


long_history = database_filled_by(write_history, "postgresql")


def test_what_is_due_is_found_by_an_index_in_a_long_history(long_history: Database) -> None:
    """As PostgreSQL itself counts the rows that the transaction reads."""
    now = NOON + KEPT + timedelta(hours=1)
    long_history.engine.dispose()  # a new session has not counted anything yet

    with long_history.engine.begin() as connection:
        assert erasure.erase_letters(connection, now, 9) == 1
        assert erasure.erase_refusals(connection, now, 9) == 1
        assert erasure.erase_recipients(connection, now - KEPT, now, 9) == 1
        assert all(count < 50 for count in rows_read(connection).values()), rows_read(connection)


def test_what_is_about_a_user_is_found_by_an_index_in_a_long_history(long_history: Database) -> None:
    context = make_context(long_history, clock=Clock(NOON + timedelta(hours=1)))
    erase_john = EraseUser(erasure_id="erasure-1", actor="john", user="john")
    long_history.engine.dispose()

    with long_history.engine.begin() as connection:
        john = erasure.erase_user(connection, erase_john, context.now(connection))
        assert erasure.erase_letters_of(connection, john, 9) == 1
        assert erasure.erase_refusals_of(connection, john, 9) == 1
        assert erasure.erase_recipients(connection, context.now(connection), context.now(connection), 9, of=john) == 1
        assert all(count < 50 for count in rows_read(connection).values()), rows_read(connection)


# -- notes of decisions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM decisions",
        "UPDATE decisions SET note = 'another'",
        "UPDATE decisions SET note = NULL, operator = 'x'",
        "UPDATE decisions SET job_id = job_id",
        "UPDATE decisions SET decision = decision",
        "UPDATE decisions SET operator = operator",
        "UPDATE decisions SET at = at",
        "UPDATE decisions SET org_id = org_id",
    ],
)
def test_of_a_decision_only_the_note_can_be_erased(stocked: Database, statement: str) -> None:
    context = scripted_context(stocked, UNSURE)
    answer(context, "email.send", email_job())
    decide(context, "refund", None, operator="someone", note="ada called")

    with pytest.raises(DatabaseError, match="append-only"), stocked.engine.begin() as connection:
        connection.execute(text(statement))

    with stocked.engine.begin() as connection:
        connection.execute(update(decisions).values(note=None))
    assert decisions_of(stocked) == [("job-1", "refund", "someone", None)]


# -- the quarantine ---------------------------------------------------------------------------------------------------

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)


@pytest.fixture
def app(sqlite_url: str, valkey_url: str) -> Iterator[PostageApp]:
    """Give an app with a real broker."""
    with open_app(sqlite_url, valkey_url) as app:
        yield app


def test_quarantined_items_are_erased_when_their_time_is_over(app: PostageApp, redis: Redis) -> None:
    put_in_quarantine(redis, b"old", at=NOW - KEPT)
    put_in_quarantine(redis, b"young", at=NOW - KEPT + timedelta(seconds=1))

    assert RedisQuarantine(app).erase_before(NOW - KEPT, 500) == 1

    assert redis.zrange(QUARANTINE, 0, -1) == [b"young"]
    assert RedisQuarantine(app).erase_before(NOW - KEPT, 500) == 0


def test_items_of_earlier_releases_get_the_time_at_which_they_are_first_seen(app: PostageApp, redis: Redis) -> None:
    redis.lpush(LIST_BEFORE, *(f"item {number}" for number in range(600)))
    quarantine = RedisQuarantine(app)

    assert [quarantine.erase_before(NOW - KEPT, 500) for _ in range(2)] == [0, 0]

    assert (redis.exists(LIST_BEFORE), redis.zcard(QUARANTINE)) == (0, 600)
    age = datetime.now(UTC) - max(item.at for item in all_items(redis))
    assert timedelta(0) <= age < timedelta(minutes=1)


def test_the_sweep_erases_the_quarantine(app: PostageApp, redis: Redis) -> None:
    put_in_quarantine(redis, b"old", at=datetime.now(UTC) - timedelta(days=91))
    put_in_quarantine(redis, b"young")

    assert upkeep.sweep(app.context)["erased"] == 1
    assert redis.zrange(QUARANTINE, 0, -1) == [b"young"]


def test_items_are_listed_since_a_time(redis: Redis) -> None:
    put_in_quarantine(redis, b"old", at=NOW - timedelta(days=2))
    put_in_quarantine(redis, b"young", at=NOW)

    [item], following = list_items(redis, since=NOW - timedelta(days=1))

    assert (item.raw, item.at, item.row()["at"], following) == (b"young", NOW, "2026-11-27T12:00:00.000+00:00", None)


def test_items_about_a_users_jobs_are_erased_with_the_user(app: PostageApp, redis: Redis) -> None:
    jobs: list[tuple[str, Any]] = [
        ("email.fly", email_job(sender="mary")),
        ("credits.fly", {"buyer": "mary"}),
        ("users.fly", {"user_id": "mary", "email": "mary@example.test"}),
        ("email.fly", email_job(sender="john", text="to mary")),
        ("email.fly", email_job(sender="mary2")),
        ("email.fly", ["mary"]),
    ]
    for task, job in jobs:
        app.send_task(task, args=[job], queue="email")
        put_in_quarantine(redis, redis.rpop("email"))  # type: ignore[arg-type]
    put_in_quarantine(redis, b"\xff mary", b'{"body": "mary"}', b'{"body": "W10="}', b"[" * 100_000)

    assert RedisQuarantine(app).erase_of("mary") == 3

    assert redis.zcard(QUARANTINE) == 7
    assert not any(item.names("mary") for item in all_items(redis))


def test_users_erase_reaches_the_quarantine(app: PostageApp, redis: Redis) -> None:
    for task, job in (
        ("roles.save", {"organization": "acme", "role": "admin", "rights": ["edit_user"]}),
        *(
            ("users.save", {"user_id": user, "organization": "acme", "name": "M", "email": "m@x.test", "role": "admin"})
            for user in ("john", "mary")
        ),
    ):
        assert answer(app.context, task, job)["status"] == "done"
    app.send_task("email.fly", args=[email_job(sender="mary")], queue="email")
    put_in_quarantine(redis, redis.rpop("email"))  # type: ignore[arg-type]

    erased = answer(app.context, "users.erase", {"erasure_id": "e", "actor": "john", "user": "mary"})

    assert (erased["status"], redis.zcard(QUARANTINE)) == ("done", 0)
