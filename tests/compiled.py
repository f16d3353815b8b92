"""Statements that are compiled once in a test process, instead of once for each engine.

Each test has a database of its own, so an engine of its own. Compiling its statements takes longer than running them.
"""

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, event


class SharedStatements(MutableMapping[tuple[Any, ...], Any]):
    """A compiled cache (SQLAlchemy's execution option) for all engines of a process.

    SQLAlchemy's keys begin with the dialect object, of which each engine has another; here its driver's name takes its
    place. All engines of a driver talk to the same server, so what one has compiled is right for the others.
    """

    def __init__(self) -> None:
        self._compiled: dict[tuple[Any, ...], Any] = {}

    @staticmethod
    def _key(key: tuple[Any, ...]) -> tuple[Any, ...]:
        dialect, *statement = key
        return (dialect.driver, *statement)

    def __getitem__(self, key: tuple[Any, ...]) -> Any:
        return self._compiled[self._key(key)]

    def __setitem__(self, key: tuple[Any, ...], compiled: Any) -> None:
        self._compiled[self._key(key)] = compiled

    def __delitem__(self, key: tuple[Any, ...]) -> None:
        del self._compiled[self._key(key)]

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self._compiled)

    def __len__(self) -> int:
        return len(self._compiled)


@contextmanager
def statements_compiled_once() -> Iterator[SharedStatements]:
    """Let all engines share what they have compiled, during the block."""
    shared = SharedStatements()

    def share(connection: Connection) -> None:
        connection.execution_options(compiled_cache=shared)

    event.listen(Engine, "engine_connect", share)
    try:
        yield shared
    finally:
        event.remove(Engine, "engine_connect", share)
