"""A channel is woken by whatever changes a key that its connection has read, by both protocols of Redis."""

from collections.abc import Iterator

import pytest
from kombu.asynchronous import Hub
from redis import Connection, ConnectionPool, Redis

from worker.broker.waking import Waker


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture(params=[2, 3], ids=["protocol-2", "protocol-3"])
def pool(request: pytest.FixtureRequest, valkey_url: str) -> Iterator[ConnectionPool]:
    with ConnectionPool.from_url(valkey_url, protocol=request.param) as pool:
        yield pool


@pytest.fixture
def connection(pool: ConnectionPool) -> Iterator[Connection]:
    """Give the connection that reads the lists."""
    connection = pool.make_connection()
    connection.connect()
    yield connection
    connection.disconnect()


def read(connection: Connection) -> None:
    connection.send_command("LLEN", "email")
    connection.read_response()


def test_a_push_wakes_who_has_read_the_list(
    hub: Hub, pool: ConnectionPool, connection: Connection, valkey_url: str
) -> None:
    woken: list[bool] = []
    waker = Waker(hub, lambda: woken.append(True))
    loop = hub.loop
    with Redis.from_url(valkey_url) as producer:
        assert waker.arm(connection, pool)
        next(loop)
        assert len(woken) == 1  # for what was pushed before
        for count in (2, 3):
            read(connection)
            assert waker.arm(connection, pool)
            producer.lpush("email", "job")
            while len(woken) < count:
                next(loop)

        [told] = [client for client in producer.client_list() if client["redir"] != "-1"]
        producer.client_kill_filter(_id=told["redir"])
        while len(woken) < 4:
            next(loop)
        read(connection)
        assert waker.arm(connection, pool)
        waker.close()


def test_a_user_who_may_not_be_told_is_woken_by_nobody(hub: Hub, valkey_url: str) -> None:
    with Redis.from_url(valkey_url) as admin:
        admin.execute_command("ACL", "SETUSER", "blind", "on", ">secret", "~*", "&*", "+@all", "-client|tracking")
        try:
            with ConnectionPool.from_url(valkey_url, username="blind", password="secret") as pool:
                connection = pool.make_connection()
                connection.connect()
                waker = Waker(hub, lambda: None)

                assert not waker.arm(connection, pool)
                assert not waker.arm(connection, pool)
                read(connection)
                connection.disconnect()
        finally:
            admin.execute_command("ACL", "DELUSER", "blind")
