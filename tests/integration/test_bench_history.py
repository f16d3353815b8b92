"""The long history that the bench writes is one that Postage could have written."""

from contextlib import closing

from sqlalchemy import inspect, text

from bench.history import fill
from bench.rig import make_people
from models.database.engine import Database, utc_now
from tests.integration.stored import findings


def shape_of(database: Database) -> list[object]:
    """Give the keys, indexes and references of the tables that are filled."""
    inspector = inspect(database.engine)
    return [
        [inspector.get_pk_constraint(table), sorted(inspector.get_indexes(table), key=str),
         sorted(inspector.get_unique_constraints(table), key=str)]
        for table in ("charges", "entries")
    ] + [inspector.get_foreign_keys("decisions")]  # fmt: skip


def test_an_audit_finds_nothing_and_every_index_is_there_again(postgres_url: str) -> None:
    with closing(Database(postgres_url)) as database:
        make_people(database, owners=3)
        before = shape_of(database)

        fill(postgres_url, 1_000, say=lambda _words: None)

        assert findings(database, utc_now()) == []
        with database.snapshot() as connection:
            paid = text("SELECT count(*) FROM charges JOIN accounts ON accounts.id = account_id WHERE owner_id = 'hot'")
            assert connection.execute(paid).scalar_one() == 501
        assert shape_of(database) == before
