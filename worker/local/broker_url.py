"""Where producers reach the embedded broker: a TCP port of this machine, and the password that it asks for.

Both are kept as one URL in a file of `var` that only its user can read, and stay the same from run to run, so that a
producer needs to be told once. The password is never an argument of a process, which everybody on the machine can read.
"""

import os
import secrets
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from worker.private_files import OTHERS, write_private

LOOPBACK: Final = "127.0.0.1"
PREFERRED_PORTS: Final[Sequence[int]] = range(6379, 6400)
"""Redis' own port, which every producer's documentation has in its examples, and the next ones.

None is among those that the kernel gives to connections, so the port is probably free at the next start, too.
"""
USER: Final = "default"
"""Redis' own user. It is named, because a server without a password accepts any for it, but none without a name."""
_PASSWORD_BYTES: Final = 24


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """A port of 127.0.0.1, and a password of letters, digits, `-` and `_`."""

    port: int
    password: str = field(repr=False)

    def __str__(self) -> str:
        return f"redis://{USER}:{self.password}@{LOOPBACK}:{self.port}/0"

    @property
    def masked(self) -> str:
        """The URL without its password, for logs."""
        return f"redis://{USER}:***@{LOOPBACK}:{self.port}/0"


def read_url(path: Path) -> BrokerUrl | None:
    """Return the URL that the file keeps, or None if there is none."""
    try:
        parts = urlsplit(path.read_text().strip())
        return BrokerUrl(parts.port, parts.password) if parts.port and parts.password else None
    except (OSError, ValueError):
        return None


def choose_url(path: Path) -> BrokerUrl:
    """Return the URL for a server that is about to start, and keep it in the file.

    It is the one of the last run. If its port is taken, the first free one of PREFERRED_PORTS is chosen, or else any;
    if others could read the file, there is a new password.

    Raises
    ------
    OSError
        If no port is free, or the file cannot be written.

    """
    last = read_url(path) if _is_private(path) else None
    chosen = BrokerUrl(
        _free_port([last.port] if last else []),
        last.password if last else secrets.token_urlsafe(_PASSWORD_BYTES),
    )
    if chosen != last:
        write_private(path, f"{chosen}\n")
    return chosen


def is_free(port: int) -> bool:
    """Whether a server can listen on the port."""
    try:
        _bound(port)
    except OSError:
        return False
    return True


def _free_port(wanted: list[int]) -> int:
    for port in (*wanted, *PREFERRED_PORTS):
        if is_free(port):
            return port
    return _bound(0)


def _bound(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        probe.bind((LOOPBACK, port))
        return int(probe.getsockname()[1])


def _is_private(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & OTHERS
