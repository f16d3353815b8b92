"""The folder of everything embedded, which is for its user alone: it holds messages, addresses and a password.

What a command makes there is private by the umask of every Postage process (worker/__main__.py). What an earlier
release has left readable is made private once, at the first start.
"""

import os
import stat
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

import structlog

from worker.private_files import OTHERS

log = structlog.get_logger(__name__)

OWN_NAMES: Final = ("beat*", "broker-url", ".broker-url.*", "console-link", ".console-link.*",
                    "logs", "outbox", "postage.db*", "producer-keys.json",
                    ".producer-keys.json.*",
                    "up.lock", "valkey")  # fmt: skip
"""What Postage makes in the folder, as shell patterns. Anything else there is left alone."""


def make_private(folder: Path) -> None:
    """Make the folder if it is not there, and take every right from other users.

    A folder that holds anything else than Postage's files, or belongs to somebody else, keeps its rights; Postage's own
    files in it lose theirs.

    Raises
    ------
    OSError
        If the folder cannot be made.

    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if not found.st_mode & OTHERS:
        return  # it was closed last, so everything in it is
    entries = list(folder.iterdir())
    ours = [entry for entry in entries if any(fnmatch(entry.name, name) for name in OWN_NAMES)]
    for entry in ours:
        if entry.is_symlink():
            continue  # the walk would follow this one, though none within
        _close(entry)
        for parent, folders, files in os.walk(entry):
            for name in (*folders, *files):
                _close(Path(parent, name))
    if len(ours) == len(entries) and found.st_uid == os.getuid():
        folder.chmod(stat.S_IMODE(found.st_mode) & ~OTHERS)
    else:
        log.warning("folder is open to other users; give Postage one of its own", folder=str(folder.resolve()),
                    mode=f"{stat.S_IMODE(found.st_mode):o}")  # fmt: skip


def _close(path: Path) -> None:
    """Take every right from other users, unless it is a link, a socket, gone, or somebody else's."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    try:
        found = os.fstat(opened)
        if found.st_uid == os.getuid() and found.st_mode & OTHERS:
            os.fchmod(opened, stat.S_IMODE(found.st_mode) & ~OTHERS)
    finally:
        os.close(opened)
