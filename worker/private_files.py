"""Files that only their owner may read: they hold passwords, secrets and messages."""

import os
import secrets
from pathlib import Path

OTHERS = 0o077
"""The rights of everybody but the owner (chmod(1))."""


def write_private(path: Path, text: str) -> None:
    """Write the file in one step, so that nobody reads half of it, and no other user any of it.

    Raises
    ------
    OSError
        If it cannot be written; then it is as it was.

    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # or a crash of the machine could leave an empty file in place of the last one
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
