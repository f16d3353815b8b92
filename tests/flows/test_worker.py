"""How a worker starts, and how it ends: with a sentence when it cannot, and in order when it is told to."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from models.sends.charges import State
from tasks.queues import Queue
from tests.flows.house import Deployment, run, until
from tests.servers import PostgresServer

pytestmark = pytest.mark.timeout(180)

OpenHouse = Callable[..., Deployment]


@pytest.fixture
def empty_database(postgres: PostgresServer) -> Iterator[str]:
    postgres.create_database("never_migrated")
    yield postgres.url("never_migrated")
    postgres.drop_database("never_migrated")


def test_a_worker_refuses_to_start_on_a_database_that_was_never_migrated(empty_database: str, tmp_path: Path) -> None:
    """With a sentence that says what to do."""
    ended = run("worker", cwd=tmp_path, database_url=empty_database, broker_url="redis://127.0.0.1:1/0")

    assert ended.code == 1
    assert "run `postage migrate`" in ended.err
    assert "Traceback" not in ended.err


def test_other_commands_refuse_such_a_database_too(empty_database: str, tmp_path: Path) -> None:
    """Nothing is made there on the quiet."""
    ended = run("audit", cwd=tmp_path, database_url=empty_database)

    assert ended.code == 1
    assert "run `postage migrate`" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("setting", "value", "word"),
    [
        ("colour", "red", "Unknown setting POSTAGE_COLOUR"),
        ("database_url", "mysql://root:secret@localhost/postage", "POSTAGE_DATABASE_URL"),
        ("broker_url", "amqp://guest:secret@localhost", "POSTAGE_BROKER_URL"),
        ("sms_url", "ftp://root:secret@localhost", "POSTAGE_SMS_URL"),
        ("smtp_url", "smtp://root:secret@localhost:port", "POSTAGE_SMTP_URL"),
        ("lease_s", "1", "POSTAGE_LEASE_S"),
    ],
)
def test_a_wrong_setting_is_told_in_a_sentence(tmp_path: Path, setting: str, value: str, word: str) -> None:
    """Which one it is, without a traceback, and without the password in it."""
    ended = run(
        "worker", cwd=tmp_path, **{"var": tmp_path / "var", "broker_url": "redis://127.0.0.1:1/0", setting: value}
    )

    assert ended.code == 1
    assert ended.err.startswith("Error: ")
    assert word in ended.err
    assert "Traceback" not in ended.err
    assert "secret" not in ended.err + ended.out


def test_a_worker_without_options_consumes_every_queue(open_house: OpenHouse) -> None:
    """So that nothing waits for ever."""
    with open_house() as house:
        consumed = house.producer.control("active_queues")
        stats = house.producer.control("stats")

        assert sorted(queue["name"] for queue in consumed) == sorted(Queue)
        assert stats["pid"] == house.worker.pid
        assert stats["pool"]["max-concurrency"] == 8


def test_a_worker_that_is_told_to_end_finishes_what_it_sends(open_house: OpenHouse) -> None:
    """The mail is sent and settled, nothing is left in its hands, and what has not begun waits for the next worker."""
    with open_house(concurrency=2) as house:
        _, member = house.people(email=10)
        job = {"sender": member, "to": "ada@customer.example", "subject": "Hello", "text": "Hello"}
        house.mail.hold()
        house.send("email.send", {**job, "job_id": "first"})
        until(lambda: house.mail.offers["first"], "the mail server holds the mail")

        house.worker.tell(signal.SIGTERM)
        until(lambda: "Stopping" in house.worker.said or "Warm shutdown" in house.worker.said, "it heard")
        still_runs = house.worker.runs()
        house.mail.let_go()
        code = house.worker.wait()
        house.send("email.send", {**job, "job_id": "second"})

        assert still_runs
        assert code == 0
        assert "Traceback" not in house.worker.said
        charge = house.charges(["first"])["first"]
        assert (charge.state, charge.attempts) == (State.SENT, 1)
        assert len(house.mail.letters_of("first")) == 1
        assert house.redis.hlen("unacked") == 0
        assert house.redis.llen("email") == 1

        house.revive(forget=False)
        house.wait_until_final("second")
        assert len(house.mail.letters_of("second")) == 1
        assert house.findings() == []
