"""The figures of an installation that monitoring reads: from the database, and from the broker."""

import math
import re
import threading
from typing import Any

from redis import Redis
from sqlalchemy import event, insert

from models.database.engine import Database
from models.database.schema import findings
from models.reports.figures import CarrierDown, Figures, read_figures
from models.sends.resting import begin_rest
from tasks.context import Context
from tests.factories import email_job, purchase_order, sms_job
from tests.fakes import NOON, NOT_NOW, answer, make_context
from tests.integration.sending import CRASH, crash, leave_unknown, pass_time, scripted_context
from worker.broker.beat_age import note_beat, read_beat_age
from worker.broker.fair_queue import next_messages
from worker.readings import Ages, Reading

HOUR_S = 3600.0
QUIET = Figures(
    due_lag_s=0,
    lease_lag_s=0,
    unknown={"email": 0, "sms": 0},
    unknown_s=0,
    findings=0,
    debt={"email": 0, "sms": 0},
    down=[],
)


def figures(context: Context) -> Figures:
    return context.database.read(lambda connection: read_figures(connection, context.now(connection)))


def test_where_nothing_is_wrong_all_are_zero(stocked: Database) -> None:
    context = make_context(stocked)
    answer(context, "email.send", email_job())

    assert figures(context) == QUIET


def test_a_due_job_that_no_sweep_finds_is_seen(stocked: Database) -> None:
    context = scripted_context(stocked, NOT_NOW)
    answer(context, "email.send", email_job())
    assert figures(context).due_lag_s == 0

    pass_time(context)

    assert HOUR_S - 60 < figures(context).due_lag_s < HOUR_S


def test_an_expired_lease_that_no_sweep_finds_is_seen(stocked: Database) -> None:
    context = scripted_context(stocked, CRASH)
    crash(context, "email.send", email_job())
    assert figures(context).lease_lag_s == 0

    pass_time(context)

    assert figures(context).lease_lag_s == HOUR_S - context.retry_policy.lease_s


def test_unknown_messages_are_counted(stocked: Database) -> None:
    context = leave_unknown(stocked, "one", "two")
    pass_time(context)

    found = figures(context)

    assert (found.unknown, found.unknown_s) == ({"email": 2, "sms": 0}, HOUR_S)


def test_what_accounts_owe_is_added_up(stocked: Database) -> None:
    context = make_context(stocked)
    answer(context, "credits.purchase", purchase_order("order-1", "john", email=2, sms=1))
    for job_id, segments in (("long", 10), ("short", 1)):
        answer(context, "sms.send", sms_job(job_id, text="x" * (140 * segments)))
    reversal = {"reversal_id": "r1", "order_id": "order-1", "kind": "chargeback", "reason": "Not theirs."}
    answer(context, "credits.reverse", reversal)

    assert figures(context).debt == {"email": 0, "sms": 1}


def test_a_finding_counts_until_somebody_acknowledges_it(stocked: Database) -> None:
    context = make_context(stocked)
    row = {"org_id": 0, "by_whole": False, "invariant": "some", "difference": "1", "first_at": NOON, "last_at": NOON}
    seen = {"acknowledged_at": NOON, "acknowledged_by": "eve"}
    with stocked.engine.begin() as connection:
        connection.execute(insert(findings), [{**row, "subject": "a"}])
        connection.execute(insert(findings), [{**row, "subject": "b", **seen}])
        connection.execute(insert(findings), [{**row, "subject": "c", "resolved_at": NOON}])

    assert figures(context).findings == 1


def test_a_carrier_that_does_not_work_is_named(stocked: Database) -> None:
    context = make_context(stocked)
    stocked.write(lambda connection: begin_rest(connection, "email", "mail", "away", NOON, is_our_fault=False))
    pass_time(context)

    assert figures(context).down == [CarrierDown("email", "mail", HOUR_S)]


def test_what_grows_is_read_by_an_index_made_for_it(stocked_postgres: Database) -> None:
    """However long the history is, it is read from one end, or the few rows are that matter."""
    context = make_context(stocked_postgres)
    asked: list[tuple[str, Any]] = []

    def note(_conn: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        asked.append((statement, parameters))

    event.listen(stocked_postgres.engine, "before_cursor_execute", note)
    figures(context)
    event.remove(stocked_postgres.engine, "before_cursor_execute", note)

    growing = re.compile(r"FROM (charges|accounts|leases|postponed_jobs)\b")
    queries = [one for one in asked if growing.search(one[0])]
    assert len(queries) == 6
    with stocked_postgres.snapshot() as connection:
        for statement, parameters in queries:
            plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).scalars())
            assert re.search(r"Scan.* (using|on) ix_", plan), plan


# -- the broker -------------------------------------------------------------------------------------------------------


def test_what_is_next_on_a_queue_stays_the_same_until_something_is_taken(redis: Redis) -> None:
    redis.lpush("email", "one", "two")
    redis.lpush("postage.turns:email", "7")
    redis.lpush("postage.lines:email@7", "mary", "john")
    redis.lpush("postage.line:email:mary", "of mary")
    before = next_messages(redis, "email")
    assert len(before) == 2

    redis.lpush("email", "three")
    redis.lpush("postage.line:email:mary", "of mary, too")
    assert next_messages(redis, "email") == before

    redis.rpop("email")
    assert len(next_messages(redis, "email") & before) == 1


def test_long_messages_are_told_apart_by_their_ends(redis: Redis) -> None:
    long = "x" * 5_000_000
    redis.lpush("email", f"{long}a", f"{long}b")
    first = next_messages(redis, "email")
    redis.rpop("email")

    assert len(first) == 1
    assert next_messages(redis, "email").isdisjoint(first)


def test_a_message_is_as_old_as_it_was_seen_to_be_next() -> None:
    ages = Ages()
    assert ages.of({"email": {"a"}, "sms": set()}, 100.0) == {"email": 0, "sms": 0}
    assert ages.of({"email": {"a", "b"}, "sms": {"c"}}, 160.0) == {"email": 60, "sms": 0}
    assert ages.of({"email": {"b"}, "sms": {"c"}}, 200.0) == {"email": 40, "sms": 40}
    assert ages.of({"email": {"a"}, "sms": set()}, 201.0) == {"email": 0, "sms": 0}


def test_beat_is_as_old_as_its_last_sign(redis: Redis) -> None:
    assert read_beat_age(redis) == math.inf

    note_beat(redis)
    assert read_beat_age(redis) < 60

    seconds, _ = redis.time()
    redis.set("postage.beat", seconds - 90)
    assert 90 <= read_beat_age(redis) < 150


# -- reading ----------------------------------------------------------------------------------------------------------


def test_a_scrape_does_not_wait_for_what_takes_long() -> None:
    may_end = threading.Event()
    reading = Reading(lambda: may_end.wait(60), fresh_s=3600, wait_s=0.01)

    assert reading.latest() is None

    may_end.set()
    while (found := reading.latest()) is None:
        pass
    assert found is True, "a later scrape finds it"


def test_what_was_read_counts_for_a_while() -> None:
    numbers = iter(range(9))
    fresh, stale = (Reading(lambda: next(numbers), fresh_s) for fresh_s in (3600.0, 0.0))

    assert (fresh.latest(), fresh.latest(), stale.latest(), stale.latest()) == (0, 0, 1, 2)


def test_what_cannot_be_read_is_missing() -> None:
    def fail() -> None:
        raise ConnectionRefusedError

    reading = Reading(fail, fresh_s=0)

    assert reading.latest() is None
