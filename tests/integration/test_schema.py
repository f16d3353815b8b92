"""What the database itself refuses, whoever writes to it. The tests share a database, in which nothing changes."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, delete, insert, select, text, update
from sqlalchemy.exc import DatabaseError, IntegrityError

from models.database.engine import Database
from models.database.schema import accounts, charges, entries, orders, owner_changes, plans, refusals, users
from tests.factories import BILLING, stock
from tests.fakes import NOON, answer, make_context
from tests.integration.templates import database_filled_by


def fill_history(database: Database) -> None:
    """Save people, of whom john owns 10 email credits and peter uses them, and record one refusal."""
    stock(database, email=10)
    answer(make_context(database), "email.send", {})


history = database_filled_by(fill_history, scope="module")
"""A database with people, 10 email credits of john, peter as his credit user, and one refusal."""


def account_id_of(database: Database, owner: str = "john", kind: str = "email") -> int:
    with database.snapshot() as connection:
        found: int = connection.execute(
            select(accounts.c.id).where(accounts.c.owner_id == owner, accounts.c.kind == kind)
        ).scalar_one()
        return found


@contextmanager
def undone(database: Database) -> Iterator[Connection]:
    """Give a transaction that is rolled back. No constraint is deferred to its end."""
    with database.engine.connect() as connection, connection.begin() as transaction:
        yield connection
        transaction.rollback()


def refused(
    database: Database, statement: Any, *, after: Any = None, error: type[DatabaseError] = DatabaseError
) -> str:
    """Give the words in which the database refuses a statement, after another one that it has taken."""
    with undone(database) as connection:
        if after is not None:
            connection.execute(after)
        with pytest.raises(error) as refusal:
            connection.execute(statement)
    return str(refusal.value.orig)


def entry(database: Database, **fields: Any) -> Any:
    """Give the insertion of an entry that is in order, unless `fields` are not."""
    valid = {"account_id": account_id_of(database), "seq": 2, "amount": 1, "balance_after": 11, "cause": "x"}
    return insert(entries).values(**{**valid, "at": NOON, **fields})


def charge(database: Database, **fields: Any) -> Any:
    """Give the insertion of a sent charge that is in order, unless `fields` are not."""
    valid = {
        "job_id": "job-1",
        "task": "email.send",
        "kind": "email",
        "sender": "john",
        "digest": "0" * 64,
        "account_id": account_id_of(database),
        "credits": 3,
        "refunded": 0,
        "state": "sent",
        "attempts": 1,
        "crashes": 0,
        "created_at": NOON,
        "final_at": NOON,
    }
    return insert(charges).values(**{**valid, **fields})


def user(**fields: Any) -> Any:
    """Give the insertion of a user of `acme` that is in order, unless `fields` are not."""
    valid = {
        "id": "anna",
        "organization": "acme",
        "name": "Anna",
        "email": "anna@acme.test",
        "role": "member",
        "credit_owner_id": "anna",
        "is_owner": True,
        "created_at": NOON,
    }
    return insert(users).values(**{**valid, **fields})


def test_valid_rows_are_taken(history: Database) -> None:
    with undone(history) as connection:
        for statement in (entry(history), charge(history), user()):
            connection.execute(statement)


@pytest.mark.parametrize("column", ["available"])
def test_a_balance_below_zero_is_refused(history: Database, column: str) -> None:
    assert "ck_accounts_never_below_zero" in refused(history, update(accounts).values({column: -1}))


def test_a_balance_below_zero_is_refused_in_raw_sql(history: Database) -> None:
    overdraft = text("UPDATE accounts SET available = available - 11 WHERE owner_id = 'john'")

    assert "ck_accounts_never_below_zero" in refused(history, overdraft)


def test_a_second_account_of_a_kind_is_refused(history: Database) -> None:
    again = insert(accounts).values(owner_id="john", kind="email", available=0, seq=0)

    assert "unique" in refused(history, again).lower()


def test_an_account_of_an_unknown_kind_is_refused(history: Database) -> None:
    fax = insert(accounts).values(owner_id="john", kind="fax", available=0, seq=0)

    assert "ck_accounts_known_kind" in refused(history, fax)


def test_an_account_of_nobody_is_refused(history: Database) -> None:
    orphan = insert(accounts).values(owner_id="nobody", kind="email", available=0, seq=0)

    assert "foreign key" in refused(history, orphan).lower()


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({"amount": 0}, "ck_entries_moves_something"),
        ({"balance_after": -1}, "ck_entries_never_below_zero"),
        ({"seq": 0}, "ck_entries_counted_from_one"),
    ],
)
def test_an_entry_without_sense_is_refused(history: Database, fields: dict[str, Any], constraint: str) -> None:
    assert constraint in refused(history, entry(history, **fields))


def test_a_second_entry_with_the_same_cause_is_refused(history: Database) -> None:
    first = entry(history, cause="charge:job-1")
    second = entry(history, account_id=account_id_of(history, "mary"), seq=1, cause="charge:job-1")

    assert "cause" in refused(history, second, after=first)


def test_two_entries_with_the_same_number_in_an_account_are_refused(history: Database) -> None:
    assert "unique" in refused(history, entry(history, cause="y"), after=entry(history)).lower()


@pytest.mark.parametrize("table", [entries, owner_changes, refusals], ids=lambda table: table.name)
def test_history_cannot_be_rewritten_or_removed(history: Database, table: Any) -> None:
    with history.snapshot() as connection:
        before = connection.execute(select(table)).all()

    messages = [
        refused(history, update(table).values(at=NOON + timedelta(days=1))),
        refused(history, delete(table)),
    ]

    assert before != []
    assert all("append-only" in words for words in messages)
    with history.snapshot() as connection:
        assert connection.execute(select(table)).all() == before


def test_history_cannot_be_replaced(history: Database) -> None:
    """SQLite's REPLACE and PostgreSQL's TRUNCATE are ways around a trigger on DELETE."""
    with history.snapshot() as connection:
        before = connection.execute(select(entries)).all()
    way_around = "TRUNCATE entries"
    if history.is_sqlite:
        way_around = (
            "REPLACE INTO entries (account_id, seq, amount, balance_after, cause, at) "
            "SELECT account_id, seq, 99, 99, cause, at FROM entries"
        )

    refused(history, text(way_around))

    with history.snapshot() as connection:
        assert connection.execute(select(entries)).all() == before


def test_a_chain_of_owners_is_refused(history: Database) -> None:
    """Peter uses the credits of john, so nobody can use those of peter."""
    chain = update(users).where(users.c.id == "mary").values(credit_owner_id="peter", is_owner=False)

    assert "foreign key" in refused(history, chain).lower()


def test_an_owner_with_credit_users_cannot_become_one(history: Database) -> None:
    chain = update(users).where(users.c.id == "john").values(credit_owner_id="mary", is_owner=False)

    assert "foreign key" in refused(history, chain).lower()


def test_a_cycle_of_owners_is_refused(history: Database) -> None:
    cycle = update(users).where(users.c.id == "john").values(credit_owner_id="peter", is_owner=False)

    assert "foreign key" in refused(history, cycle).lower()


@pytest.mark.parametrize(
    "values",
    [
        {"credit_owner_id": "john"},
        {"is_owner": False},
        {"credit_owner_id": "john", "is_owner": False, "owner_is_owner": False},
    ],
)
def test_a_contradiction_about_who_is_a_credit_owner_is_refused(history: Database, values: dict[str, Any]) -> None:
    assert "ck_users_owner" in refused(history, update(users).where(users.c.id == "mary").values(values))


def test_an_owner_of_another_organization_is_refused(history: Database) -> None:
    foreigner = update(users).where(users.c.id == "mary").values(credit_owner_id="olga", is_owner=False)

    assert "foreign key" in refused(history, foreigner).lower()


def test_an_owner_who_does_not_exist_is_refused(history: Database) -> None:
    ghost = user(credit_owner_id="ghost", is_owner=False)

    assert "foreign key" in refused(history, ghost).lower()


def test_a_credit_user_cannot_be_moved_to_another_organization(history: Database) -> None:
    moved = update(users).where(users.c.id == "peter").values(organization="other")

    assert "foreign key" in refused(history, moved).lower()


def test_a_user_without_a_known_role_is_refused(history: Database) -> None:
    assert "foreign key" in refused(history, user(role="ghost")).lower()


def test_a_user_whose_credits_are_used_cannot_be_removed(history: Database) -> None:
    assert "foreign key" in refused(history, delete(users).where(users.c.id == "john")).lower()


WAITING = {"state": "waiting", "due_at": NOON, "final_at": None, "content": {"to": "x"}}
SENDING = {"state": "sending", "lease_until": NOON, "lease_id": "0" * 32, "final_at": None, "content": {"to": "x"}}
UNKNOWN = {
    "state": "unknown",
    "handover_started_at": NOON,
    "unknown_since": NOON,
    "final_at": None,
    "content": {"to": "x"},
}
FAILED = {"state": "failed", "refunded": 3, "refunded_at": NOON}
REFUSED = {"state": "refused", "account_id": None}
BULK = {"state": "bulk", "account_id": None, "final_at": None}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"refunded": 3, "refunded_at": NOON},
        {"crashes": 2, "lease_id": "0" * 32},
        WAITING,
        {**WAITING, "handover_started_at": NOON, "crashes": 1, "lease_id": "0" * 32},
        SENDING,
        {**SENDING, "handover_started_at": NOON, "crashes": 1},
        UNKNOWN,
        FAILED,
        REFUSED,
        BULK,
        {**BULK, "messages": 2, "due_at": NOON},
        {**WAITING, "due_at": None, "bulk_id": "job-0"},
    ],
)
def test_a_charge_in_any_proper_state_is_taken(history: Database, fields: dict[str, Any]) -> None:
    with undone(history) as connection:
        connection.execute(charge(history, **fields))


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({"state": "lost"}, "known_state"),
        ({"state": ""}, "known_state"),
        ({"kind": "fax"}, "known_kind"),
        ({"credits": 0}, "costs_something"),
        ({"credits": -1}, "costs_something"),
        ({**FAILED, "refunded": 4}, "refund_within_charge"),
        ({"refunded": -1}, "refund_within_charge"),
        ({"refunded": 3}, "refund_has_its_time"),
        ({"refunded_at": NOON}, "refund_has_its_time"),
        ({"state": "failed"}, "failed_is_refunded"),
        ({**FAILED, "refunded": 2}, "failed_is_refunded"),
        ({**WAITING, "refunded": 1, "refunded_at": NOON}, "only_final_is_refunded"),
        ({**REFUSED, "refunded": 1, "refunded_at": NOON}, "only_final_is_refunded"),
        ({"account_id": None}, "somebody_paid"),
        ({"state": "refused"}, "somebody_paid"),
        ({**SENDING, "lease_until": None}, "lease_while_sending"),
        ({"lease_until": NOON}, "lease_while_sending"),
        ({**UNKNOWN, "unknown_since": None}, "unknown_since_then"),
        ({**SENDING, "unknown_since": NOON}, "unknown_since_then"),
        ({**WAITING, "due_at": None}, "waiting_is_due"),
        ({**SENDING, "due_at": NOON}, "due_while_waiting"),
        ({"messages": 2}, "messages_of_bulk"),
        ({**WAITING, "messages": 2}, "messages_of_bulk"),
        ({**BULK, "messages": 0}, "messages_of_bulk"),
        ({"due_at": NOON}, "due_while_waiting"),
        ({"final_at": None}, "final_has_its_time"),
        ({**SENDING, "final_at": NOON}, "final_has_its_time"),
        ({**WAITING, "content": None}, "content_while_open"),
        ({"content": {"to": "x"}}, "content_while_open"),
        ({"handover_started_at": NOON}, "doubt_while_open"),
        ({**FAILED, "handover_started_at": NOON}, "doubt_while_open"),
        ({**REFUSED, "handover_started_at": NOON}, "doubt_while_open"),
        ({**BULK, "handover_started_at": NOON}, "doubt_while_open"),
    ],
)
def test_a_charge_that_contradicts_itself_is_refused(
    history: Database, fields: dict[str, Any], constraint: str
) -> None:
    # Which of two violated constraints is named first is the database's choice.
    assert "ck_charges_" in refused(history, charge(history, **fields))
    assert constraint in {check.name.removeprefix("ck_charges_") for check in _checks_of_charges()}


def _checks_of_charges() -> list[Any]:
    return [constraint for constraint in charges.constraints if str(constraint.name).startswith("ck_")]


def test_a_doubt_cannot_outlive_the_job(history: Database) -> None:
    """Once the job is final, it is known what became of it."""
    ended = update(charges).values(state="sent", final_at=NOON, content=None, unknown_since=None)

    assert "ck_charges_doubt_while_open" in refused(history, ended, after=charge(history, **UNKNOWN))


def test_a_charge_that_does_not_count_its_crashes_is_refused(history: Database) -> None:
    assert "crashes" in refused(history, charge(history, crashes=None))


def test_a_charge_under_a_known_id_is_refused(history: Database) -> None:
    assert "unique" in refused(history, charge(history), after=charge(history)).lower()


def test_an_order_without_credits_is_refused(history: Database) -> None:
    order = {
        "order_id": "o",
        "digest": "0",
        "buyer_id": "john",
        "owner_id": "john",
        "email": 0,
        "sms": 0,
        "amount": 1,
        "currency": "EUR",
        "billing": BILLING,
        "at": NOON,
    }

    assert "ck_orders_some_credits" in refused(history, insert(orders).values(order))
    assert "ck_orders_amount_not_negative" in refused(history, insert(orders).values({**order, "sms": 1, "amount": -1}))


def test_an_order_without_billing_information_is_refused(history: Database) -> None:
    refused(history, update(orders).values(billing=None), error=IntegrityError)


def test_a_plan_without_credits_or_with_a_negative_price_is_refused(history: Database) -> None:
    plan = {"id": "p", "name": "P", "email": 1, "sms": 0, "price": 0, "currency": "EUR"}

    assert "ck_plans_some_credits" in refused(history, insert(plans).values({**plan, "email": 0}))
    assert "ck_plans_some_credits" in refused(history, insert(plans).values({**plan, "email": 5, "sms": -1}))
    assert "ck_plans_price_not_negative" in refused(history, insert(plans).values({**plan, "price": -1}))


def test_postgresql_alone_refuses_a_text_that_is_too_long(history: Database) -> None:
    """SQLite ignores the length of a VARCHAR, so the wire contract must keep both databases alike."""
    statement = user(id="x" * 65, credit_owner_id="x" * 65)
    if history.is_sqlite:
        with undone(history) as connection:
            connection.execute(statement)
    else:
        assert "too long" in refused(history, statement)
