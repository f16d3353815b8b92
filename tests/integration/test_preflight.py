"""Preflight checks against real servers: whatever is wrong is named in a sentence without a secret."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from redis import Redis

from tasks import broker_urls
from tests.servers import PostgresServer, SentinelServer, ValkeyServer, free_port
from worker.local.stack import StackError, exclusive
from worker.local.valkey import EmbeddedBroker
from worker.places import database_name
from worker.preflight import (
    CLOCKS_APART_MAX,
    NotReadyError,
    Verdict,
    examine,
    require_ready,
)
from worker.settings import Settings

SECRET = "s3cret-word"
NOWHERE = 1
"""A port on which nothing listens."""


@pytest.fixture(autouse=True)
def _asked_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask a broker that does not answer again at once, and not after a second."""
    monkeypatch.setattr("worker.preflight.ASK_AGAIN_S", 0.02)


@pytest.fixture
def settings(tmp_path: Path, sqlite_url: str, valkey_url: str) -> Settings:
    """Give settings with which everything is right, except that the broker keeps nothing on disk."""
    return Settings(var=tmp_path, database_url=sqlite_url, broker_url=valkey_url)


@pytest.fixture
def settings_of_either(settings: Settings, database_url: str) -> Settings:
    """Give the same, once with a database of either kind."""
    return changed(settings, database_url=database_url)


@pytest.fixture
def redis(valkey_url: str, valkey: ValkeyServer) -> Iterator[Redis]:
    """Give a client of the broker, whose configuration is restored after the test."""
    names = ("maxmemory-policy", "appendonly", "save", "requirepass")
    with Redis.from_url(valkey_url, decode_responses=True) as client:
        before = {name: client.config_get(name)[name] for name in names}
        yield client
        for name, value in before.items():
            client.config_set(name, value)
        client.acl_deluser("limited")


def changed(settings: Settings, **changes: object) -> Settings:
    return settings.model_copy(update=changes)


def off_by(seconds: float) -> Callable[[], datetime]:
    """Give a clock that is ahead of the true time."""
    return lambda: datetime.now(UTC) + timedelta(seconds=seconds)


def test_what_keeps_nothing_on_disk_is_only_warned_of(settings_of_either: Settings) -> None:
    """The broker of these tests, and their PostgreSQL."""
    verdict = examine(settings_of_either)

    assert verdict.refusals == []
    *of_database, of_broker = verdict.warnings
    assert of_broker.startswith("The broker keeps nothing on disk (appendonly no, save empty)")
    is_sqlite = settings_of_either.database.startswith("sqlite")
    assert [warning.partition(":")[0] for warning in of_database] == ([] if is_sqlite else [
        "PostgreSQL's fsync is off",
        "PostgreSQL's full_page_writes is off",
        "PostgreSQL's synchronous_commit is off for this user",
    ])  # fmt: skip
    require_ready(settings_of_either)


def test_nothing_is_wrong_with_the_embedded_database_and_broker(tmp_path: Path, sqlite_url: str) -> None:
    settings = Settings(var=tmp_path, database_url=sqlite_url)

    with EmbeddedBroker(settings):
        assert examine(settings) == Verdict()


# -- the database -----------------------------------------------------------------------------------------------------


def test_a_database_that_does_not_answer_is_named_without_its_password(settings: Settings) -> None:
    url = f"postgresql://postage:{SECRET}@127.0.0.1:{NOWHERE}/money"

    [refusal] = examine(changed(settings, database_url=url)).refusals

    assert refusal.startswith("The database money at 127.0.0.1:1 cannot be used: ")
    assert "Connection refused" in refusal
    assert SECRET not in refusal


@pytest.fixture
def url_with_wrong_password(postgres: PostgresServer) -> str:
    """Give a URL with a wrong password, of a user who needs one."""
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'locked'").fetchone() is None:
            connection.execute("CREATE ROLE locked LOGIN PASSWORD 'right'")
        row = connection.execute("SHOW hba_file").fetchone()
        assert row is not None
        file = Path(row[0])
        file.write_text("host all locked 127.0.0.1/32 scram-sha-256\n" + file.read_text())
        connection.execute("SELECT pg_reload_conf()")
    return f"postgresql://locked:{SECRET}@127.0.0.1:{postgres.port}/postgres"


def test_a_wrong_password_of_the_database_is_not_shown(settings: Settings, url_with_wrong_password: str) -> None:
    [refusal] = examine(changed(settings, database_url=url_with_wrong_password)).refusals

    assert 'password authentication failed for user "locked"' in refusal
    assert SECRET not in refusal


def test_a_database_that_does_not_exist_is_named(settings: Settings, postgres: PostgresServer) -> None:
    [refusal] = examine(changed(settings, database_url=postgres.url("nowhere"))).refusals

    assert refusal.startswith(f"The database nowhere at 127.0.0.1:{postgres.port} cannot be used: ")
    assert 'database "nowhere" does not exist' in refusal


def test_a_folder_in_place_of_a_sqlite_file_is_named(settings: Settings, tmp_path: Path) -> None:
    [refusal] = examine(changed(settings, database_url=f"sqlite:///{tmp_path}")).refusals

    assert refusal == f"The database {tmp_path} cannot be used: unable to open database file."


def test_a_database_without_migrations_is_refused_unless_they_follow(settings: Settings, tmp_path: Path) -> None:
    empty = changed(settings, database_url=f"sqlite:///{tmp_path / 'empty.db'}")

    assert ["run `postage migrate`" in refusal for refusal in examine(empty).refusals] == [True]
    assert examine(empty, migrated=False).refusals == []


@pytest.fixture(scope="module")
def durable_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """Give a PostgreSQL that waits for the disk, with a user of each kind of commit."""
    with PostgresServer(tmp_path_factory.mktemp("durable"), durable=True) as server:
        with administrator(server) as connection:
            for commit in ("off", "local", "remote_write"):
                connection.execute(f"CREATE ROLE commits_{commit} LOGIN")
                connection.execute(f"ALTER ROLE commits_{commit} SET synchronous_commit = {commit}")
        yield server


@contextmanager
def administrator(server: PostgresServer) -> Iterator[psycopg.Connection]:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        yield connection


@contextmanager
def with_setting(server: PostgresServer, name: str, value: str) -> Iterator[None]:
    """Give the server a setting for the length of the block, as an administrator does."""
    with administrator(server) as connection:
        connection.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        connection.execute("SELECT pg_reload_conf()")
        wait_until(lambda: connection.execute(f"SHOW {name}").fetchone() == (value,))
        try:
            yield
        finally:
            connection.execute(f"ALTER SYSTEM RESET {name}")
            connection.execute("SELECT pg_reload_conf()")
            wait_until(lambda: connection.execute(f"SHOW {name}").fetchone() != (value,))


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@contextmanager
def standby(server: PostgresServer, folder: Path, name: str) -> Iterator[None]:
    """Receive the write-ahead log of a server for the length of the block, as a standby of this name does."""
    connect = f"host=127.0.0.1 port={server.port} user=postgres application_name={name}"
    receiver = subprocess.Popen([server.program("pg_receivewal"), "--directory", folder, "--dbname", connect])
    try:
        with administrator(server) as connection:
            listed = "SELECT 1 FROM pg_stat_replication WHERE application_name = %s"
            wait_until(lambda: connection.execute(listed, [name]).fetchone() is not None)
        yield
    finally:
        receiver.terminate()
        receiver.wait()


def warnings_of_database(settings: Settings, server: PostgresServer, user: str = "postgres") -> list[str]:
    """Give the warnings that come before the one of the broker, where nothing is refused."""
    url = server.url().replace("postgres@", f"{user}@")
    verdict = examine(changed(settings, database_url=url), migrated=False)
    assert verdict.refusals == []
    return verdict.warnings[:-1]


@pytest.mark.parametrize("name", ["fsync", "full_page_writes"])
def test_a_database_that_a_crash_may_destroy_is_warned_of(
    settings: Settings, durable_postgres: PostgresServer, name: str
) -> None:
    before = warnings_of_database(settings, durable_postgres)
    with with_setting(durable_postgres, name, "off"):
        [warning] = warnings_of_database(settings, durable_postgres)

    assert before == []
    assert warning.startswith(f"PostgreSQL's {name} is off: a crash of its machine can")
    assert f"Set {name} to on" in warning


def test_commits_that_do_not_wait_are_warned_of(settings: Settings, durable_postgres: PostgresServer) -> None:
    """As they are for our user: an administrator may have set this for a role."""
    [warning] = warnings_of_database(settings, durable_postgres, "commits_off")

    assert warning.startswith("PostgreSQL's synchronous_commit is off for this user")
    assert warnings_of_database(settings, durable_postgres, "commits_local") == []


def test_a_standby_that_may_lack_commits_is_warned_of(
    settings: Settings, durable_postgres: PostgresServer, tmp_path: Path
) -> None:
    """Also if our user may not see what the standby does. A backup is not a standby."""
    with standby(durable_postgres, tmp_path, "standby_1"):
        asynchronous = warnings_of_database(settings, durable_postgres, "commits_remote_write")
        with with_setting(durable_postgres, "synchronous_standby_names", "ANY 1 (standby_1, standby_2)"):
            synchronous = warnings_of_database(settings, durable_postgres, "commits_remote_write")
            local = warnings_of_database(settings, durable_postgres, "commits_local")
    with standby(durable_postgres, tmp_path, "pg_receivewal"):
        backup = warnings_of_database(settings, durable_postgres)

    assert [warning.partition(":")[0] for warning in asynchronous] == [
        "PostgreSQL has standbys and an empty synchronous_standby_names"
    ]
    assert (synchronous, backup) == ([], [])
    assert ["synchronous_commit is local for this user" in warning for warning in local] == [True]


def test_commits_that_will_wait_for_ever_are_warned_of(settings: Settings, durable_postgres: PostgresServer) -> None:
    with with_setting(durable_postgres, "synchronous_standby_names", "standby_1"):
        [warning] = warnings_of_database(settings, durable_postgres)

    assert warning.startswith("PostgreSQL's synchronous_standby_names is standby_1, and no standby is connected")


def test_a_standby_is_refused(settings: Settings, durable_postgres: PostgresServer) -> None:
    with administrator(durable_postgres) as connection:
        row = connection.execute("SHOW data_directory").fetchone()
    assert row is not None
    signal = Path(row[0]) / "standby.signal"
    durable_postgres.stop()
    signal.touch()
    durable_postgres.start()
    refusals = examine(changed(settings, database_url=durable_postgres.url()), migrated=False).refusals
    durable_postgres.stop()
    signal.unlink()
    durable_postgres.start()

    assert [refusal.partition(":")[0] for refusal in refusals] == ["The database is a standby, which takes no writes"]


# -- the broker -------------------------------------------------------------------------------------------------------


def test_a_broker_that_does_not_answer_is_named_without_its_password(settings: Settings) -> None:
    [refusal] = examine(changed(settings, broker_url=f"redis://:{SECRET}@127.0.0.1:{NOWHERE}/3")).refusals

    assert refusal.startswith("The broker at 127.0.0.1:1/3 cannot be used: ")
    assert "Connection refused" in refusal
    assert SECRET not in refusal


def test_a_wrong_password_of_the_broker_is_not_shown(settings: Settings, redis: Redis, valkey: ValkeyServer) -> None:
    redis.config_set("requirepass", "right")

    [refusal] = examine(changed(settings, broker_url=f"redis://:{SECRET}@127.0.0.1:{valkey.port}/0")).refusals
    [without] = examine(settings).refusals

    assert "invalid username-password pair" in refusal
    assert SECRET not in refusal
    assert "Authentication required" in without


def test_sentinels_that_do_not_answer_are_named_with_their_broker(settings: Settings) -> None:
    url = f"sentinel://:{SECRET}@127.0.0.1:{NOWHERE};sentinel://127.0.0.1:{NOWHERE + 1}"

    [refusal] = examine(changed(settings, broker_url=url, sentinel_master="jobs")).refusals

    assert f"The broker jobs of the Sentinels 127.0.0.1:{NOWHERE}, 127.0.0.1:{NOWHERE + 1} cannot be used" in refusal
    assert SECRET not in refusal


def test_a_broker_that_sentinels_do_not_know_is_named(settings: Settings, tmp_path: Path) -> None:
    with ValkeyServer(tmp_path / "broker") as master, SentinelServer(tmp_path / "s", master, quorum=1) as sentinel:
        found = changed(settings, broker_url=f"sentinel://127.0.0.1:{sentinel.port}")
        assert examine(found).refusals == []

        [refusal] = examine(changed(found, sentinel_master="jobs")).refusals

        assert "No master found for 'jobs'" in refusal


def test_a_socket_that_is_not_there_is_named(settings: Settings, tmp_path: Path) -> None:
    [refusal] = examine(changed(settings, broker_url=f"redis+socket://{tmp_path}/no.sock")).refusals

    assert refusal.startswith(f"The broker {tmp_path}/no.sock cannot be used: ")


def test_a_result_store_that_does_not_answer_is_named(settings: Settings) -> None:
    [refusal] = examine(changed(settings, result_url=f"redis://127.0.0.1:{NOWHERE}/0")).refusals

    assert refusal.startswith("The broker at 127.0.0.1:1/0 cannot be used: ")


def test_a_database_in_another_encoding_is_refused(settings: Settings, postgres: PostgresServer) -> None:
    postgres.create_database("ascii_only", encoding="SQL_ASCII")
    try:
        verdict = examine(settings.model_copy(update={"database_url": postgres.url("ascii_only")}), migrated=False)
    finally:
        postgres.drop_database("ascii_only")

    assert [refusal for refusal in verdict.refusals if "SQL_ASCII" in refusal and "UTF8" in refusal] != []


def test_a_cluster_is_refused(settings: Settings, tmp_path: Path) -> None:
    bus = str(free_port())  # by default 10,000 above the other port, where somebody else may listen
    with ValkeyServer(tmp_path, **{"cluster-enabled": "yes", "cluster-port": bus}) as cluster:
        verdict = examine(settings.model_copy(update={"broker_url": cluster.url()}))

    assert [refusal for refusal in verdict.refusals if "Redis Cluster" in refusal] != []


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_broker_that_evicts_jobs_is_refused(settings: Settings, redis: Redis, policy: str) -> None:
    redis.config_set("maxmemory-policy", policy)

    [refusal] = examine(settings).refusals

    assert refusal.startswith(f"The broker's maxmemory-policy is {policy}, so it may throw out jobs")
    assert "set it to noeviction" in refusal


@pytest.mark.parametrize(("appendonly", "save"), [("yes", ""), ("no", "60 1")])
def test_a_broker_that_writes_to_disk_is_not_warned_of(
    settings: Settings, redis: Redis, appendonly: str, save: str
) -> None:
    redis.config_set("appendonly", appendonly)
    redis.config_set("save", save)

    assert examine(settings) == Verdict()


def test_a_broker_that_hides_its_configuration_is_only_warned_of(
    settings: Settings, redis: Redis, valkey: ValkeyServer
) -> None:
    redis.acl_setuser("limited", enabled=True, passwords=[f"+{SECRET}"], keys=["*"], channels=["*"],
                      commands=["+@all", "-config"])  # fmt: skip
    limited = changed(settings, broker_url=f"redis://limited:{SECRET}@127.0.0.1:{valkey.port}/0")

    verdict = examine(limited)

    assert verdict.refusals == []
    assert ["does not let this user read its configuration" in warning for warning in verdict.warnings] == [True]


# -- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ahead", "words"), [(61.0, "s behind this machine's"), (-61.0, "s ahead of this machine's")])
def test_clocks_that_disagree_are_refused(settings_of_either: Settings, ahead: float, words: str) -> None:
    """SQLite has no clock of its own."""
    refusals = examine(settings_of_either, now=off_by(ahead)).refusals

    clocks = ["The clock of the database", "The clock of the broker"]
    if settings_of_either.database.startswith("sqlite"):
        clocks = ["The clock of the broker"]
    assert [refusal.partition(" is ")[0] for refusal in refusals] == clocks
    assert all(words in refusal for refusal in refusals)
    assert all("61 s" in refusal or "60 s" in refusal for refusal in refusals)


@pytest.mark.parametrize("direction", [1, -1])
def test_clocks_that_differ_by_little_are_accepted(settings_of_either: Settings, direction: int) -> None:
    now = off_by(direction * (CLOCKS_APART_MAX.total_seconds() - 1))

    assert examine(settings_of_either, now=now).refusals == []


# -- all of it --------------------------------------------------------------------------------------------------------


def test_everything_that_is_wrong_is_named_at_once(settings: Settings, redis: Redis) -> None:
    redis.config_set("maxmemory-policy", "allkeys-lru")
    url = f"postgresql://postage:{SECRET}@127.0.0.1:{NOWHERE}/money"

    with pytest.raises(NotReadyError) as refused:
        require_ready(changed(settings, database_url=url), now=off_by(60))

    sentences = str(refused.value).splitlines()
    assert [sentence[:12] for sentence in sentences] == ["The database", "The broker's", "The clock of"]
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        (f"postgresql+psycopg://u:{SECRET}@db.example/postage", "postage at db.example:5432"),
        (f"postgresql+psycopg://u:{SECRET}@[::1]:99/", "u at ::1:99"),
        ("postgresql+psycopg:///postage?host=/run/postgresql", "postage at /run/postgresql:5432"),
        (f"postgresql+psycopg://u:{SECRET}@/postage?host=a:5432&host=b:5433", "postage at a:5432, b:5433"),
        ("sqlite:////var/postage.db", "/var/postage.db"),
    ],
)
def test_a_database_is_named_without_its_user(url: str, name: str) -> None:
    assert database_name(url) == name


@pytest.mark.parametrize(
    ("url", "name"),
    [
        (f"redis://u:{SECRET}@broker.example:6380/2", "at broker.example:6380/2"),
        (f"rediss://:{SECRET}@broker.example", "at broker.example:6379"),
        ("redis+socket:///run/our%20valkey.sock", "/run/our valkey.sock"),
        (f"sentinel://:{SECRET}@a;sentinel://[::1]:5000/1", "mymaster of the Sentinels a:26379, [::1]:5000"),
    ],
)
def test_a_broker_is_named_without_its_user(url: str, name: str) -> None:
    assert broker_urls.name(url, "mymaster") == name


def test_a_second_local_stack_on_a_folder_is_told_what_to_do(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "up.lock"),
        pytest.raises(StackError, match="already runs on the folder") as refused,
        exclusive(tmp_path / "up.lock"),
    ):
        pass

    assert str(tmp_path) in str(refused.value)
    assert "set POSTAGE_VAR to another folder" in str(refused.value)
