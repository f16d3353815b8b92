"""Organizations can be spread over many database hosts: every key of a table that grows holds the organization."""

import pytest
from sqlalchemy import Table, UniqueConstraint

from models.database.schema import LOCAL_TABLES, REFERENCE_TABLES, metadata

GROWING = [table for table in metadata.sorted_tables if table.name not in {*REFERENCE_TABLES, *LOCAL_TABLES}]


def test_the_exceptions_are_tables() -> None:
    assert set(REFERENCE_TABLES) | set(LOCAL_TABLES) < set(metadata.tables)


@pytest.mark.parametrize("table", GROWING, ids=lambda table: table.name)
def test_each_unique_key_of_a_growing_table_holds_the_organization(table: Table) -> None:
    uniques = [constraint for constraint in table.constraints if isinstance(constraint, UniqueConstraint)]
    keys = [table.primary_key, *uniques]

    assert [key.name for key in keys if "org_id" not in key.columns] == []
    assert [index.name for index in table.indexes if index.unique and "org_id" not in index.columns] == []


@pytest.mark.parametrize("table", GROWING, ids=lambda table: table.name)
def test_each_foreign_key_between_growing_tables_holds_the_organization(table: Table) -> None:
    between = [key for key in table.foreign_key_constraints if key.referred_table in GROWING]

    assert [key.name for key in between if "org_id" not in key.columns] == []


def test_no_table_refers_to_one_that_stays_on_one_host() -> None:
    referred = {key.column.table.name for table in metadata.tables.values() for key in table.foreign_keys}

    assert referred & set(LOCAL_TABLES) == set()


@pytest.mark.parametrize("name", ["charges", "entries", "leases", "audit_marks", "usage_marks", "usage_days"])
def test_what_is_written_with_a_charge_locks_no_account_by_a_foreign_key(name: str) -> None:
    assert metadata.tables[name].foreign_keys == set()
