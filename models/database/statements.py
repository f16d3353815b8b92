"""Parts of statements that are written the same way on both databases, and what their planners must be told."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    CursorResult,
    Delete,
    Executable,
    Insert,
    Integer,
    Select,
    String,
    Table,
    Update,
    and_,
    false,
    func,
    literal_column,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

T = TypeVar("T")


class sha256_hex(GenericFunction[str]):  # noqa: N801  a function of SQL
    """The SHA-256 of a text in UTF-8, as hex digits. On SQLite it is a function of the program (engine.py)."""

    type = String()
    inherit_cache = True


@compiles(sha256_hex, "postgresql")
def _on_postgresql(element: sha256_hex, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401  SQLAlchemy's
    return f"encode(sha256(convert_to({compiler.process(element.clauses, **options)}, 'UTF8')), 'hex')"


class unindexed(GenericFunction[Any]):  # noqa: N801  a part of SQL
    """A column by which SQLite is not to search (https://www.sqlite.org/optoverview.html, "unary +")."""

    inherit_cache = True


@compiles(unindexed)
def _column(element: unindexed, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401  SQLAlchemy's
    sign = "+" if compiler.dialect.name == "sqlite" else ""
    return sign + compiler.process(element.clauses, **options)


class in_subquery(GenericFunction[int]):  # noqa: N801  a part of SQL
    """Whether a column is one of the values of a subquery, which every planner expects to be few."""

    type = Integer()  # SQLAlchemy would compare a boolean function with 1, and SQLite not see the condition in it
    inherit_cache = True


@compiles(in_subquery)
def _in(element: in_subquery, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401  SQLAlchemy's
    column, subquery = (compiler.process(clause, **options) for clause in element.clauses)
    return f"{column} IN {subquery}"


@compiles(in_subquery, "postgresql")
def _any(element: in_subquery, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401  SQLAlchemy's
    column, subquery = (compiler.process(clause, **options) for clause in element.clauses)
    return f"{column} = ANY (ARRAY {subquery})"


def by_organization(keys: Iterable[tuple[int, T]]) -> dict[int, list[T]]:
    """Return the ids of keys by their organization, both in order."""
    found: defaultdict[int, list[T]] = defaultdict(list)
    for org_id, its_id in sorted(keys):
        found[org_id].append(its_id)
    return found


def is_among(key: Sequence[ColumnElement[Any]], keys: Iterable[tuple[int, Any]]) -> ColumnElement[bool]:
    """Whether a key of an organization and an id is one of `keys`.

    It is written organization by organization, since SQLite searches no index for pairs of values.
    """
    org_id, its_id = key
    return or_(false(), *((org_id == each) & its_id.in_(ids) for each, ids in by_organization(keys).items()))


def is_selected(key: Sequence[ColumnElement[Any]], keys: Select[*tuple[Any, ...]]) -> ColumnElement[bool]:
    """Whether a key is one of the few that `keys` selects.

    It has a condition for each column too, without which PostgreSQL may expect many keys and read the whole table, and
    SQLite searches an index by the first column only.
    """
    by_column = [
        in_subquery(column, keys.with_only_columns(selected, maintain_column_froms=True).scalar_subquery())
        for column, selected in zip(key, keys.selected_columns, strict=True)
    ]
    return and_(*by_column, tuple_(*map(unindexed, key)).in_(keys))


class lines_digest(GenericFunction[str]):  # noqa: N801  a function of SQL
    """The SHA-256 of all lines of a group, sorted and joined (`money.chain.content_of`); an aggregate of SQL.

    Lines are sorted by their bytes, as Python sorts them. On SQLite it is an aggregate of the program (engine.py).
    """

    type = String()
    inherit_cache = True


@compiles(lines_digest, "postgresql")
def _lines_on_postgresql(element: lines_digest, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401
    line = compiler.process(element.clauses, **options)
    lines = f"""string_agg({line}, E'\\n' ORDER BY {line} COLLATE "C")"""
    return f"encode(sha256(convert_to({lines}, 'UTF8')), 'hex')"


class microseconds_of(GenericFunction[int]):  # noqa: N801  a function of SQL
    """The microseconds between 1970 in UTC and a stored time (`money.chain.microseconds`)."""

    type = BigInteger()
    inherit_cache = True


@compiles(microseconds_of, "postgresql")
def _microseconds_on_postgresql(element: microseconds_of, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401
    at = compiler.process(element.clauses, **options)
    return f"CAST(extract(epoch FROM {at}) * 1000000 AS BIGINT)"


@compiles(microseconds_of, "sqlite")
def _microseconds_on_sqlite(element: microseconds_of, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401
    at = compiler.process(element.clauses, **options)
    # Without its fraction: strftime counts in milliseconds, and would round the last of a second up to the next one.
    return f"(strftime('%s', substr({at}, 1, 19)) * 1000000 + substr({at}, 21))"


class count_keys(GenericFunction[int]):  # noqa: N801  a function of SQL
    """How many keys a JSON object has; NULL for what is no object."""

    type = Integer()
    inherit_cache = True


@compiles(count_keys, "postgresql")
def _keys_on_postgresql(element: count_keys, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401
    value = compiler.process(element.clauses, **options)
    keys = f"(SELECT count(*) FROM json_object_keys({value}))"  # noqa: S608  no input
    return f"CASE WHEN json_typeof({value}) = 'object' THEN {keys} END"


@compiles(count_keys, "sqlite")
def _keys_on_sqlite(element: count_keys, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401
    value = compiler.process(element.clauses, **options)
    return f"CASE WHEN json_type({value}) = 'object' THEN (SELECT count(*) FROM json_each({value})) END"  # noqa: S608  no input


def insert(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """Return an INSERT of the connection's dialect, which knows ON CONFLICT.

    Use RETURNING to learn which rows were inserted: `rowcount` is -1 on both databases.
    """
    return insert_for(connection.dialect.name, table)


def insert_for(dialect: str, table: Table) -> postgresql.Insert | sqlite.Insert:
    """Return the same for a dialect by its name."""
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


def sql_literal(value: str | int) -> ColumnElement[Any]:
    """Return a constant of the program as text of the statement: a parameter would be sent with every execution."""
    if isinstance(value, int):
        return literal_column(str(value), Integer)
    return literal_column(f"'{value}'", String)


def chained(
    dialect: str, first: Insert | Update | Delete, then: Insert | Update, *, first_name: str
) -> Sequence[Executable]:
    """Return two changes that do not see each other, to be run by `execute_chain`.

    PostgreSQL runs them as one statement, in which `first` is the common table expression `first_name`.
    """
    return [then.add_cte(first.cte(first_name))] if dialect == "postgresql" else [first, then]


def execute_chain(
    connection: Connection, statements: Sequence[Executable], parameters: Mapping[str, Any]
) -> CursorResult[*tuple[Any, ...]]:
    """Execute statements that share their parameters. Returns the result of the last one."""
    *before, last = statements
    for statement in before:
        connection.execute(statement, parameters)
    return connection.execute(last, parameters)


def lock_overdue(
    connection: Connection,
    key: Sequence[ColumnElement[Any]],
    at: ColumnElement[datetime],
    now: datetime,
    limit: int,
    *conditions: ColumnElement[bool],
) -> list[tuple[Any, ...]]:
    """Lock rows whose time `at` has come by `now`, and return their keys, the most overdue first.

    Rows that another transaction has locked are skipped: somebody is handling them. The locks last until the
    transaction ends.
    """
    overdue = select(*key).where(at <= now, *conditions).order_by(at).limit(limit).with_for_update(skip_locked=True)
    return [tuple(row) for row in connection.execute(overdue)]


_FEW_ROWS = {
    **dict.fromkeys(("enable_seqscan", "enable_hashjoin", "enable_mergejoin"), "off"),
    "cpu_tuple_cost": "1",  # a hundred times as much as usual: a plan that reads fewer rows is the better one
    "jit": "off",  # it would begin at costs that few rows now reach
}


def search_by_index(connection: Connection) -> None:
    """Make PostgreSQL search by index until the transaction ends, because few rows lie behind a mark.

    The planner has no statistics on how far an entry's number exceeds its account's mark. It guesses a third of all
    entries, and would read every one of them.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(*(func.set_config(name, value, true()) for name, value in _FEW_ROWS.items())))
