"""Jobs that were refused, failed or were given up are kept for a while, whole, and can be sent again."""

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import pytest
from celery import Celery
from celery.exceptions import Reject, Retry
from click.testing import CliRunner, Result
from redis import Redis
from sqlalchemy import func, select

from models.database.engine import Database
from models.database.schema import charges, dead_letters, refusals
from models.messages.wire import parse
from models.sends.charges import State, find_charges
from models.sends.dead_letters import find_letter, mark_replayed, replay_of
from models.sends.retry_policy import RetryPolicy
from tasks import upkeep
from tasks.base import FAULT_RETRIES
from tasks.context import Context, Json
from tests.audits import audit_everything
from tests.factories import BILLING, balance, buy, email_job, purchase_order, sms_job, stock
from tests.fakes import (
    NEVER,
    NOON,
    NOT_NOW,
    Clock,
    FakeBroker,
    FakeCarrier,
    OpenSession,
    answer,
    later,
    make_context,
    run_enqueued,
)
from worker.app import create_app
from worker.broker import fair_queue
from worker.cli.dead import PRIVATE
from worker.cli.dead import dead as command
from worker.settings import Settings

LATER = timedelta(hours=1)
WEEK = timedelta(days=7)


@pytest.fixture
def stocked(database: Database) -> Database:
    """Give a database in which john owns 5 email and 5 SMS credits, and peter uses them."""
    return stock(database, email=5, sms=5)


def context_of(database: Database, *script: Any, **options: Any) -> Context:
    return make_context(database, email=FakeCarrier(*script), sms=FakeCarrier(*script), **options)


def letters(database: Database) -> list[Any]:
    with database.snapshot() as connection:
        return list(connection.execute(select(dead_letters).order_by(dead_letters.c.id)))


def only_letter(database: Database) -> Any:
    [letter] = letters(database)
    return letter


def replay(context: Context, letter_id: int | None = None) -> str:
    """Replay a letter as the command does; the only one if none is named. Returns the id it has then."""
    letter_id = only_letter(context.database).id if letter_id is None else letter_id
    letter = context.database.read(lambda connection: find_letter(connection, letter_id))
    assert letter is not None
    key, job = replay_of(letter)
    context.enqueue(letter.fields["task"], job)
    context.database.write(lambda connection: mark_replayed(connection, letter, key, context.now()))
    return key


def is_in_order(database: Database) -> bool:
    with database.snapshot() as connection:
        return audit_everything(connection, NOON) == []


# -- refused ----------------------------------------------------------------------------------------------------------


def test_a_job_refused_for_want_of_credits_is_kept_as_it_was_on_the_wire(stocked: Database) -> None:
    job = email_job(to=[f"a{n}@example.test" for n in range(9)], bcc="eve@example.test")

    answer(context_of(stocked), "email.send", job, "task-7")

    letter = only_letter(stocked)
    assert (letter.task, letter.task_id, letter.key, letter.person) == ("email.send", "task-7", "job-1", "john")
    assert (letter.status, letter.reason) == ("refused", "insufficient_credits")
    assert "buy credits" in letter.detail
    assert letter.job == job
    assert (letter.at, letter.replayed_as) == (NOON, None)


@pytest.mark.parametrize(
    ("task", "job", "reason", "key"),
    [
        ("email.send", email_job(sender="nobody"), "unknown_user", "job-1"),
        ("email.send", email_job(None, sender="nobody"), "unknown_user", "task-1"),
        ("sms.send", sms_job(colour="red"), "invalid_job", "job-1"),
        ("email.send_many", {"job_id": "b", "sender": "john", "subject": "s", "text": "t",
                             "recipients": [{"to": f"a{n}@example.test"} for n in range(9)]},
         "insufficient_credits", "b"),
        ("email.send_many", {"job_id": "b", "sender": "john", "subject": "{{x}}", "text": "t",
                             "recipients": [{"to": "a@example.test"}]}, "invalid_job", "b"),
        ("credits.purchase", purchase_order(buyer="nobody", email=1), "unknown_user", "order-1"),
        ("credits.set_owner", {"change_id": "c", "actor": "peter", "user": "mary", "owner": "john"},
         "not_permitted", "c"),
        ("users.save", {"user_id": "u", "organization": "acme", "name": "U", "email": "u@acme.test", "role": "none"},
         "not_found", "u"),
        ("roles.save", {"organization": "acme", "role": "r", "rights": ["fly"]}, "invalid_job", "task-1"),
    ],
)  # fmt: skip
def test_every_refusal_is_kept(stocked: Database, task: str, job: Json, reason: str, key: str) -> None:
    said = answer(context_of(stocked), task, job)

    letter = only_letter(stocked)
    assert said["status"] == "refused"
    assert (letter.task, letter.reason, letter.key, letter.job) == (task, reason, key, job)
    assert letter.detail == said["detail"]


@pytest.mark.parametrize(
    ("task", "given"),
    [
        ("views.overview", {"viewer": "nobody"}),
        ("email.send", None),
        ("email.send", ["a list"]),
        ("email.send", {"number": float("inf")}),
    ],
)
def test_a_view_and_what_is_no_json_object_is_refused_and_not_kept(stocked: Database, task: str, given: object) -> None:
    assert answer(context_of(stocked), task, given)["status"] == "refused"
    assert letters(stocked) == []


def test_reading_a_refused_job_back_makes_no_letter(stocked: Database) -> None:
    context = context_of(stocked, NOT_NOW)
    answer(context, "email.send", email_job(sender="nobody"))
    answer(context, "views.message", {"viewer": "john", "job_id": "job-1"})

    assert len(letters(stocked)) == 1


def test_what_any_database_keeps_comes_back_as_it_was(stocked: Database) -> None:
    job = sms_job(text="NUL \x00, half \ud800, \u2028", colour={"deep": [1, 2.5, None, True]})

    answer(context_of(stocked), "sms.send", job)

    assert only_letter(stocked).job == job


def test_a_job_that_comes_again_is_the_same_letter_and_a_different_one_is_another(stocked: Database) -> None:
    context = context_of(stocked)
    answer(context, "email.send", email_job(sender="nobody"), "task-1")
    answer(context, "email.send", email_job(sender="nobody"), "task-2")
    assert [letter.task_id for letter in letters(stocked)] == ["task-2"]

    answer(context, "email.send", email_job(sender="nobody", subject="Other"), "task-3")

    assert [letter.reason for letter in letters(stocked)] == ["unknown_user", "conflicting_job"]


def test_a_job_that_dies_again_after_its_replay_is_to_be_replayed_once_more(stocked: Database) -> None:
    context = context_of(stocked)
    clock: Any = context.now
    order = purchase_order(buyer="anna", email=3)
    answer(context, "credits.purchase", order)
    assert replay(context) == "order-1"
    assert only_letter(stocked).replayed_as == "order-1"

    clock.forward(LATER)
    run_enqueued(context)

    assert (only_letter(stocked).replayed_as, only_letter(stocked).at) == (None, NOON + LATER)


def test_a_job_that_dies_again_while_its_replay_is_noted_is_not_called_replayed(stocked: Database) -> None:
    context = context_of(stocked)
    clock: Any = context.now
    answer(context, "credits.purchase", purchase_order(buyer="anna", email=3))
    letter = stocked.read(lambda connection: find_letter(connection, only_letter(stocked).id))
    assert letter is not None
    clock.forward(LATER)
    answer(context, "credits.purchase", purchase_order(buyer="anna", email=3))

    stocked.write(lambda connection: mark_replayed(connection, letter, "order-1", clock.now))

    assert only_letter(stocked).replayed_at is None


# -- failed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "job"),
    [
        ("email.send", email_job(to=["ada@example.test", "bob@example.test"], cc="carl@example.test",
                                 bcc="eve@example.test", html="<p>Hello</p>", reply_to="john@acme.test",
                                 headers={"X-Campaign": "one"})),
        ("email.send", email_job(None)),
        ("sms.send", sms_job(**{"from": "Acme"})),
    ],
)  # fmt: skip
def test_a_failed_job_is_kept_as_it_was_asked_for(stocked: Database, task: str, job: Json) -> None:
    context = context_of(stocked, NEVER)

    answer(context, task, job, "task-1")

    letter = only_letter(stocked)
    key = job.get("job_id", "task-1")
    assert (letter.status, letter.task, letter.key, letter.person) == ("failed", task, key, "john")
    assert (letter.reason, letter.detail) == ("carrier_refused", NEVER.detail)
    assert parse(task, letter.job).digest(task) == parse(task, job, job_id="task-1").digest(task)
    with stocked.snapshot() as connection:
        assert connection.execute(select(charges.c.content)).scalar_one() is None


def test_a_job_that_failed_after_several_attempts_is_kept_with_all_its_recipients(stocked: Database) -> None:
    context = context_of(stocked, NOT_NOW, NOT_NOW, policy=RetryPolicy(attempts_max=2))
    job = email_job(to=["ada@example.test", "bob@example.test"])
    answer(context, "email.send", job)
    assert letters(stocked) == []

    later(context)

    assert (only_letter(stocked).reason, only_letter(stocked).job["to"]) == ("carrier_unavailable", job["to"])


def test_each_failed_message_of_a_bulk_job_is_kept_as_a_message_of_its_own(stocked: Database) -> None:
    context = context_of(stocked, NEVER)
    bulk = {"job_id": "b", "sender": "peter", "subject": "Dear {{name}}", "text": "Hello", "bcc": "eve@example.test"}
    people = [{"to": f"{name}@example.test", "values": {"name": name}} for name in ("ada", "bob")]
    answer(context, "email.send_many", {**bulk, "recipients": people})
    run_enqueued(context)

    letter = only_letter(stocked)
    key = replay(context)
    run_enqueued(context)

    assert (letter.task, letter.key, letter.person, letter.job["subject"]) == ("email.send", "b/0", "peter", "Dear ada")
    assert letter.job["bcc"] == ["eve@example.test"]
    assert key.startswith("b.0.")
    assert charge_state(stocked, key) is State.SENT
    assert balance(stocked, "john") == 5 - 2 - 2
    assert is_in_order(stocked)


def charge_state(database: Database, job_id: str) -> State:
    with database.snapshot() as connection:
        return find_charges(connection, [job_id])[job_id].state


def test_a_poison_job_is_kept_when_it_is_set_aside(stocked: Database) -> None:
    """Its worker dies before anything is handed over, three times."""
    context = context_of(stocked, *[ZeroDivisionError("the worker is dead")] * 3)
    with pytest.raises(ZeroDivisionError):
        answer(context, "email.send", email_job())
    for _ in range(2):
        later_or_die(context)
        later_or_die(context)
    later_or_die(context)

    letter = only_letter(stocked)
    assert (letter.status, letter.reason, letter.key) == ("failed", "carrier_unavailable", "job-1")
    assert "it may be what kills them" in letter.detail
    assert balance(stocked, "john") == 5
    assert is_in_order(stocked)


def later_or_die(context: Context) -> None:
    try:
        later(context)
    except ZeroDivisionError:
        return


def test_a_job_over_which_a_worker_died_is_resumed_alone(stocked: Database) -> None:
    """Nobody else is taken along when it kills the next one."""
    context = context_of(stocked, *[NOT_NOW] * 5)
    for number in range(5):
        answer(context, "email.send", email_job(f"job-{number}"), f"task-{number}")
    with stocked.engine.begin() as connection:
        connection.execute(charges.update().where(charges.c.job_id.in_(["job-1", "job-3"])).values(crashes=1))
    clock: Any = context.now
    clock.forward(LATER)

    upkeep.sweep(context)

    broker = cast("FakeBroker", context.enqueue)
    groups = sorted(sorted(given["attempts"]) for _, given in broker.take())
    assert groups == [["job-0", "job-2", "job-4"], ["job-1"], ["job-3"]]


def test_an_end_that_does_not_count_leaves_no_letter(stocked: Database) -> None:
    clock = Clock()

    def sleep_through_the_sweep(_: object) -> Any:
        clock.forward(LATER)
        upkeep.sweep(make_context(stocked, clock=clock))
        return NEVER

    answer(context_of(stocked, sleep_through_the_sweep, clock=clock), "email.send", email_job())

    assert charge_state(stocked, "job-1") is State.UNKNOWN
    assert letters(stocked) == []


# -- faults -----------------------------------------------------------------------------------------------------------


class Broken:
    """A database that is gone: whatever it is asked, it raises."""

    def __getattr__(self, name: str) -> Any:
        raise ConnectionResetError("the database is gone")


def answer_in_a_worker(context: Context, task: str, given: object, retries: int, *, broker: str | None = None) -> Any:
    """Answer one job that has had so many retries, through its door. Retries are raised, and published to `broker`."""
    app: Any = Celery("fake", broker=broker, set_as_current=False)
    app.context = context
    app.finalize()
    its_task = app.tasks[task]
    request = {"id": "task-1", "retries": retries, "called_directly": False, "args": [given], "kwargs": {}}
    its_task.push_request(**request, is_eager=broker is None)
    try:
        return its_task(given)
    finally:
        its_task.pop_request()
        app.close()


def with_a_bug(database: Database) -> Context:
    return context_of(database, ZeroDivisionError("a bug with ada@example.test in it"))


def test_a_job_is_kept_when_its_fault_retries_are_used_up(stocked: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        answer_in_a_worker(with_a_bug(stocked), "email.send", email_job(), FAULT_RETRIES)

    letter = only_letter(stocked)
    assert (letter.status, letter.reason, letter.key, letter.job) == ("fault", None, "job-1", email_job())
    assert "ZeroDivisionError, 21 times" in letter.detail
    assert "ada@" not in letter.detail


def test_a_job_is_not_kept_while_it_is_tried_again(stocked: Database) -> None:
    with pytest.raises(Retry):
        answer_in_a_worker(with_a_bug(stocked), "email.send", email_job(), FAULT_RETRIES - 1)

    assert letters(stocked) == []


def test_a_job_that_cannot_be_kept_is_not_given_up(stocked: Database) -> None:
    context = replace(context_of(stocked), database=cast("Database", Broken()))

    with pytest.raises(Retry):
        answer_in_a_worker(context, "email.send", email_job(), FAULT_RETRIES)
    with pytest.raises(Retry):
        answer_in_a_worker(context, "email.send", email_job(), FAULT_RETRIES + 7)


def test_a_job_whose_retry_the_broker_does_not_take_stays_on_its_queue(stocked: Database) -> None:
    with pytest.raises(Reject) as rejected:
        answer_in_a_worker(with_a_bug(stocked), "email.send", email_job(), 1, broker="redis://127.0.0.1:1/0")

    assert rejected.value.requeue


def test_a_view_that_fails_is_given_up_as_before(stocked: Database) -> None:
    class Mute:
        def read(self, _: object) -> None:
            raise ConnectionResetError

        def write(self, work: Callable[[Any], object]) -> object:
            return stocked.write(work)

    context = replace(context_of(stocked), database=cast("Database", Mute()))

    with pytest.raises(ConnectionResetError):
        answer_in_a_worker(context, "views.overview", {"viewer": "john"}, FAULT_RETRIES)
    assert letters(stocked) == []


def test_a_job_that_a_fault_ended_is_replayed_under_its_own_id(stocked: Database) -> None:
    """It may have been charged, and is not charged again."""
    context = with_a_bug(stocked)
    with pytest.raises(ZeroDivisionError):
        answer_in_a_worker(context, "email.send", email_job(), FAULT_RETRIES)

    assert replay(context) == "job-1"
    run_enqueued(context)

    assert balance(stocked, "john") == 4
    assert is_in_order(stocked)


# -- how long ---------------------------------------------------------------------------------------------------------


def test_letters_are_erased_when_their_time_is_over(stocked: Database) -> None:
    context = context_of(stocked)
    clock: Any = context.now
    answer(context, "email.send", email_job("old", sender="nobody"))
    clock.forward(timedelta(days=1))
    answer(context, "email.send", email_job("young", sender="nobody"))

    clock.now = NOON + WEEK - timedelta(seconds=1)
    before = upkeep.sweep(context)["erased"]
    clock.now = NOON + WEEK
    at = upkeep.sweep(context)["erased"]

    assert (before, at) == (0, 1)
    assert only_letter(stocked).key == "young"


def test_where_nothing_is_kept_no_letter_is_written_and_those_that_are_there_are_erased(stocked: Database) -> None:
    context = context_of(stocked, NEVER)
    answer(context, "email.send", email_job("before", sender="nobody"))
    context = replace(context, keep_dead=timedelta(0))

    upkeep.sweep(context)
    answer(context, "email.send", email_job("failed"))
    answer(context, "email.send", email_job("refused", sender="nobody"))
    answer(context, "email.send", {"job_id": "invalid"})
    with pytest.raises(ZeroDivisionError):
        answer_in_a_worker(replace(with_a_bug(stocked), keep_dead=timedelta(0)), "email.send", email_job(),
                           FAULT_RETRIES)  # fmt: skip

    assert letters(stocked) == []
    with stocked.snapshot() as connection:
        assert connection.execute(select(func.count()).select_from(refusals)).scalar_one() == 1


# -- replay -----------------------------------------------------------------------------------------------------------


def test_a_refused_job_is_sent_when_it_is_replayed_after_its_cause_is_mended(stocked: Database) -> None:
    context = context_of(stocked)
    answer(context, "email.send", email_job(to=[f"a{n}@example.test" for n in range(9)]))
    buy(stocked, "john", email=10)

    first, second = replay(context), replay(context)
    run_enqueued(context)

    assert (first, second) == ("job-1:r1", "job-1:r1")
    assert charge_state(stocked, "job-1:r1") is State.SENT
    assert charge_state(stocked, "job-1") is State.REFUSED
    assert balance(stocked, "john") == 15 - 9
    assert (only_letter(stocked).replayed_as, only_letter(stocked).replayed_at) == ("job-1:r1", NOON)
    assert is_in_order(stocked)


def test_a_replay_that_is_refused_is_a_letter_of_its_own_with_an_id_of_its_own(stocked: Database) -> None:
    context = context_of(stocked)
    answer(context, "email.send", email_job(sender="anna"))
    replay(context)
    run_enqueued(context)

    [_, second] = letters(stocked)

    assert second.key == "job-1:r1"
    assert replay(context, second.id) == "job-1:r2"


def test_a_refused_purchase_is_replayed_under_its_own_id_and_credited_once(stocked: Database) -> None:
    context = context_of(stocked)
    order = purchase_order(buyer="mary", email=7)
    del order["billing"]
    answer(context, "credits.purchase", order)
    user = {"user_id": "mary", "organization": "acme", "name": "Mary", "email": "mary@acme.test", "role": "member"}
    answer(context, "users.save", {**user, "billing": BILLING})

    replay(context)
    replay(context)
    done = [one["status"] for one in run_enqueued(context)]

    assert done == ["done", "done"]
    assert balance(stocked, "mary") == 7
    assert is_in_order(stocked)


# -- the command ------------------------------------------------------------------------------------------------------

Run = Callable[..., Result]


@pytest.fixture
def run(stocked: Database, database_url: str, valkey_url: str) -> Iterator[Run]:
    """Give `postage dead`, run in this process with a real broker."""
    app = create_app(Settings(database_url=database_url, broker_url=valkey_url))
    obj = OpenSession(app)

    def run(*arguments: str) -> Result:
        return CliRunner(env={"COLUMNS": "250"}).invoke(command, arguments, obj=obj)

    yield run
    app.close_context()
    app.close()


@pytest.fixture
def redis(valkey_url: str) -> Iterator[Redis]:
    with Redis.from_url(valkey_url) as client:
        yield client


def said(result: Result) -> Json:
    answer: Json = json.loads(result.stdout)
    return answer


def jobs_on(redis: Redis, queue: str) -> list[Json]:
    """The objects of the jobs on a queue, first in first."""
    items = reversed(cast("list[bytes]", redis.lrange(queue, 0, -1)))
    return [json.loads(base64.b64decode(json.loads(item)["body"]))[0][0] for item in items]


def rows(result: Result) -> list[tuple[Any, ...]]:
    return [(row["kind"], row["task"], row["key"], row["reason"]) for row in said(result)["rows"]]


@pytest.fixture
def three_dead(stocked: Database) -> Database:
    """Give a database with a refused email, a failed text an hour later, and a refused purchase an hour after that."""
    context = context_of(stocked, NEVER)
    clock: Any = context.now
    answer(context, "email.send", email_job("mail", sender="nobody"))
    clock.forward(LATER)
    answer(context, "sms.send", sms_job("text"))
    clock.forward(LATER)
    answer(context, "credits.purchase", purchase_order(buyer="nobody", email=1))
    return stocked


def test_the_dead_are_listed_newest_first_without_what_they_say(run: Run, three_dead: Database) -> None:
    listed, shown = run("list", "--json"), run("list")

    assert rows(listed) == [
        ("refused", "credits.purchase", "order-1", "unknown_user"),
        ("failed", "sms.send", "text", "carrier_refused"),
        ("refused", "email.send", "mail", "unknown_user"),
    ]
    assert (listed.exit_code, shown.exit_code) == (0, 0)
    assert "order-1" in shown.stdout
    for private in ("ada@example.test", "Hello", "+31612345678", "Acme"):
        assert private not in listed.stdout + shown.stdout


def test_the_list_can_be_narrowed(run: Run, three_dead: Database) -> None:
    assert [row[2] for row in rows(run("list", "--kind", "failed", "--json"))] == ["text"]
    assert [row[2] for row in rows(run("list", "--since", "2026-01-05T13:00:00Z", "--json"))] == ["order-1", "text"]
    assert rows(run("list", "--page", "2", "--json")) == []
    assert run("list", "--since", "yesterday").exit_code == 2


def test_a_letter_is_shown_whole_with_a_warning(run: Run, three_dead: Database) -> None:
    [letter_id] = [row["id"] for row in said(run("list", "--kind", "failed", "--json"))["rows"]]

    whole, shown = run("show", letter_id, "--json"), run("show", letter_id)

    assert said(whole)["job"] == sms_job("text")
    assert PRIVATE in whole.stderr
    assert PRIVATE in shown.stderr
    assert '"text": "Hello Ada"' in shown.stdout


@pytest.mark.parametrize("letter_id", ["7", "-1", "99999999999999999999999", "x", "q0123456789abcdef", "²"])
def test_what_is_not_there_is_said_in_a_sentence(run: Run, letter_id: str) -> None:
    arguments = ("--", letter_id)
    shown, replayed = run("show", *arguments), run("replay", *arguments)

    assert (shown.exit_code, replayed.exit_code) == (1, 1)
    assert "There is no" in shown.stderr
    assert "There is no" in replayed.stdout


def test_a_letter_is_replayed_onto_its_queue(run: Run, three_dead: Database, redis: Redis) -> None:
    [letter_id] = [row["id"] for row in said(run("list", "--kind", "failed", "--json"))["rows"]]

    ended = run("replay", letter_id)
    again = run("replay", letter_id, "--json")

    assert (ended.exit_code, again.exit_code) == (0, 0)
    assert f"{letter_id}: sms.send is enqueued again, as text:r1." in ended.stdout
    assert said(again)["rows"] == [{"id": letter_id, "task": "sms.send", "replayed_as": "text:r1", "detail": None}]
    assert jobs_on(redis, "sms") == [sms_job("text:r1")] * 2
    [row] = said(run("list", "--kind", "failed", "--json"))["rows"]
    assert row["replayed_as"] == "text:r1"


def test_all_that_were_not_replayed_are(run: Run, three_dead: Database, redis: Redis) -> None:
    only_refused = run("replay", "--all", "--kind", "refused", "--json")
    rest = run("replay", "--all", "--json")
    nothing = run("replay", "--all")

    assert [row["replayed_as"] for row in said(only_refused)["rows"]] == ["mail:r1", "order-1"]
    assert [row["replayed_as"] for row in said(rest)["rows"]] == ["text:r1"]
    assert "Nothing to replay." in nothing.stdout
    assert [redis.llen(queue) for queue in ("email", "sms", "billing")] == [1, 1, 1]


@pytest.mark.parametrize("arguments", [(), ("7", "--all"), ("7", "--kind", "failed")])
def test_ids_are_named_or_all_are_meant(run: Run, arguments: tuple[str, ...]) -> None:
    assert run("replay", *arguments).exit_code == 2


def test_without_a_broker_the_letters_are_listed_and_a_replay_is_refused_in_a_sentence(
    three_dead: Database, database_url: str
) -> None:
    app = create_app(Settings(database_url=database_url, broker_url="redis://127.0.0.1:1/0"))
    obj = OpenSession(app)

    listed = CliRunner().invoke(command, ["list", "--json"], obj=obj)
    replayed = CliRunner().invoke(command, ["replay", str(letters(three_dead)[0].id)], obj=obj)
    app.close_context()
    app.close()

    assert (listed.exit_code, len(said(listed)["rows"])) == (0, 3)
    assert "broker does not answer" in said(listed)["detail"]
    assert replayed.exit_code == 1
    assert "The broker does not answer" in replayed.stderr
    assert [letter.replayed_as for letter in letters(three_dead)] == [None] * 3


# -- the quarantine ---------------------------------------------------------------------------------------------------


def quarantine(redis: Redis, task: str = "email.fly", queue: str = "email", key: str | None = None) -> bytes:
    """Put a task message into the quarantine, as a worker that does not know the task does."""
    with Celery("producer", broker=redis_url(redis), set_as_current=False) as producer:
        producer.conf.task_create_missing_queues = True
        producer.send_task(task, args=[email_job(text="secret words")], queue=queue)
    item = cast("bytes", redis.rpop(queue))
    if key is not None:
        message = json.loads(item)
        message["properties"]["delivery_info"]["routing_key"] = key
        item = json.dumps(message).encode()
    redis.lpush(fair_queue.QUARANTINE, item)
    return item


def redis_url(redis: Redis) -> str:
    settings = redis.connection_pool.connection_kwargs
    return f"redis://{settings['host']}:{settings['port']}/{settings.get('db', 0)}"


def quarantined(run: Run) -> list[Json]:
    rows: list[Json] = said(run("list", "--kind", "quarantined", "--json"))["rows"]
    return rows


def test_quarantined_items_are_listed_without_what_they_say(run: Run, redis: Redis) -> None:
    item = quarantine(redis)
    redis.lpush(fair_queue.QUARANTINE, b"\xff\x00 no message of ada@example.test")

    listed, shown = run("list", "--json"), run("list")

    garbage, message = said(listed)["rows"]
    assert (message["task"], message["queue"], message["bytes"]) == ("email.fly", "email", len(item))
    assert (garbage["task"], garbage["queue"]) == (None, None)
    assert "cannot be read" in garbage["detail"]
    assert message["id"] in shown.stdout
    for private in ("ada@example.test", "secret", base64.b64encode(b"secret")[:6].decode()):
        assert private not in listed.stdout + shown.stdout


def test_a_quarantined_item_is_shown_raw_and_harmless_for_a_terminal(run: Run, redis: Redis) -> None:
    redis.lpush(fair_queue.QUARANTINE, b"\xff \x1b[31m red \xd8")
    [row] = quarantined(run)

    shown = run("show", row["id"])

    assert shown.exit_code == 0
    assert PRIVATE in shown.stderr
    assert "\\xff \\x1b[31m red \\xd8" in shown.stdout


def test_a_quarantined_item_goes_back_as_it_was_to_the_queue_it_was_for(run: Run, redis: Redis) -> None:
    other, item = quarantine(redis, queue="sms"), quarantine(redis)
    [row, _] = quarantined(run)

    ended, again = run("replay", row["id"]), run("replay", row["id"])

    assert (ended.exit_code, again.exit_code) == (0, 1)
    assert "as email." in ended.stdout
    assert "There is no item" in again.stdout
    assert redis.lrange("email", 0, -1) == [item]
    assert redis.lrange(fair_queue.QUARANTINE, 0, -1) == [other]


@pytest.mark.parametrize("raw", [b"garbage", b"[]", b'{"properties": 7}', b"[" * 100_000])
def test_what_does_not_say_where_it_belongs_stays(run: Run, redis: Redis, raw: bytes) -> None:
    redis.lpush(fair_queue.QUARANTINE, raw)
    [row] = quarantined(run)

    ended = run("replay", row["id"])

    assert ended.exit_code == 1
    assert "does not say for which of our queues" in ended.stdout
    assert redis.lrange(fair_queue.QUARANTINE, 0, -1) == [raw]


@pytest.mark.parametrize("key", ["unacked", "nonsense", fair_queue.QUARANTINE, "celery"])
def test_an_item_for_no_queue_of_ours_stays(run: Run, redis: Redis, key: str) -> None:
    quarantine(redis, key=key)
    [row] = quarantined(run)

    assert run("replay", row["id"]).exit_code == 1
    assert redis.llen(fair_queue.QUARANTINE) == 1


def test_all_of_the_quarantine_goes_back_but_what_cannot(run: Run, redis: Redis) -> None:
    for queue in ("email", "sms", "billing"):
        quarantine(redis, queue=queue)
    redis.lpush(fair_queue.QUARANTINE, b"garbage")

    ended = run("replay", "--all", "--json")

    assert ended.exit_code == 1
    assert [row["replayed_as"] for row in said(ended)["rows"]] == [None, "billing", "sms", "email"]
    assert redis.lrange(fair_queue.QUARANTINE, 0, -1) == [b"garbage"]
    assert [redis.llen(queue) for queue in ("email", "sms", "billing")] == [1, 1, 1]


def test_a_long_quarantine_has_pages(run: Run, redis: Redis) -> None:
    redis.lpush(fair_queue.QUARANTINE, *(f"item {number}" for number in range(150)))

    first = said(run("list", "--kind", "quarantined", "--json"))
    second = said(run("list", "--kind", "quarantined", "--page", "2", "--json"))

    assert (len(first["rows"]), first["more"]) == (100, True)
    assert (len(second["rows"]), second["more"]) == (50, False)
    assert run("show", second["rows"][-1]["id"]).exit_code == 0
