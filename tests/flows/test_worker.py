"""How a worker starts and ends: it says why it cannot start, and finishes what it sends before it ends."""

import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from models.sends.charges import State
from tasks.queues import Queue
from tests.flows.deployment import Deploy, Program, run, wait_until
from tests.flows.jobs import email_job
from tests.servers import PostgresServer

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def empty_database(postgres: PostgresServer) -> Iterator[str]:
    postgres.create_database("never_migrated")
    yield postgres.url("never_migrated")
    postgres.drop_database("never_migrated")


def test_a_worker_does_not_start_on_a_database_never_migrated(empty_database: str, tmp_path: Path) -> None:
    """It says in a sentence what to do."""
    ended = run("worker", cwd=tmp_path, database_url=empty_database, broker_url="redis://127.0.0.1:1/0")

    assert ended.code == 1
    assert "run `postage migrate`" in ended.err
    assert "Traceback" not in ended.err


def test_other_commands_refuse_a_database_never_migrated(empty_database: str, tmp_path: Path) -> None:
    """They do not migrate it by themselves."""
    ended = run("audit", cwd=tmp_path, database_url=empty_database)

    assert ended.code == 1
    assert "run `postage migrate`" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("command", ["worker", "migrate", "audit"])
def test_a_database_of_a_newer_release_is_named_in_a_sentence(postgres_url: str, tmp_path: Path, command: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")

    ended = run(command, cwd=tmp_path, database_url=postgres_url, broker_url="redis://127.0.0.1:1/0")

    assert ended.code == 1
    assert "is at migration 9999" in ended.err
    assert "restore the backup from before that migration" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("setting", "value", "word"),
    [
        ("colour", "red", "Unknown setting POSTAGE_COLOUR"),
        ("database_url", "mysql://root:secret@localhost/postage", "POSTAGE_DATABASE_URL"),
        ("broker_url", "amqp://guest:secret@localhost", "POSTAGE_BROKER_URL"),
        ("sms_url", "ftp://root:secret@localhost", "POSTAGE_SMS_URL"),
        ("smtp_url", "smtp://root:secret@localhost:port", "POSTAGE_SMTP_URL"),
    ],
)
def test_a_wrong_setting_is_named_in_a_sentence(tmp_path: Path, setting: str, value: str, word: str) -> None:
    """The sentence names the setting, without a traceback and without its password."""
    ended = run(
        "worker", cwd=tmp_path, **{"var": tmp_path / "var", "broker_url": "redis://127.0.0.1:1/0", setting: value}
    )

    assert ended.code == 1
    assert ended.err.startswith("Error: ")
    assert word in ended.err
    assert "Traceback" not in ended.err
    assert "secret" not in ended.err + ended.out


def test_a_worker_without_options_consumes_every_queue(deploy: Deploy) -> None:
    """No job waits for ever."""
    with deploy() as deployment:
        consumed = deployment.producer.control("active_queues")
        stats = deployment.producer.control("stats")

        assert sorted(queue["name"] for queue in consumed) == sorted(Queue)
        assert stats["pid"] == deployment.worker.pid
        assert stats["pool"]["max-concurrency"] == 8


def test_a_worker_that_is_told_to_end_finishes_what_it_sends(deploy: Deploy) -> None:
    """The email is sent and settled, and a job that has not begun waits for the next worker."""
    with deploy(concurrency=2) as deployment:
        _, member = deployment.people(email=10)
        deployment.mail_server.hold()
        deployment.send("email.send", email_job("first", member))
        wait_until(lambda: deployment.mail_server.offers["first"], "the mail server holds the email")

        deployment.worker.ask_to_end(signal.SIGTERM)
        wait_until(lambda: _begins_to_end(deployment.worker), "the worker begins to end")
        was_running = deployment.worker.is_running()
        deployment.mail_server.release()
        code = deployment.worker.wait()
        deployment.send("email.send", email_job("second", member))

        assert was_running
        assert code == 0
        assert "Traceback" not in deployment.worker.output
        charge = deployment.charges(["first"])["first"]
        assert (charge.state, charge.attempts) == (State.SENT, 1)
        assert len(deployment.mail_server.mails_of("first")) == 1
        assert deployment.redis.hlen("unacked") == 0
        assert deployment.redis.llen("email") == 1

        deployment.restart_worker(empty_queues=False)
        deployment.wait_until_final("second")
        assert len(deployment.mail_server.mails_of("second")) == 1
        assert deployment.findings() == []


def _begins_to_end(worker: Program) -> bool:
    return "Stopping" in worker.output or "Warm shutdown" in worker.output
