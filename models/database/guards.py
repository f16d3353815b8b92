"""What the database itself guards: constraints and triggers that every audit expects to be there, and to work."""

import re
from collections.abc import Iterator
from typing import Any

from sqlalchemy import CheckConstraint, Connection, ForeignKeyConstraint, PrimaryKeyConstraint, UniqueConstraint
from sqlalchemy.dialects import postgresql

from models.database.schema import APPEND_ONLY, ERASABLE, NEVER_DELETED, metadata

MISSING = "is missing"
_PREPARER = postgresql.dialect().identifier_preparer  # type: ignore[no-untyped-call]


def broken_guards(connection: Connection) -> Iterator[tuple[str, str]]:
    """Yield the constraints and triggers that are missing or do not work, each with what is wrong with it."""
    if connection.dialect.name == "postgresql":
        yield from _on_postgresql(connection)
    else:
        yield from _on_sqlite(connection)


def constraint_names() -> dict[str, set[str]]:
    """Return the names of the constraints that each table should have."""
    kinds = (CheckConstraint, ForeignKeyConstraint, PrimaryKeyConstraint, UniqueConstraint)
    return {
        table.name: {_name(each) for each in table.constraints if isinstance(each, kinds)}
        for table in metadata.sorted_tables
    }


def _name(constraint: Any) -> str:  # noqa: ANN401  of any kind
    """Return the name that the naming convention gives a constraint."""
    name = _PREPARER.format_constraint(constraint)
    return str(name)


def _update_of(table: str) -> str:
    """Return which updates of an append-only table are refused, as a trigger says it: all but those of `ERASABLE`."""
    if table not in ERASABLE:
        return "UPDATE"
    kept = [column.name for column in metadata.tables[table].columns if column.name != ERASABLE[table]]
    return f"UPDATE OF {', '.join(kept)}"


# -- PostgreSQL -------------------------------------------------------------------------------------------------------


def postgresql_triggers() -> dict[str, str]:
    """Return the definitions of the triggers as PostgreSQL writes them, by their names."""
    refuse = "EXECUTE FUNCTION refuse_change()"
    triggers = {
        f"{table}_append_only": f"BEFORE DELETE OR {_update_of(table)} ON {table} FOR EACH ROW {refuse}"
        for table in APPEND_ONLY
    }
    for table, column in ERASABLE.items():
        triggers[f"{table}_{column}_only_erased"] = (
            f"BEFORE UPDATE OF {column} ON {table} FOR EACH ROW WHEN (new.{column} IS NOT NULL) {refuse}"
        )
    for table in NEVER_DELETED:
        columns = "UPDATE OF org_id, id, owner_id, kind"
        triggers[f"{table}_never_deleted"] = f"BEFORE DELETE OR {columns} ON {table} FOR EACH ROW {refuse}"
    for table in (*APPEND_ONLY, *NEVER_DELETED):
        triggers[f"{table}_no_truncate"] = f"BEFORE TRUNCATE ON {table} FOR EACH STATEMENT {refuse}"
    return {name: f"CREATE TRIGGER {name} {definition}" for name, definition in triggers.items()}


def _on_postgresql(connection: Connection) -> Iterator[tuple[str, str]]:
    validated: dict[str, bool] = dict(
        connection.exec_driver_sql(
            "SELECT c.relname || '.' || k.conname, k.convalidated FROM pg_constraint k "
            "JOIN pg_class c ON c.oid = k.conrelid WHERE c.relnamespace = current_schema()::regnamespace"
        ).all()
    )
    for table, names in constraint_names().items():
        for name in sorted(names):
            if f"{table}.{name}" not in validated:
                yield name, MISSING
            elif not validated[f"{table}.{name}"]:
                yield name, "was never validated"
    found = connection.exec_driver_sql(
        "SELECT t.tgname, pg_get_triggerdef(t.oid, true) AS definition, t.tgenabled::text AS enabled, t.tgisinternal, "
        "c.relname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid "
        "WHERE c.relnamespace = current_schema()::regnamespace"
    ).all()
    definitions = {row.tgname: row.definition for row in found}
    for name, definition in postgresql_triggers().items():
        if definitions.get(name) != definition:
            yield name, "is another one" if name in definitions else MISSING
    for row in found:
        if row.enabled not in ("O", "A"):  # those of foreign keys are triggers too
            yield f"{row.relname}: {'foreign keys' if row.tgisinternal else row.tgname}", "is disabled"
    source = connection.exec_driver_sql("SELECT prosrc FROM pg_proc WHERE proname = 'refuse_change'").scalar()
    if not re.match(r"\s*BEGIN\s+RAISE EXCEPTION ", source or ""):
        yield "refuse_change", "does not refuse"


# -- SQLite -----------------------------------------------------------------------------------------------------------


def sqlite_triggers() -> dict[str, str]:
    """Return the statements that made the triggers on SQLite, by the triggers' names."""
    verbs = [(table, "DELETE", "DELETE") for table in APPEND_ONLY]
    verbs += [(table, "UPDATE", _update_of(table)) for table in APPEND_ONLY]
    for table in NEVER_DELETED:
        verbs += [(table, "DELETE", "DELETE"), (table, "UPDATE", "UPDATE OF org_id, id, owner_id, kind")]
    triggers = {
        f"{table}_no_{verb.lower()}": f"BEFORE {when} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only: {verb} is refused'); END"
        for table, verb, when in verbs
    }
    for table, column in ERASABLE.items():
        triggers[f"{table}_{column}_only_erased"] = (
            f"BEFORE UPDATE OF {column} ON {table} WHEN new.{column} IS NOT NULL "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only: UPDATE is refused'); END"
        )
    return {name: f"CREATE TRIGGER {name} {definition}" for name, definition in triggers.items()}


def _on_sqlite(connection: Connection) -> Iterator[tuple[str, str]]:
    made: dict[str, str] = dict(
        connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'trigger')").all()
    )
    for table, names in constraint_names().items():
        present = set(re.findall(r"CONSTRAINT \"?(\w+)", made.get(table) or ""))
        for name in sorted(names - present):
            yield name, MISSING
    for name, statement in sqlite_triggers().items():
        if made.get(name) != statement:
            yield name, "is another one" if name in made else MISSING
