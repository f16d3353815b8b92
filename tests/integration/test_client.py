"""The client for producers on a real broker: what it publishes, in how many round trips, and how it fails."""

import os
import re
import signal
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Connection, Consumer, Message, Queue
from redis import Redis
from redis.client import Pipeline

from models.messages.billing import SaveRole
from models.messages.sends import SendEmail, SendSms
from tasks.client import JOBS_BATCH, BrokerAwayError, InvalidJobError, JobLike, enqueue, producer_app
from tasks.job_ids import redacted_args
from tests.integration.queued import body_of, jobs_on, messages_on
from tests.servers import ValkeyServer
from worker.broker.transport import Transport

DOCUMENT = (Path(__file__).parents[2] / "docs/producers.md").read_text()


@pytest.fixture
def app(valkey_url: str) -> Iterator[Celery]:
    with producer_app(valkey_url) as app:
        yield app


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[ValkeyServer]:
    """Give a broker that a test may kill, stop or fill up."""
    with ValkeyServer(tmp_path / "valkey") as server:
        yield server


def email(number: int = 0) -> SendEmail:
    return SendEmail(job_id=f"job-{number}", sender="mary", to=["a@b.example"], subject="Hello", text="Hello")


def emails(count: int) -> Iterator[SendEmail]:
    return (email(number) for number in range(count))


def job_ids(redis: Redis) -> list[str]:
    """Give the ids of the emails on the queue, the oldest first."""
    return [job["job_id"] for job in jobs_on(redis, "email")]


# -- what is published ------------------------------------------------------------------------------------------------


def test_a_published_message_equals_one_of_send_task(app: Celery, redis: Redis) -> None:
    """Only the ids differ, which are new for every message."""
    job = {"job_id": "job-0", "sender": "mary", "to": ["a@b.example"], "subject": "Hello", "text": "Hello"}

    app.send_task("email.send", args=[job], argsrepr=redacted_args([job]), ignore_result=True)
    [task_id] = enqueue(app, [email()])
    alone, together = messages_on(redis, "email")

    assert together["headers"]["id"] == together["headers"]["root_id"] == task_id
    assert together["properties"]["correlation_id"] == task_id
    assert together["headers"]["argsrepr"] == "(job=job-0, sender=mary)"
    for message in (alone, together):
        for headers, names in (("headers", ("id", "root_id")), ("properties", ("correlation_id", "delivery_tag"))):
            for name in names:
                assert re.fullmatch("[0-9a-f-]{36}", message[headers].pop(name))
        message["body"] = body_of(message)
    assert alone == together
    assert together["body"] == [[job], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]


def test_a_worker_can_read_what_was_published(app: Celery, valkey_url: str) -> None:
    """It uses the transport of workers, and accepts JSON alone."""
    enqueue(app, [email(1), email(2)])
    taken: list[tuple[Any, Message]] = []
    with Connection(valkey_url, transport=Transport) as connection:
        channel = connection.channel()
        queue = Queue("email", routing_key="email")
        consumer = Consumer(channel, [queue], accept=["json"], auto_declare=False)
        consumer.register_callback(lambda body, message: (taken.append((body, message)), message.ack()))
        with consumer:
            while len(taken) < 2:
                connection.drain_events(timeout=5)

    assert [body[0][0]["job_id"] for body, _ in taken] == ["job-1", "job-2"]
    assert {message.headers["task"] for _, message in taken} == {"email.send"}


def test_jobs_go_on_their_queues_in_order(app: Celery, redis: Redis) -> None:
    jobs: list[JobLike] = [
        email(1),
        SendSms(job_id="sms", sender="mary", to="+4915112345678", text="Hello"),
        SaveRole(organization="acme", role="boss", rights=[]),
        ("views.overview", {"viewer": "mary"}),
        email(2),
    ]

    task_ids = enqueue(app, jobs)

    ids = {
        queue: [message["headers"]["id"] for message in messages_on(redis, queue)]
        for queue in ("email", "sms", "billing")
    }
    assert ids == {"email": [task_ids[0], task_ids[4]], "sms": [task_ids[1]], "billing": [task_ids[2]]}
    assert [message["headers"]["task"] for message in messages_on(redis, "views")] == ["views.overview"]


def test_any_celery_app_can_be_used(valkey_url: str, redis: Redis) -> None:
    """For example one without routes, which would pickle, wait for answers, and send events."""
    with Celery(broker=valkey_url, backend=valkey_url, set_as_current=False) as app:
        app.conf.update(task_serializer="pickle", task_send_sent_event=True)

        enqueue(app, emails(3))

    assert job_ids(redis) == ["job-0", "job-1", "job-2"]
    assert {message["content-type"] for message in messages_on(redis, "email")} == {"application/json"}


def test_send_task_finds_the_queue_by_the_routes_of_the_app(app: Celery, redis: Redis) -> None:
    app.send_task("sms.send", args=[{}])

    assert redis.llen("sms") == 1


# -- round trips and memory -------------------------------------------------------------------------------------------


def test_five_hundred_jobs_are_one_round_trip(app: Celery, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []
    execute = Pipeline.execute
    monkeypatch.setattr(Pipeline, "execute", lambda self, *a, **k: (commands.append(len(self)), execute(self))[1])

    enqueue(app, emails(1200))

    assert commands == [500, 500, 200]
    assert job_ids(redis) == [f"job-{number}" for number in range(1200)]


def test_jobs_of_a_generator_are_published_batch_by_batch(app: Celery, redis: Redis) -> None:
    """So no more than a batch of them is in memory."""
    unpublished = []

    def jobs() -> Iterator[SendEmail]:
        for number in range(3 * JOBS_BATCH):
            unpublished.append(number - redis.llen("email"))
            yield email(number)

    enqueue(app, jobs())

    assert max(unpublished) == JOBS_BATCH - 1


# -- refusals and failures --------------------------------------------------------------------------------------------


def test_nothing_of_a_list_is_published_if_one_job_is_invalid(app: Celery, redis: Redis) -> None:
    with pytest.raises(
        InvalidJobError, match=r"^jobs\[1200\] \(email.send, x\) is not valid: .* Nothing was published"
    ):
        enqueue(app, [*emails(1200), ("email.send", {"job_id": "x"})])

    assert redis.dbsize() == 0


def test_the_batch_of_an_invalid_job_of_a_generator_is_not_published(app: Celery, redis: Redis) -> None:
    def jobs() -> Iterator[JobLike]:
        yield from emails(700)
        yield "email.send", {"job_id": "x"}

    with pytest.raises(InvalidJobError, match="The first 500 jobs were published") as caught:
        enqueue(app, jobs())

    assert (caught.value.index, caught.value.published, redis.llen("email")) == (700, 500, 500)


def test_the_same_jobs_can_be_enqueued_again_after_the_broker_went_away(
    own_server: ValkeyServer,
) -> None:
    def jobs() -> Iterator[SendEmail]:
        yield from emails(600)
        own_server.kill()
        yield from emails(600)

    with producer_app(own_server.url()) as app:
        with pytest.raises(BrokerAwayError) as caught:
            enqueue(app, jobs())
        with pytest.raises(BrokerAwayError, match=r"refused\. Nothing was published\. Enqueue"):
            enqueue(app, emails(1))
        own_server.start()
        enqueue(app, emails(600))

    error = caught.value
    assert (error.published, error.uncertain) == (500, 500)
    assert "The first 500 jobs were published, and of the next 500 some may have been. Enqueue" in str(error)
    with Redis.from_url(own_server.url()) as redis:
        assert redis.llen("email") == 600


def test_a_broker_that_does_not_answer_is_named_without_its_password() -> None:
    with producer_app("redis://:s3cret@127.0.0.1:1/0") as app, pytest.raises(BrokerAwayError) as caught:
        enqueue(app, [email()])

    assert "The broker redis://:**@127.0.0.1:1/0 cannot be used: " in str(caught.value)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_a_broker_that_stands_still_is_waited_for_until_a_timeout(own_server: ValkeyServer) -> None:
    """It may still do what it was told."""
    with producer_app(own_server.url()) as app:
        app.conf.broker_transport_options = {"socket_timeout": 0.5}
        enqueue(app, [email(1)])
        os.kill(own_server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(BrokerAwayError) as caught:
                enqueue(app, [email(2)])
        finally:
            os.kill(own_server.pid, signal.SIGCONT)
        enqueue(app, [email(2)])

    assert (caught.value.published, caught.value.uncertain) == (0, 1)
    with Redis.from_url(own_server.url()) as redis:
        assert set(job_ids(redis)) == {"job-1", "job-2"}


def test_the_error_of_a_full_broker_shows_nothing_of_the_message(own_server: ValkeyServer) -> None:
    """redis-py repeats the beginning of the command, with the beginning of the message."""
    with Redis.from_url(own_server.url()) as redis:
        redis.config_set("maxmemory", 1)
    with producer_app(own_server.url()) as app, pytest.raises(BrokerAwayError) as caught:
        enqueue(app, [email()])

    assert "cannot be used: command not allowed when used memory > 'maxmemory'. Of the first 1 jobs" in str(
        caught.value
    )
    assert "LPUSH" not in "".join(traceback.format_exception(caught.value))


# -- the documentation ------------------------------------------------------------------------------------------------


def test_the_examples_in_the_documentation_work(valkey_url: str, redis: Redis) -> None:
    """Each is run as it is printed, except for the address of the broker."""
    section = DOCUMENT.partition("### Many at once")[2].partition("\n## ")[0]
    with_client, with_celery = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)

    assert "from postage_client import" in with_client  # tests/flows/test_python_client.py runs it
    exec(with_celery.replace("redis://127.0.0.1:6379/0", valkey_url), {})  # noqa: S102
    assert job_ids(redis) == [f"newsletter-7-{number}" for number in range(10_000)]
