"""The client of producers: what it checks before anything is published, and what it needs."""

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.errors import Refused
from models.messages.base import TaskMessage
from models.messages.billing import SavePlan
from models.messages.bulk import SendManySms
from models.messages.sends import SendEmail, SendSms
from models.messages.views import View
from models.messages.wire import MESSAGES, parse
from tasks.client import (
    CHARACTERS_BATCH,
    NO_KEY,
    TASKS,
    BrokerAwayError,
    EnqueueError,
    InvalidJobError,
    JobLike,
    _batches,
    _Checked,
    _on_the_wire,
    check_job,
    enqueue,
    producer_app,
)

EXAMPLES = Path(__file__).parents[2] / "examples" / "messages"
NOWHERE = producer_app("redis://:s3cret@127.0.0.1:1/0")
"""An app whose broker is away: whoever asks it gets a `BrokerAwayError`."""


def email(job_id: str | None = "one", **fields: Any) -> SendEmail:
    return SendEmail(
        **{"job_id": job_id, "sender": "mary", "to": ["a@b.example"], "subject": "Hello", "text": "Hello"} | fields
    )


def refused(*jobs: JobLike) -> InvalidJobError:
    with pytest.raises(InvalidJobError) as caught:
        enqueue(NOWHERE, jobs)
    return caught.value


@pytest.mark.parametrize("task", MESSAGES)
def test_a_message_goes_on_the_wire_as_the_job_that_its_object_is(task: str) -> None:
    """Made as a message or written as JSON, it is the same job: the same digest, under the same id."""
    given = json.loads((EXAMPLES / f"{task}.json").read_text())["job"]
    message = parse(task, given)
    name, published = _on_the_wire(message)

    assert name == (task if type(message) is not View else "View")
    assert json.loads(json.dumps(published)) == published
    assert parse(task, published) == message
    assert parse(task, published).digest(task) == parse(task, given).digest(task)


def test_every_message_but_the_plain_view_has_one_task() -> None:
    assert {TASKS.get(message) for message in MESSAGES.values()} == {
        *(task for task, message in MESSAGES.items() if message is not View),
        None,
    }


def test_a_bad_job_is_named_with_what_is_wrong_before_the_broker_is_asked() -> None:
    error = refused(email(), ("sms.send", {"job_id": "two", "sender": "mary", "to": "0151", "text": "Hello"}))

    assert (error.index, error.published) == (1, 0)
    assert str(error).startswith("jobs[1] (sms.send, two) is not valid: `to`: ")
    assert str(error).endswith(" Nothing was published.")
    assert "0151" not in str(error)


def test_a_send_without_its_id_is_refused() -> None:
    """A worker would take it, but it could not be enqueued again without being sent again."""
    error = refused(email(job_id=None))

    assert error.why == NO_KEY


def test_a_save_needs_no_id() -> None:
    plan = {"plan": "small", "name": "Small", "credits": {"email": 9}, "price": 900, "currency": "EUR"}

    assert check_job("plans.save", plan).given == plan
    assert _on_the_wire(SavePlan(**plan)) == ("plans.save", plan)


def test_a_message_that_was_changed_after_it_was_made_is_checked() -> None:
    """The `model_copy` of pydantic checks nothing."""
    assert "`to.0`: must be one email address" in refused(email().model_copy(update={"to": ["nobody"]})).why


def test_a_bulk_job_that_lacks_a_value_is_refused() -> None:
    bulk = SendManySms(job_id="many", sender="mary", recipients=[{"to": "+4915112345678"}], text="Hello {{name}}")

    assert refused(bulk).why == "`recipients.0.values` lacks 'name', which the message asks for."


@pytest.mark.parametrize("job", [View(viewer="mary"), ("email.sned", {"job_id": "one"}), ("upkeep.sweep", {})], ids=str)
def test_what_is_no_task_of_a_producer_is_refused(job: JobLike) -> None:
    assert refused(job).why.startswith("the tasks are email.send, ")


def test_what_is_no_object_is_refused() -> None:
    assert refused(("email.send", ["one"])).why == "email.send takes one JSON object as its only argument."  # type: ignore[arg-type]


def test_no_jobs_ask_no_broker() -> None:
    assert enqueue(NOWHERE, []) == []


def test_a_message_alone_is_a_list_of_one() -> None:
    with pytest.raises(BrokerAwayError):
        enqueue(NOWHERE, email())  # type: ignore[arg-type]  pydantic's models are iterable


def test_an_error_of_the_callers_own_says_what_was_published() -> None:
    def jobs() -> Iterator[TaskMessage]:
        yield email()
        msg = "the callers own"
        raise LookupError(msg)

    with pytest.raises(LookupError) as caught:
        enqueue(NOWHERE, jobs())

    assert caught.value.__notes__ == ["Nothing was published."]


@pytest.mark.parametrize(
    ("published", "uncertain", "said"),
    [
        (0, 0, "Nothing was published."),
        (500, 0, "The first 500 jobs were published."),
        (0, 500, "Of the first 500 jobs some may have been published."),
        (1000, 500, "The first 1000 jobs were published, and of the next 500 some may have been."),
    ],
)
def test_a_broker_that_is_away_is_a_sentence_that_says_what_was_published(
    published: int, uncertain: int, said: str
) -> None:
    error = BrokerAwayError("redis://broker:6379/0", "Connection refused", uncertain)
    error.published = published

    assert str(error) == (
        f"The broker redis://broker:6379/0 cannot be used: Connection refused. {said} "
        "Enqueue the others, or simply all, again as they are: the same id is never charged or sent twice."
    )


@pytest.mark.parametrize("error", [InvalidJobError(3, "email.send, one", "why"), BrokerAwayError("redis", "why", 5)])
def test_errors_survive_pickling(error: EnqueueError) -> None:
    error.published = 7

    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301


def test_a_batch_ends_at_five_hundred_jobs_or_some_megabytes() -> None:
    small = check_job("email.send", _on_the_wire(email())[1])
    large = _Checked("email.send", {}, CHARACTERS_BATCH // 2)

    assert [len(batch) for batch in _batches([small] * 1200)] == [500, 500, 200]
    assert [len(batch) for batch in _batches([small, large, large, small])] == [3, 1]


def test_what_is_given_counts_as_large_as_it_is() -> None:
    assert check_job("email.send", _on_the_wire(email(text="x" * 10_000))[1]).characters > 10_000


def test_a_number_as_sender_goes_on_the_wire_under_its_own_name() -> None:
    sms = SendSms(**{"job_id": "one", "sender": "mary", "to": "+4915112345678", "text": "Hello", "from": "Acme"})

    assert _on_the_wire(sms)[1]["from"] == "Acme"


def test_a_producer_loads_neither_database_nor_settings_nor_worker() -> None:
    """Nor any task, so that none of ours turns up in its own Celery app."""
    code = "import sys, tasks.client; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert {"celery", "pydantic", "tasks.client"} <= set(loaded)
    assert {"sqlalchemy", "alembic", "psycopg", "pydantic_settings", "worker", "tasks.base"} & set(loaded) == set()


def test_a_refusal_of_the_check_is_the_workers_own() -> None:
    with pytest.raises(Refused) as caught:
        check_job("email.send", {"job_id": "one"})

    assert caught.value.detail.startswith("`sender`: Field required.")
