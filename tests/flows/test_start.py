"""Commands that cannot start say why at once, in sentences without a traceback or a password."""

from pathlib import Path

import pytest
from redis import Redis

from tests.flows.deployment import CommandResult, run
from tests.servers import ValkeyServer
from worker.local.stack import exclusive

SECRET = "s3cret-word"
NO_DATABASE = f"postgresql://postage:{SECRET}@127.0.0.1:1/money"
NO_BROKER = f"redis://:{SECRET}@127.0.0.1:1/0"


def refused(*arguments: str, cwd: Path, **settings: object) -> str:
    """Give the sentences with which a command refuses to start."""
    result: CommandResult = run(*arguments, cwd=cwd, **{"log_format": "json", **settings})
    assert result.code == 1, result
    for printed in (result.out, result.err):
        assert "Traceback" not in printed
        assert SECRET not in printed
    sentences = [line for line in result.err.splitlines() if not line.startswith("{")]
    assert sentences[0].startswith("Error: "), result.err
    return "\n".join(sentences).removeprefix("Error: ")


@pytest.mark.parametrize("command", ["worker", "beat"])
def test_everything_that_keeps_a_process_from_starting_is_said_at_once(command: str, tmp_path: Path) -> None:
    sentences = refused(command, cwd=tmp_path, database_url=NO_DATABASE, broker_url=NO_BROKER).splitlines()

    assert len(sentences) == 2
    assert sentences[0].startswith("The database money at 127.0.0.1:1 cannot be used: ")
    assert sentences[1].startswith("The broker at 127.0.0.1:1/0 cannot be used: ")


def test_up_checks_the_database_and_broker_that_it_is_given(tmp_path: Path) -> None:
    sentence = refused("up", cwd=tmp_path, database_url=NO_DATABASE, broker_url=NO_BROKER)

    assert "The database money at 127.0.0.1:1 cannot be used: " in sentence
    assert "The broker at 127.0.0.1:1/0 cannot be used: " in sentence


def test_a_worker_does_not_start_on_a_broker_that_evicts_jobs(
    tmp_path: Path, sqlite_url: str, valkey: ValkeyServer, valkey_url: str
) -> None:
    with Redis.from_url(valkey_url) as redis:
        redis.config_set("maxmemory-policy", "allkeys-lru")
        try:
            sentence = refused("worker", cwd=tmp_path, database_url=sqlite_url, broker_url=valkey_url)
        finally:
            redis.config_set("maxmemory-policy", "noeviction")

    assert sentence.startswith("The broker's maxmemory-policy is allkeys-lru")


def test_a_worker_does_not_start_with_too_short_a_visibility_timeout(tmp_path: Path) -> None:
    sentence = refused("worker", cwd=tmp_path, visibility_timeout_s=500)

    assert "POSTAGE_VISIBILITY_TIMEOUT_S (500) must be at least twice POSTAGE_LEASE_S (300)" in sentence


def test_a_second_up_on_the_same_folder_is_told_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    with exclusive(tmp_path / "var" / "up.lock"):
        sentence = refused("up", cwd=tmp_path)

    assert sentence.startswith(f"Another `postage up` already runs on the folder {tmp_path / 'var'}: end it first")


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
def test_a_command_for_people_does_not_wait_long_for_a_database(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """A worker waits for five minutes; a command that did so would be ended here after a minute and a half."""
    sentence = refused(*arguments, cwd=tmp_path, database_url=NO_DATABASE, broker_url=NO_BROKER)

    assert sentence.startswith("The database money at 127.0.0.1:1 cannot be used: ")
    assert "Connection refused" in sentence


def test_a_send_names_the_broker_that_does_not_answer(tmp_path: Path, sqlite_url: str) -> None:
    email = ("--sender", "john", "--to", "a@b.example", "--subject", "Hello", "--text", "Hello")

    sentence = refused("send-email", *email, cwd=tmp_path, database_url=sqlite_url, broker_url=NO_BROKER)

    assert sentence.startswith("The broker at 127.0.0.1:1/0 cannot be used: ")
