"""Commands that cannot do their work say why in sentences: no traceback, no password, and nobody waits for minutes."""

from pathlib import Path

import pytest
from redis import Redis

from tests.flows.house import Ran, run
from tests.servers import ValkeyServer
from worker.local.stack import exclusive

SECRET = "s3cret-word"
NO_DATABASE = f"postgresql://postage:{SECRET}@127.0.0.1:1/money"
NO_BROKER = f"redis://:{SECRET}@127.0.0.1:1/0"


def refused(*arguments: str, cwd: Path, **settings: object) -> str:
    """Give the sentences with which a command refuses."""
    ran: Ran = run(*arguments, cwd=cwd, **{"log_format": "json", **settings})
    assert ran.code == 1, ran
    for said in (ran.out, ran.err):
        assert "Traceback" not in said
        assert SECRET not in said
    sentences = [line for line in ran.err.splitlines() if not line.startswith("{")]
    assert sentences[0].startswith("Error: "), ran.err
    return "\n".join(sentences).removeprefix("Error: ")


@pytest.mark.parametrize("command", ["worker", "beat"])
def test_what_keeps_a_process_from_starting_is_said_all_at_once(command: str, tmp_path: Path) -> None:
    said = refused(command, cwd=tmp_path, database_url=NO_DATABASE, broker_url=NO_BROKER).splitlines()

    assert len(said) == 2
    assert said[0].startswith("The database money at 127.0.0.1:1 cannot be used: ")
    assert said[1].startswith("The broker at 127.0.0.1:1/0 cannot be used: ")


def test_up_checks_what_it_was_given(tmp_path: Path) -> None:
    said = refused("up", cwd=tmp_path, database_url=NO_DATABASE, broker_url=NO_BROKER)

    assert "The database money at 127.0.0.1:1 cannot be used: " in said
    assert "The broker at 127.0.0.1:1/0 cannot be used: " in said


def test_a_worker_does_not_start_on_a_broker_that_throws_out_jobs(
    tmp_path: Path, sqlite_url: str, valkey: ValkeyServer, valkey_url: str
) -> None:
    with Redis.from_url(valkey_url) as redis:
        redis.config_set("maxmemory-policy", "allkeys-lru")
        try:
            said = refused("worker", cwd=tmp_path, database_url=sqlite_url, broker_url=valkey_url)
        finally:
            redis.config_set("maxmemory-policy", "noeviction")

    assert said.startswith("The broker's maxmemory-policy is allkeys-lru")


def test_a_worker_does_not_start_with_a_visibility_timeout_that_hands_out_jobs_twice(tmp_path: Path) -> None:
    said = refused("worker", cwd=tmp_path, visibility_timeout_s=500)

    assert "POSTAGE_VISIBILITY_TIMEOUT_S (500) must be at least twice POSTAGE_LEASE_S (300)" in said


def test_a_second_up_on_the_same_folder_is_told_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    with exclusive(tmp_path / "var" / "up.lock"):
        said = refused("up", cwd=tmp_path)

    assert said.startswith(f"Another `postage up` already runs on the folder {tmp_path / 'var'}: end it first")


@pytest.mark.parametrize(
    "arguments",
    [
        ("overview", "john"),
        ("buy", "john", "--email", "1", "--amount", "1", "--currency", "EUR"),
        ("status", "job-1", "--json"),
        ("audit",),
        ("migrate",),
    ],
    ids=lambda arguments: str(arguments[0]),
)
def test_a_command_for_people_does_not_wait_minutes_for_a_database(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Or this test: the command is ended after a minute, and a worker would wait for five."""
    said = refused(*arguments, cwd=tmp_path, database_url=NO_DATABASE)

    assert said.startswith("The database money at 127.0.0.1:1 cannot be used: ")
    assert "Connection refused" in said


def test_a_send_names_the_broker_that_does_not_answer(tmp_path: Path, sqlite_url: str) -> None:
    email = ("--sender", "john", "--to", "a@b.example", "--subject", "Hello", "--text", "Hello")

    said = refused("send-email", *email, cwd=tmp_path, database_url=sqlite_url, broker_url=NO_BROKER)

    assert said.startswith("The broker at 127.0.0.1:1/0 cannot be used: ")
