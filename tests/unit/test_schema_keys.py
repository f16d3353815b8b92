"""Tables that grow can be spread over several database hosts by organization, since their keys contain it."""

import pytest
from sqlalchemy import ForeignKeyConstraint, PrimaryKeyConstraint, Table, UniqueConstraint

from models.database.schema import LOCAL_TABLES, REFERENCE_TABLES, metadata

GROWING = [table for name, table in metadata.tables.items() if name not in {*REFERENCE_TABLES, *LOCAL_TABLES}]
by_name = pytest.mark.parametrize("table", GROWING, ids=lambda table: table.name)


@by_name
def test_each_unique_key_contains_the_organization(table: Table) -> None:
    keys = [each for each in table.constraints if isinstance(each, PrimaryKeyConstraint | UniqueConstraint)]

    assert keys
    assert [key.name for key in keys if "org_id" not in key.columns] == []
    assert [index.name for index in table.indexes if index.unique and "org_id" not in index.columns] == []


@by_name
def test_each_foreign_key_to_another_such_table_contains_the_organization(table: Table) -> None:
    keys = [each for each in table.constraints if isinstance(each, ForeignKeyConstraint)]

    to_growing = [key for key in keys if key.referred_table.name not in REFERENCE_TABLES]
    pairs = [[(element.parent.name, element.column.name) for element in key.elements] for key in to_growing]

    assert [pair for pair in pairs if ("org_id", "org_id") not in pair] == []


def test_no_table_refers_to_one_that_stays_on_one_host() -> None:
    referred = {key.column.table.name for table in metadata.tables.values() for key in table.foreign_keys}

    assert referred & set(LOCAL_TABLES) == set()


@pytest.mark.parametrize("name", ["charges", "entries", "leases", "audit_marks", "usage_marks", "usage_days"])
def test_no_charge_or_entry_locks_an_account_by_a_foreign_key(name: str) -> None:
    assert {key.column.table.name for key in metadata.tables[name].foreign_keys} == set()
