"""Dead letters: jobs that were refused, failed, or were given up after faults are kept whole for a while."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import pytest
from celery.exceptions import Reject, Retry
from sqlalchemy import event, func, select

from models.database.engine import Database
from models.database.schema import charges, refusals
from models.messages.wire import parse
from models.sends.retry_policy import RetryPolicy
from tasks import upkeep
from tasks.base import FAULT_RETRIES, FaultError
from tasks.context import Json
from tests.factories import email_job, purchase_order, sms_job
from tests.fakes import NEVER, NOON, NOT_NOW, answer, answer_together, later
from tests.integration.queued import NO_BROKER
from tests.integration.sending import answer_after_retries, context_with_a_bug, pass_time, scripted_context
from tests.integration.stored import letters_of, only_letter_of

# -- refused ----------------------------------------------------------------------------------------------------------


def test_a_refused_job_is_kept_as_it_was_on_the_wire(stocked: Database) -> None:
    job = email_job(to=[f"a{n}@example.test" for n in range(10)], bcc="eve@example.test")

    answer(scripted_context(stocked), "email.send", job, "task-7")

    letter = only_letter_of(stocked)
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
                             "recipients": [{"to": f"a{n}@example.test"} for n in range(11)]},
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
    answered = answer(scripted_context(stocked), task, job)

    letter = only_letter_of(stocked)
    assert answered["status"] == "refused"
    assert (letter.task, letter.reason, letter.key, letter.job) == (task, reason, key, job)
    assert letter.detail == answered["detail"]


@pytest.mark.parametrize(
    ("task", "given"),
    [
        ("views.overview", {"viewer": "nobody"}),
        ("email.send", None),
        ("email.send", ["a list"]),
        ("email.send", {"number": float("inf")}),
    ],
)
def test_refused_views_and_invalid_objects_are_not_kept(stocked: Database, task: str, given: object) -> None:
    assert answer(scripted_context(stocked), task, given)["status"] == "refused"
    assert letters_of(stocked) == []


def test_reading_a_refused_job_back_makes_no_second_letter(stocked: Database) -> None:
    context = scripted_context(stocked, NOT_NOW)
    answer(context, "email.send", email_job(sender="nobody"))
    answer(context, "views.message", {"viewer": "john", "job_id": "job-1"})

    assert len(letters_of(stocked)) == 1


def test_a_letter_keeps_characters_that_databases_do_not_take(stocked: Database) -> None:
    job = sms_job(text="NUL \x00, half \ud800, \u2028", colour={"deep": [1, 2.5, None, True]})

    answer(scripted_context(stocked), "sms.send", job)

    assert only_letter_of(stocked).job == job


def test_a_repeated_job_has_one_letter_and_another_job_its_own(stocked: Database) -> None:
    context = scripted_context(stocked)
    answer(context, "email.send", email_job(sender="nobody"), "task-1")
    answer(context, "email.send", email_job(sender="nobody"), "task-2")
    assert [letter.task_id for letter in letters_of(stocked)] == ["task-2"]

    answer(context, "email.send", email_job(sender="nobody", subject="Other"), "task-3")

    assert [letter.reason for letter in letters_of(stocked)] == ["unknown_user", "conflicting_job"]


# -- failed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "job"),
    [
        ("email.send", email_job(to=["ada@example.test", "bob@example.test"], cc="carl@example.test",
                                 bcc="eve@example.test", html="<p>Hello</p>", reply_to="john@acme.test",
                                 headers={"List-Id": "one"})),
        ("email.send", email_job(None)),
        ("sms.send", sms_job(**{"from": "Acme"})),
    ],
)  # fmt: skip
def test_a_failed_job_is_kept_as_it_was_on_the_wire(stocked: Database, task: str, job: Json) -> None:
    context = scripted_context(stocked, NEVER)

    answer(context, task, job, "task-1")

    letter = only_letter_of(stocked)
    key = job.get("job_id", "task-1")
    assert (letter.status, letter.task, letter.key, letter.person) == ("failed", task, key, "john")
    assert (letter.reason, letter.detail) == ("carrier_refused", NEVER.detail)
    assert parse(task, letter.job).digest() == parse(task, job, job_id="task-1").digest()
    with stocked.snapshot() as connection:
        assert connection.execute(select(charges.c.content)).scalar_one() is None


def test_a_job_that_fails_at_a_later_attempt_is_kept_with_all_recipients(stocked: Database) -> None:
    context = scripted_context(stocked, NOT_NOW, NOT_NOW, policy=RetryPolicy(attempts_max=2))
    job = email_job(to=["ada@example.test", "bob@example.test"])
    answer(context, "email.send", job)
    assert letters_of(stocked) == []

    later(context)

    assert (only_letter_of(stocked).reason, only_letter_of(stocked).job["to"]) == ("carrier_unavailable", job["to"])


# -- many at once -----------------------------------------------------------------------------------------------------


@contextmanager
def counted_statements(database: Database) -> Iterator[Counter[str]]:
    """Count the statements of the block by what they begin with, as far as the name of a table they write to."""
    counted: Counter[str] = Counter()

    def count(*args: Any) -> None:
        counted[" ".join(args[2].split()[:3])] += 1

    event.listen(database.engine, "before_cursor_execute", count)
    yield counted
    event.remove(database.engine, "before_cursor_execute", count)


def test_the_refusals_of_a_batch_and_their_letters_are_two_statements(stocked: Database) -> None:
    """Invalid jobs and strangers; a letter that is there already gets its new end beside the others."""
    context = scripted_context(stocked)
    jobs = [email_job(f"job-{n}", colour="red") for n in range(40)]
    answer_together(context, "email.send", jobs[:1])
    jobs += [email_job(f"stranger-{n}", sender="nobody") for n in range(40)] + jobs[:1] + [{"\x00": "\ud800"}]

    with counted_statements(stocked) as counted:
        answers = answer_together(context, "email.send", jobs)

    assert Counter(answered["reason"] for answered in answers) == {"invalid_job": 42, "unknown_user": 40}
    assert (counted["INSERT INTO refusals"], counted["INSERT INTO dead_letters"]) == (1, 2)  # with those of charges
    letters = letters_of(stocked)
    assert len(letters) == 81
    assert [letter.job for letter in letters if letter.task_id == "task-80"] == jobs[:1]
    with stocked.snapshot() as connection:
        assert connection.execute(select(func.count()).select_from(refusals)).scalar_one() == 43


def test_the_letters_of_a_batch_that_fails_are_one_statement(stocked: Database) -> None:
    context = scripted_context(stocked, *[NEVER for _ in range(10)])

    with counted_statements(stocked) as counted:
        answer_together(context, "email.send", [email_job(f"job-{n}") for n in range(10)])

    assert counted["INSERT INTO dead_letters"] == 1
    assert sorted(letter.key for letter in letters_of(stocked)) == [f"job-{n}" for n in range(10)]


def test_large_letters_are_stored_by_several_statements(stocked: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database does not like parameters without limit."""
    monkeypatch.setattr("models.sends.dead_letters.GROUP_MAX", 1_000)
    context = scripted_context(stocked)

    with counted_statements(stocked) as counted:
        answer_together(context, "email.send", [email_job(f"job-{n}", colour="red" * 130) for n in range(5)])

    assert counted["INSERT INTO dead_letters"] == 5
    assert len(letters_of(stocked)) == 5


# -- given up after faults --------------------------------------------------------------------------------------------


class GoneDatabase:
    """A database that cannot be reached: every use of it raises."""

    def __getattr__(self, name: str) -> Any:
        raise ConnectionResetError("the database is gone")


def test_a_job_is_kept_when_its_fault_retries_are_used_up(stocked: Database) -> None:
    with pytest.raises(FaultError, match="ZeroDivisionError"):
        answer_after_retries(context_with_a_bug(stocked), "email.send", email_job(), FAULT_RETRIES)

    letter = only_letter_of(stocked)
    assert (letter.status, letter.reason, letter.key, letter.job) == ("fault", None, "job-1", email_job())
    assert "ZeroDivisionError, 21 times" in letter.detail
    assert "ada@" not in letter.detail


def test_a_job_is_not_kept_while_its_faults_are_retried(stocked: Database) -> None:
    with pytest.raises(Retry):
        answer_after_retries(context_with_a_bug(stocked), "email.send", email_job(), FAULT_RETRIES - 1)

    assert letters_of(stocked) == []


def test_a_job_that_cannot_be_kept_is_not_given_up() -> None:
    context = scripted_context(cast("Database", GoneDatabase()))

    with pytest.raises(Retry):
        answer_after_retries(context, "email.send", email_job(), FAULT_RETRIES)
    with pytest.raises(Retry):
        answer_after_retries(context, "email.send", email_job(), FAULT_RETRIES + 7)


def test_a_job_stays_on_its_queue_if_the_broker_takes_no_retry(stocked: Database) -> None:
    with pytest.raises(Reject) as rejected:
        answer_after_retries(context_with_a_bug(stocked), "email.send", email_job(), 1, broker=NO_BROKER)

    assert rejected.value.requeue


def test_a_view_that_fails_is_given_up_and_not_kept(stocked: Database) -> None:
    class UnreadableDatabase:
        def read(self, _: object) -> None:
            raise ConnectionResetError

        def write(self, work: Callable[[Any], object]) -> object:
            return stocked.write(work)

    context = replace(scripted_context(stocked), database=cast("Database", UnreadableDatabase()))

    with pytest.raises(FaultError, match="ConnectionResetError"):
        answer_after_retries(context, "views.overview", {"viewer": "john"}, FAULT_RETRIES)
    assert letters_of(stocked) == []


# -- for how long -----------------------------------------------------------------------------------------------------


def test_letters_are_erased_after_a_week(stocked: Database) -> None:
    context = scripted_context(stocked)
    answer(context, "email.send", email_job("old", sender="nobody"))
    pass_time(context, timedelta(days=1))
    answer(context, "email.send", email_job("young", sender="nobody"))

    pass_time(context, timedelta(days=6) - timedelta(seconds=1))
    before = upkeep.sweep(context)["erased"]
    pass_time(context, timedelta(seconds=1))
    after = upkeep.sweep(context)["erased"]

    assert (before, after) == (0, 1)
    assert only_letter_of(stocked).key == "young"


def test_no_letter_is_written_or_left_if_none_is_to_be_kept(stocked: Database) -> None:
    before = scripted_context(stocked, NEVER)
    answer(before, "email.send", email_job("before", sender="nobody"))
    context = replace(before, keep_dead=timedelta(0))

    upkeep.sweep(context)
    answer(context, "email.send", email_job("failed"))
    answer(context, "email.send", email_job("refused", sender="nobody"))
    answer(context, "email.send", {"job_id": "invalid"})
    with pytest.raises(FaultError, match="ZeroDivisionError"):
        answer_after_retries(replace(context_with_a_bug(stocked), keep_dead=timedelta(0)), "email.send", email_job(),
                           FAULT_RETRIES)  # fmt: skip

    assert letters_of(stocked) == []
    with stocked.snapshot() as connection:
        assert connection.execute(select(func.count()).select_from(refusals)).scalar_one() == 1
