"""The hot statements as each database gets them, kept as files: a reader sees them, and a change shows in the diff.

`python -m tests.unit.test_statements` writes them anew.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import sqlglot
from sqlalchemy import Executable
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect

from models.money import ledger
from models.sends import charging, leases, settling
from models.users import users

SQLGLOT = {"postgresql": "postgres", "sqlite": "sqlite"}
FOLDER = Path(__file__).parent / "sql"
DIALECTS: dict[str, Dialect] = {
    "postgresql": postgresql.psycopg.PGDialect_psycopg(paramstyle="named"),  # type: ignore[no-untyped-call]
    "sqlite": sqlite.dialect(paramstyle="named"),
}
HOT: dict[str, Callable[[str], Executable | Sequence[Executable]]] = {
    "take_user_locks": lambda _: users._take_advisory_locks(exclusive=False),
    "take_user_locks_to_change": lambda _: users._take_advisory_locks(exclusive=True),
    "select_users": users._select_users,
    "select_payers": charging._select_payers,
    "insert_charges": lambda dialect: charging._insert_charges(dialect, leased=True),
    "insert_bulk_job": lambda dialect: charging._insert_charges(dialect, leased=False),
    "insert_bulk_messages": charging._insert_waiting,
    "move_and_enter": ledger._move_and_enter,
    "note_handovers": leases._note_handovers,
    "end_attempts_and_leases": settling._end_attempts_and_leases,
    "release_jobs": leases._release_jobs,
}
"""The statements of a send, in their order."""
FILES = [(name, dialect) for name in HOT for dialect in DIALECTS if not (dialect == "sqlite" and "user_locks" in name)]
"""Each statement for each database. SQLite has one writer at a time, and needs no lock of users."""


def statements(name: str, dialect: str) -> Iterator[str]:
    made = HOT[name](dialect)
    for statement in made if isinstance(made, Sequence) else [made]:
        compiled = statement.compile(dialect=DIALECTS[dialect])  # type: ignore[attr-defined]
        [pretty] = sqlglot.transpile(str(compiled), read=SQLGLOT[dialect], write=SQLGLOT[dialect], pretty=True)
        yield f"{pretty};\n"


def text(name: str, dialect: str) -> str:
    return "\n".join(statements(name, dialect))


@pytest.mark.parametrize(("name", "dialect"), FILES)
def test_a_hot_statement_is_the_one_in_its_file(name: str, dialect: str) -> None:
    file = FOLDER / f"{name}.{dialect}.sql"

    assert text(name, dialect) == file.read_text(), f"If this was meant: python -m {__name__}"


def test_no_file_is_left_over() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.{dialect}.sql" for name, dialect in FILES}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, dialect in FILES:
        (FOLDER / f"{name}.{dialect}.sql").write_text(text(name, dialect))
