"""The client for producers: what it checks before anything is published, and which packages it needs."""

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
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
from tests.unit.wire import EXAMPLES

NO_BROKER = producer_app("redis://:s3cret@127.0.0.1:1/0")
"""An app whose broker is away: to publish with it raises a `BrokerAwayError`."""


def email(job_id: str | None = "one", **fields: Any) -> SendEmail:
    return SendEmail(
        **{"job_id": job_id, "sender": "mary", "to": ["a@b.example"], "subject": "Hello", "text": "Hello"} | fields
    )


def refused(*jobs: JobLike) -> InvalidJobError:
    with pytest.raises(InvalidJobError) as caught:
        enqueue(NO_BROKER, jobs)
    return caught.value


@pytest.mark.parametrize("task", MESSAGES)
def test_a_message_is_the_same_job_as_its_json_object(task: str) -> None:
    """The job is the same whether it is made as a message or written as JSON: it has the same id and content."""
    given = EXAMPLES[task]
    message = parse(task, given)
    name, published = _on_the_wire(message)

    assert name == (task if type(message) is not View else "View")
    assert json.loads(json.dumps(published)) == published
    assert parse(task, published) == message


def test_an_address_is_published_as_it_was_written() -> None:
    """What the producer's library makes of it is no part of the job: it may be of another version than the worker's."""
    given = {"job_id": "one", "sender": "mary", "to": "Ada@EXAMPLE.test", "subject": "Hello", "text": "Hello"}
    message = SendEmail.model_validate(given)

    _, published = _on_the_wire(message)

    assert published["to"] == ["Ada@EXAMPLE.test"]
    assert parse("email.send", published).digest() == parse("email.send", given).digest()


def test_every_message_but_the_plain_view_has_one_task() -> None:
    assert {TASKS.get(message) for message in MESSAGES.values()} == {
        *(task for task, message in MESSAGES.items() if message is not View),
        None,
    }


def test_an_invalid_job_is_named_before_the_broker_is_asked() -> None:
    error = refused(email(), ("sms.send", {"job_id": "two", "sender": "mary", "to": "0151", "text": "Hello"}))

    assert (error.index, error.published) == (1, 0)
    assert str(error).startswith("jobs[1] (sms.send, two) is not valid: `to`: ")
    assert str(error).endswith(" Nothing was published.")
    assert "0151" not in str(error)


def test_a_send_without_its_id_is_refused() -> None:
    """A worker would take it, but a producer could not enqueue it again without its being sent again."""
    error = refused(email(job_id=None))

    assert error.why == NO_KEY


def test_a_save_needs_no_id() -> None:
    plan = {"plan": "small", "name": "Small", "credits": {"email": 9}, "price": 900, "currency": "EUR"}

    assert check_job("plans.save", plan).given == plan
    assert _on_the_wire(SavePlan(**plan)) == ("plans.save", plan)


def test_a_message_changed_after_it_was_made_is_checked_again() -> None:
    """The `model_copy` of pydantic checks nothing."""
    assert "`to.0`: must be one email address" in refused(email().model_copy(update={"to": ["nobody"]})).why


def test_a_bulk_job_that_lacks_a_value_is_refused() -> None:
    bulk = SendManySms(job_id="many", sender="mary", recipients=[{"to": "+4915112345678"}], text="Hello {{name}}")

    assert refused(bulk).why == "`recipients.0.values` lacks 'name', which the message asks for."


@pytest.mark.parametrize("job", [View(viewer="mary"), ("email.sned", {"job_id": "one"}), ("upkeep.sweep", {})], ids=str)
def test_a_task_that_is_not_for_producers_is_refused(job: JobLike) -> None:
    assert refused(job).why.startswith("the tasks are email.send, ")


def test_a_job_that_is_no_object_is_refused() -> None:
    assert refused(("email.send", ["one"])).why == "email.send takes one JSON object as its only argument."  # type: ignore[arg-type]


def test_an_empty_list_asks_no_broker() -> None:
    assert enqueue(NO_BROKER, []) == []


def test_a_single_message_counts_as_a_list_of_one() -> None:
    with pytest.raises(BrokerAwayError):
        enqueue(NO_BROKER, email())  # type: ignore[arg-type]  pydantic's models are iterable


def test_an_error_of_the_caller_says_how_much_was_published() -> None:
    def jobs() -> Iterator[TaskMessage]:
        yield email()
        msg = "the callers own"
        raise LookupError(msg)

    with pytest.raises(LookupError) as caught:
        enqueue(NO_BROKER, jobs())

    assert caught.value.__notes__ == ["Nothing was published."]


@pytest.mark.parametrize(
    ("published", "uncertain", "sentence"),
    [
        (0, 0, "Nothing was published."),
        (500, 0, "The first 500 jobs were published."),
        (0, 500, "Of the first 500 jobs some may have been published."),
        (1000, 500, "The first 1000 jobs were published, and of the next 500 some may have been."),
    ],
)
def test_an_error_of_the_broker_says_how_much_was_published(published: int, uncertain: int, sentence: str) -> None:
    error = BrokerAwayError("redis://broker:6379/0", "Connection refused", uncertain)
    error.published = published

    assert str(error) == (
        f"The broker redis://broker:6379/0 cannot be used: Connection refused. {sentence} "
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


def test_a_checked_job_counts_its_characters() -> None:
    assert check_job("email.send", _on_the_wire(email(text="x" * 10_000))[1]).characters > 10_000


def test_the_from_of_a_text_message_keeps_its_name_on_the_wire() -> None:
    sms = SendSms(**{"job_id": "one", "sender": "mary", "to": "+4915112345678", "text": "Hello", "from": "Acme"})

    assert _on_the_wire(sms)[1]["from"] == "Acme"


def test_the_client_loads_neither_database_nor_settings_nor_worker() -> None:
    """It loads no task either, so that none of Postage's turns up in the producer's own Celery app."""
    code = "import sys, tasks.client; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert {"celery", "pydantic", "tasks.client"} <= set(loaded)
    assert {"sqlalchemy", "alembic", "psycopg", "pydantic_settings", "worker", "tasks.base"} & set(loaded) == set()


def test_a_check_refuses_a_job_as_a_worker_would() -> None:
    with pytest.raises(Refused) as caught:
        check_job("email.send", {"job_id": "one"})

    assert caught.value.detail.startswith("`sender`: Field required.")


def test_the_app_of_a_producer_reaches_broker_and_answers_in_the_same_way() -> None:
    url = "sentinel://:s3cret@a;sentinel://b/2"

    conf = producer_app(url, url, key_prefix="shop-1:", sentinel_master="shop", sentinel_password="word").conf

    assert conf.broker_url == "sentinel://:s3cret@a:26379/2;sentinel://:s3cret@b:26379/2"
    for options in (conf.broker_transport_options, conf.result_backend_transport_options):
        assert (options["global_keyprefix"], options["master_name"]) == ("shop-1:", "shop")
        assert options["sentinel_kwargs"]["password"] == "word"


@pytest.mark.parametrize(
    ("url", "prefix"),
    [("redis://", "shop"), ("sentinel://:s3cret@a;sentinel://:other@b", ""), ("sentinel://:s3cret@a/x", "")],
)
def test_a_broker_that_cannot_be_reached_so_is_refused_without_a_secret(url: str, prefix: str) -> None:
    with pytest.raises(ValueError, match=r"^(a prefix|its parts|what follows)") as refused:
        producer_app(url, key_prefix=prefix)

    assert "s3cret" not in str(refused.value)


def test_sentinels_that_are_away_are_named_without_password_and_driver() -> None:
    app = producer_app("sentinel://:s3cret@127.0.0.1:1;sentinel://127.0.0.1:2", sentinel_password="s3cret")

    with pytest.raises(BrokerAwayError) as caught:
        enqueue(app, [email()])

    assert "cannot be used: No master found for 'mymaster'. Nothing was published." in str(caught.value)
    assert "s3cret" not in str(caught.value)
