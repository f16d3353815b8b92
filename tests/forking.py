"""Commands of Postage as processes that are forked from one which has imported Postage already.

Importing takes a process three quarters of a second of a core, several times what most tests do with it. What is forked
is as good as new: it begins at `main()` with its own arguments, environment, folder, output, session and no open files,
and ends as any other does. Tests of how a process starts (`anew`) start it by its command line.

This file is also the program that forks; it imports nothing of the tests.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

IMPORTED: Final = ["worker.__main__", "worker.cli.main"]
"""What is imported before anything is forked."""
_FILES_MAX: Final = 256
_NUMBER: Final = struct.Struct("q")


class Forked:
    """A forked process, with those members of `subprocess.Popen` that tests use."""

    def __init__(self, status: int) -> None:
        self._status = status
        self._reading = threading.Lock()
        self.returncode: int | None = None
        self.pid = self._read()

    def _read(self) -> int:
        number: int = _NUMBER.unpack(os.read(self._status, _NUMBER.size))[0]
        return number

    def poll(self) -> int | None:
        """Give the exit code, or None if it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, and give the exit code."""
        if self.returncode is None and not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("postage", timeout or 0)
        with self._reading:  # another thread may wait, too
            if self.returncode is None:
                self.returncode = self._read()
                os.close(self._status)
        return self.returncode

    def send_signal(self, signum: int) -> None:
        """Send a signal, if it runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


class Forker:
    """The process that forks others. It ends with the one that started it, and what it forked with both."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def fork(
        self, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], stdout: IO[bytes], stderr: IO[bytes]
    ) -> Forked:
        """Run `postage` with these arguments in a process of its own."""
        request = json.dumps({"arguments": list(arguments), "cwd": str(cwd), "env": dict(env)}).encode()
        status, its_status = os.pipe()
        files = [its_status, stdout.fileno(), stderr.fileno()]
        with self._lock:
            socket.send_fds(self._requests, [_NUMBER.pack(len(request))], files)
            self._requests.sendall(request)
        os.close(its_status)
        return Forked(status)

    def end(self) -> None:
        """End it."""
        self._requests.close()
        self._process.wait()


_forkers: list[Forker] = []
_starting = threading.Lock()


def forker() -> Forker:
    """Give the forker of this process, which is started when it is first needed."""
    with _starting:
        if not _forkers:
            _forkers.append(Forker())
        return _forkers[0]


def end_forker() -> None:
    """End the forker, if there is one."""
    while _forkers:
        _forkers.pop().end()


# -- the program that forks -------------------------------------------------------------------------------------------


def _serve(requests: socket.socket) -> dict[str, Any]:
    """Fork for each request until there are no more. Returns the request, in the process that was forked for it."""
    statuses: dict[int, int] = {}

    def tell_of_ends(*_: object) -> None:
        while statuses:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:  # it has interrupted itself: what ended is told of outside
                break
            if pid == 0:
                break
            told = statuses.pop(pid)
            with contextlib.suppress(BrokenPipeError):
                os.write(told, _NUMBER.pack(os.waitstatus_to_exitcode(status)))
            os.close(told)

    before = signal.signal(signal.SIGCHLD, tell_of_ends)
    while True:
        size, files, *_ = socket.recv_fds(requests, _NUMBER.size, 3)
        if not size:
            sys.exit()
        status, *output = files
        request: dict[str, Any] = json.loads(requests.recv(_NUMBER.unpack(size)[0], socket.MSG_WAITALL))
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # until it is known whom a signal is about
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, before)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            for number, file in enumerate(output, 1):
                os.dup2(file, number)
            return request
        os.write(status, _NUMBER.pack(pid))
        statuses[pid] = status
        for file in output:
            os.close(file)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])


def _become(request: dict[str, Any], forker_pid: int) -> None:
    """Make this process what the command would be if it had been started by its command line."""
    os.closerange(3, _FILES_MAX)
    os.setsid()
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415  it was imported by what is forked

        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG of linux/prctl.h
        if os.getppid() != forker_pid:
            sys.exit("The process that forked this one is gone.")
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv[1:] = request["arguments"]


def _main() -> None:
    gc.disable()
    for module in IMPORTED:
        importlib.import_module(module)
    gc.freeze()
    pid = os.getpid()
    request = _serve(socket.socket(fileno=int(sys.argv[1])))
    program = importlib.import_module("worker.__main__")
    sys.argv[0] = str(program.__file__)
    _become(request, pid)
    program.main()


if __name__ == "__main__":
    _main()
