"""How state machines are run: each history has a fresh database of its own."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from shutil import copyfile

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from models.database.engine import Database
from tests.conftest import TEMPLATE
from tests.servers import PostgresServer

Opening = Callable[[], AbstractContextManager[Database]]


@contextmanager
def _opened(url: str, pool_size: int) -> Iterator[Database]:
    database = Database(url, pool_size=pool_size)
    yield database
    database.close()


@contextmanager
def fresh_sqlite(template: Path, file: Path, pool_size: int) -> Iterator[Database]:
    """Open a copy of a migrated SQLite database."""
    for leftover in (file, *(file.with_name(file.name + ending) for ending in ("-wal", "-shm"))):
        leftover.unlink(missing_ok=True)
    with _opened(f"sqlite:///{copyfile(template, file)}", pool_size) as database:
        yield database


@contextmanager
def fresh_postgres(server: PostgresServer, pool_size: int) -> Iterator[Database]:
    """Open a copy of a migrated PostgreSQL database, which exists for the length of the block."""
    with server.copy_of(TEMPLATE) as url, _opened(url, pool_size) as database:
        yield database


def run(
    machine: Callable[[Opening], RuleBasedStateMachine],
    open_database: Opening,
    examples: int,
    *allowed: HealthCheck,
) -> None:
    """Check so many histories of 40 steps. They may be slow, and may do what the health checks `allowed` warn of."""
    run_state_machine_as_test(
        lambda: machine(open_database),
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            print_blob=True,
            suppress_health_check=[HealthCheck.too_slow, *allowed],
        ),
    )
