"""The ledger: moves of several accounts in one statement, debts, and the chain of hashes."""

from datetime import datetime, timedelta

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import literal, select, text

from models.database.engine import Database
from models.database.schema import UtcDateTime, accounts, entries
from models.database.statements import microseconds_of
from models.money import ledger
from models.money.accounts import AccountKey, accounts_of
from models.money.chain import GENESIS, entry_hash, microseconds
from models.money.ledger import Move
from tests.chains import broken_hashes
from tests.factories import ACME, OTHER
from tests.fakes import NOON
from tests.integration.audited import damage

ODD_MOMENT = NOON + timedelta(hours=3, microseconds=7)


def email_account(database: Database, owner: str, org_id: int = ACME) -> AccountKey:
    with database.snapshot() as connection:
        return accounts_of(connection, org_id, owner)["email"]


def move(account: AccountKey, amount: int, debt: int = 0, cause_id: str = "cause-1") -> Move:
    """Give a move that needs no order behind it."""
    return Move(account=account, amount=amount, debt=debt, cause_kind="reversal", cause_id=cause_id, content="c" * 64)


def test_the_hashes_after_a_busy_day_are_those_of_the_chain(busy: Database) -> None:
    with busy.snapshot() as connection:
        counts = connection.execute(text("SELECT cause_kind, count(*) FROM entries GROUP BY cause_kind")).all()

        assert broken_hashes(connection) == []
    assert {kind for kind, _ in counts} == {"opening", "purchase", "charge", "refund"}


@given(at=st.timedeltas(timedelta(days=-20_000), timedelta(days=100_000)).map(NOON.__add__))
@example(at=NOON.replace(microsecond=999_500))
@example(at=NOON.replace(microsecond=999_999))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_database_counts_the_microseconds_that_the_chain_counts(database: Database, at: datetime) -> None:
    with database.snapshot() as connection:
        counted = connection.execute(select(microseconds_of(literal(at, UtcDateTime)))).scalar_one()

    assert counted == microseconds(at)


def test_the_database_hashes_as_the_chain_does(stocked: Database) -> None:
    """With debts, a time with microseconds, and accounts of several organizations in one statement."""
    moves = [
        move(email_account(stocked, "john"), -10, debt=3),
        move(email_account(stocked, "mary"), 0, debt=1),
        move(email_account(stocked, "olga", OTHER), 2),
    ]

    moved = stocked.write(lambda connection: ledger.post(connection, moves, ODD_MOMENT))
    again = [move(moves[0].account, 5, debt=-2, cause_id="cause-2")]
    stocked.write(lambda connection: ledger.post(connection, again, ODD_MOMENT))

    assert moved == {each.account for each in moves}
    with stocked.snapshot() as connection:
        for row in connection.execute(select(accounts)).all():
            of_it = entries.c.org_id == row.org_id, entries.c.account_id == row.id
            last = GENESIS
            for entry in connection.execute(select(entries).where(*of_it).order_by(entries.c.seq)).all():
                last = entry_hash(last, **{name: value for name, value in entry._mapping.items() if name != "hash"})
                assert entry.hash == last
            assert (row.hash, row.seq, row.available, row.debt) == (
                last,
                entry.seq,
                entry.balance_after,
                entry.debt_after,
            )


def test_a_move_that_an_account_cannot_afford_leaves_the_others(stocked: Database) -> None:
    john, mary = email_account(stocked, "john"), email_account(stocked, "mary")

    moved = stocked.write(lambda connection: ledger.post(connection, [move(mary, -1), move(john, -4)], NOON))

    assert moved == {john}
    balances = stocked.write(lambda connection: ledger.lock_accounts(connection, [john, mary]))
    assert balances == {john: (6, 0), mary: (0, 0)}


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE entries SET amount = amount - 1, balance_after = balance_after - 1 WHERE seq = 1",
        "UPDATE entries SET at = '2026-01-05 13:00:00' WHERE cause_kind = 'refund'",
        "UPDATE entries SET hash = '0' WHERE seq = 0",
        "UPDATE charges SET digest = '0' WHERE state = 'sent'",
        "UPDATE charges SET sender = 'mary' WHERE state = 'sent'",
        "UPDATE orders SET amount = amount + 1",
        "UPDATE accounts SET hash = '0'",
    ],
)
def test_whoever_changes_what_was_entered_breaks_the_chain(busy: Database, change: str) -> None:
    damage(busy, change)

    with busy.snapshot() as connection:
        assert broken_hashes(connection) != []
