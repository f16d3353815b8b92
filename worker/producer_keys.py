"""The keys of producers: a file that only Postage may read, with what each key may ask for.

A worker must know the secrets themselves to check signatures made with them, so no hashes are kept. The file is read
again when it changes, so a new key counts at once and a revoked one no longer than a second, without a restart.
"""

import fcntl
import functools
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from models.errors import OperatorError
from models.messages.fields import Id
from models.messages.signatures import ProducerKey
from models.messages.wire import MESSAGES
from worker.private_files import write_private

log = structlog.get_logger(__name__)

OURS = "postage"
"""The id of the key with which Postage signs what it enqueues itself. It may ask for everything."""
SECRET_BYTES = 32
"""As many as the MAC has (RFC 2104, section 3)."""
SECRET_MIN = 32
"""Characters of a secret, at least: of base64, they hold 24 bytes."""
LOOK_AGAIN_S = 1.0
"""How often the file is looked at, at most, in seconds."""
FILE_MAX = 4_000_000
"""Bytes of the file: some ten thousand keys."""

Text = Annotated[str, Field(min_length=1, max_length=255)]


class KeysFileError(OperatorError):
    """The file of keys cannot be used. The message says why."""


class KnownKey(BaseModel):
    """A key, and what may be asked for with it; without a bound, everything."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    id: Id
    secret: str = Field(min_length=SECRET_MIN, max_length=255, repr=False)
    organization: Text | None = None
    """The organization for whose people it may ask."""
    tasks: tuple[str, ...] | None = None
    """The tasks that it may ask for."""
    senders: tuple[Id, ...] | None = None
    """The people in whose name it may ask: as sender, buyer, actor or viewer."""
    created_at: datetime
    revoked_at: datetime | None = None

    @field_validator("tasks")
    @classmethod
    def _known_tasks(cls, tasks: tuple[str, ...] | None) -> tuple[str, ...] | None:
        unknown = [task for task in tasks or () if task not in MESSAGES]
        if unknown:
            msg = f"{', '.join(unknown)} is no task; the tasks are {', '.join(MESSAGES)}"
            raise ValueError(msg)
        return tasks

    @property
    def signing(self) -> ProducerKey:
        """The key as it signs."""
        return ProducerKey(self.id, self.secret)


class _KeysFile(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    keys: tuple[KnownKey, ...]


Keys = Mapping[str, KnownKey]
"""Keys by their ids, also revoked ones."""


class ProducerKeys:
    """The keys of a file, as they stand there now."""

    def __init__(self, path: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._monotonic = monotonic
        self._looked_at: float | None = None
        self._seen: tuple[int, ...] | None = None
        self._keys: Keys = MappingProxyType({})

    def all(self) -> Keys:
        """Return every key. A file that has become unreadable leaves those that were known; the log says so."""
        if self._looked_at is None or self._monotonic() - self._looked_at >= LOOK_AGAIN_S:
            self._look()
        return self._keys

    def usable(self, key_id: str) -> KnownKey | None:
        """Return a key that was not revoked. One that is not known may just have been made."""
        if key_id not in self.all():
            self._look()
        key = self._keys.get(key_id)
        return key if key is not None and key.revoked_at is None else None

    @property
    def ours(self) -> ProducerKey | None:
        """The key with which Postage signs, if there is one."""
        key = self.usable(OURS)
        return None if key is None else key.signing

    def _look(self) -> None:
        self._looked_at = self._monotonic()
        seen = _fingerprint(self._path)
        if seen != self._seen:
            self._seen = seen
            self._read()

    def _read(self) -> None:
        try:
            self._keys = read_keys(self._path)
        except KeysFileError as error:
            log.error("producers' keys not read again; those known before still count", error=str(error))  # noqa: TRY400


@functools.cache
def keys_at(path: Path) -> ProducerKeys:
    """Return the keys of a file, which everything in this process shares."""
    return ProducerKeys(path)


def _fingerprint(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def read_keys(path: Path) -> dict[str, KnownKey]:
    """Return the keys in a file, by their ids; none if there is no file.

    Raises
    ------
    KeysFileError
        If it cannot be read, or is not as it must be. What it says shows no secret.

    """
    try:
        with path.open("rb") as file:
            text = file.read(FILE_MAX + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        msg = f"The keys of producers in {path} cannot be read: {error.strerror}."
        raise KeysFileError(msg) from None
    if len(text) > FILE_MAX:
        msg = f"The keys of producers in {path} take more than {FILE_MAX:,} bytes."
        raise KeysFileError(msg)
    try:
        keys = _KeysFile.model_validate_json(text).keys
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        msg = f"The keys of producers in {path} are not as they must be: {where or 'the file'}: {problem['msg']}."
        raise KeysFileError(msg) from None
    by_id = {key.id: key for key in keys}
    if len(by_id) < len(keys):
        msg = f"The keys of producers in {path} have an id twice."
        raise KeysFileError(msg)
    return by_id


def write_keys(path: Path, keys: Keys) -> None:
    """Write keys to a file, all or nothing, which only its owner may read.

    Raises
    ------
    KeysFileError
        If it cannot be written.

    """
    text = _KeysFile(keys=tuple(keys.values())).model_dump_json(indent=1, exclude_none=True)
    try:
        write_private(path, text + "\n")
    except OSError as error:
        msg = f"The keys of producers cannot be written to {path}: {error.strerror}."
        raise KeysFileError(msg) from None


@contextmanager
def changed_keys(path: Path) -> Iterator[dict[str, KnownKey]]:
    """Give the keys of a file to be changed, one process at a time; they are written when the block ends well.

    Raises
    ------
    KeysFileError
        If the file cannot be read or written.

    """
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        msg = (
            f"The keys of producers cannot be written to {path}: {error.strerror}. Set POSTAGE_PRODUCER_KEYS to a file "
            "in a folder that is there, or change to the folder in which `postage up` runs."
        )
        raise KeysFileError(msg) from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # the file itself is replaced, so it cannot be what is locked
        keys = read_keys(path)
        before = dict(keys)
        yield keys
        if keys != before:
            write_keys(path, keys)
    finally:
        os.close(folder)


def new_secret() -> str:
    """Return a secret that nobody can guess."""
    return secrets.token_urlsafe(SECRET_BYTES)
