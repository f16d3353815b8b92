"""The servers that other tests use."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from sqlalchemy import text

from models.database.engine import Database
from tests.servers import PostgresServer, ServerError, ValkeyServer

OTHER_PROCESS = """
import sys
from pathlib import Path
from tests.servers import PostgresServer, ValkeyServer

folder = Path(sys.argv[1])
with PostgresServer(folder / "postgres") as postgres, ValkeyServer(folder / "valkey") as valkey:
    print(postgres.port, valkey.port, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[PostgresServer]:
    with PostgresServer(tmp_path / "postgres", durable=True) as server:
        yield server


def query(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def keep_asking(connected: psycopg.Connection) -> None:
    """Ask for some seconds: a child of the killed server may answer once more before it notices."""
    for _ in range(200):
        connected.execute("SELECT 1")
        time.sleep(0.05)


def test_a_durable_postgres_keeps_what_was_committed_when_it_is_killed(own_postgres: PostgresServer) -> None:
    url = own_postgres.url()
    query(url, "CREATE TABLE kept AS SELECT 7 AS number")
    with psycopg.connect(url) as connected:
        own_postgres.kill()

        with pytest.raises(psycopg.OperationalError):
            keep_asking(connected)
    own_postgres.start()

    assert query(url, "SELECT number FROM kept") == [(7,)]


def test_postgres_restarts_on_the_same_url(own_postgres: PostgresServer) -> None:
    url, pid = own_postgres.url(), own_postgres.pid

    own_postgres.restart()

    assert (own_postgres.url(), own_postgres.pid != pid) == (url, True)
    assert query(url, "SELECT 1") == [(1,)]


def test_postgres_waits_for_the_disk_only_if_it_is_durable(
    own_postgres: PostgresServer, postgres: PostgresServer
) -> None:
    shown = "SELECT current_setting('fsync'), current_setting('synchronous_commit'), current_setting('TimeZone')"

    assert query(own_postgres.url(), shown) == [("on", "on", "UTC")]
    assert query(postgres.url(), shown) == [("off", "off", "UTC")]


def test_a_database_is_copied_from_a_template_and_dropped_while_in_use(
    postgres: PostgresServer,
) -> None:
    postgres.create_database("original")
    query(postgres.url("original"), "CREATE TABLE copied AS SELECT 7 AS number")

    postgres.create_database("copy", template="original")

    assert query(postgres.url("copy"), "SELECT number FROM copied") == [(7,)]
    with psycopg.connect(postgres.url("copy")):
        postgres.drop_database("copy")
    postgres.drop_database("copy")
    postgres.drop_database("original")
    assert query(postgres.url(), "SELECT datname FROM pg_database WHERE datname IN ('copy', 'original')") == []


def test_a_server_whose_port_is_taken_shows_its_log(
    tmp_path: Path, postgres: PostgresServer, valkey: ValkeyServer
) -> None:
    second_postgres, second_valkey = PostgresServer(tmp_path / "postgres"), ValkeyServer(tmp_path / "valkey")
    second_postgres.port, second_valkey.port = postgres.port, valkey.port

    with pytest.raises(ServerError, match="Address already in use"):
        second_postgres.start()
    with pytest.raises(ServerError, match="Address already in use"):
        second_valkey.start()


def test_valkey_keeps_its_append_only_file_when_it_is_killed(tmp_path: Path) -> None:
    with ValkeyServer(tmp_path / "valkey", appendonly=True) as server:
        with redis.Redis.from_url(server.url()) as client:
            client.set("kept", 7)
        server.kill()
        server.start()

        with redis.Redis.from_url(server.url()) as client:
            assert client.get("kept") == b"7"


def test_valkey_is_empty_for_each_test_that_asks_for_its_url(valkey: ValkeyServer, valkey_url: str) -> None:
    with redis.Redis.from_url(valkey_url) as client:
        client.set("left", "behind")
        assert client.dbsize() == 1

        valkey.flush()

        assert client.dbsize() == 0


@pytest.mark.parametrize("time", ["first", "second"])
def test_each_test_gets_a_fresh_migrated_database(database: Database, time: str) -> None:
    with database.engine.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM alembic_version")).scalar() == 1
        connection.execute(text("CREATE TABLE left_behind (number integer)"))


def test_servers_listen_on_this_machine_only(postgres: PostgresServer, valkey: ValkeyServer) -> None:
    assert query(postgres.url(), "SHOW listen_addresses") == [("127.0.0.1",)]
    with redis.Redis.from_url(valkey.url()) as client:
        assert client.config_get("bind") == {"bind": "127.0.0.1"}
    assert os.getpgid(postgres.pid) == postgres.pid


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_servers_end_when_the_test_process_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OTHER_PROCESS, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        ports = [int(port) for port in other.stdout.readline().split()]
        assert [listens(port) for port in ports] == [True, True]

        other.kill()

    until = time.monotonic() + 60
    while any(map(listens, ports)):
        assert time.monotonic() < until, "waited for a minute"
        time.sleep(0.02)
