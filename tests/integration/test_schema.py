"""What the database itself refuses, whoever writes to it. The tests share a database, in which nothing changes."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, delete, insert, select, text, update
from sqlalchemy.exc import DatabaseError, IntegrityError

from models.database.engine import Database
from models.database.schema import accounts, charges, entries, orders, owner_changes, plans, users
from tests.factories import ACME, BILLING, OTHER, stock
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


@contextmanager
def refused_at_commit(database: Database) -> Iterator[Connection]:
    """Give a transaction whose end the database must refuse, for what a deferred foreign key says."""
    with database.engine.connect() as connection:
        transaction = connection.begin()
        yield connection
        with pytest.raises(IntegrityError, match=r"(?i)foreign key"):
            transaction.commit()
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
    valid = {"org_id": ACME, "account_id": account_id_of(database), "seq": 2, "amount": 1, "balance_after": 11,
             "debt_after": 0, "cause_kind": "refund", "cause_id": "x", "content": "", "hash": "",
             "at": NOON}  # fmt: skip
    return insert(entries).values(**{**valid, **fields})


def account(**fields: Any) -> Any:
    """Give the insertion of an empty account of john's, who has one of each kind."""
    valid = {"org_id": ACME, "id": 99, "owner_id": "john", "kind": "email", "available": 0, "debt": 0, "seq": 0,
             "hash": ""}  # fmt: skip
    return insert(accounts).values(**{**valid, **fields})


def charge(database: Database, **fields: Any) -> Any:
    """Give the insertion of a sent charge that is in order, unless `fields` are not."""
    valid = {
        "org_id": ACME,
        "job_id": "job-1",
        "task": "email.send",
        "kind": "email",
        "sender": "john",
        "owner_version": 0,
        "digest": "0" * 64,
        "account_id": account_id_of(database),
        "charged_by": "batch-1",
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
        "org_id": ACME,
        "name": "Anna",
        "email": "anna@acme.test",
        "role": "member",
        "credit_owner_id": "anna",
        "is_owner": True,
        "owner_version": 0,
        "created_at": NOON,
    }
    return insert(users).values(**{**valid, **fields})


def test_valid_rows_are_taken(history: Database) -> None:
    with undone(history) as connection:
        for statement in (entry(history), charge(history), user()):
            connection.execute(statement)


@pytest.mark.parametrize(
    ("column", "constraint"), [("available", "ck_accounts_never_below_zero"), ("debt", "ck_accounts_debt_not_negative")]
)
def test_a_balance_or_debt_below_zero_is_refused(history: Database, column: str, constraint: str) -> None:
    assert constraint in refused(history, update(accounts).values({column: -1}))


def test_a_balance_below_zero_is_refused_in_raw_sql(history: Database) -> None:
    overdraft = text("UPDATE accounts SET available = available - 11 WHERE owner_id = 'john'")

    assert "ck_accounts_never_below_zero" in refused(history, overdraft)


def test_a_second_account_of_a_kind_is_refused(history: Database) -> None:
    assert "unique" in refused(history, account()).lower()


def test_an_account_of_an_unknown_kind_is_refused(history: Database) -> None:
    assert "ck_accounts_known_kind" in refused(history, account(kind="fax"))


def test_an_account_of_nobody_is_refused(history: Database) -> None:
    assert "foreign key" in refused(history, account(owner_id="nobody")).lower()


# -- a balance and its last entry -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", ["available = available + 1", "available = available - 1", "seq = seq - 1", "seq = seq + 1", "debt = 1"]
)
def test_a_balance_without_its_entry_is_refused(history: Database, change: str) -> None:
    """A deferred foreign key says so at the end of the transaction, because the entry comes after the balance."""
    with refused_at_commit(history) as connection:
        connection.execute(text(f"UPDATE accounts SET {change} WHERE owner_id = 'john' AND kind = 'email'"))


def test_a_balance_with_an_entry_that_says_something_else_is_refused(history: Database) -> None:
    with refused_at_commit(history) as connection:
        connection.execute(entry(history, balance_after=12))
        connection.execute(
            text("UPDATE accounts SET seq = 2, available = 11 WHERE owner_id = 'john' AND kind = 'email'")
        )


def test_an_account_without_its_opening_entry_is_refused(history: Database) -> None:
    with refused_at_commit(history) as connection:
        connection.execute(user())
        connection.execute(account(owner_id="anna"))


def test_the_last_entry_of_an_account_cannot_be_removed_even_without_the_trigger(history: Database) -> None:
    off = "DROP TRIGGER entries_no_delete"
    if not history.is_sqlite:
        off = "ALTER TABLE entries DISABLE TRIGGER entries_append_only"
    with refused_at_commit(history) as connection:
        connection.execute(text(off))
        connection.execute(delete(entries).where(entries.c.account_id == account_id_of(history), entries.c.seq == 1))

    assert "append-only" in refused(history, delete(entries))


@pytest.mark.parametrize("owner", ["john", "mary"])
def test_an_account_cannot_be_removed(history: Database, owner: str) -> None:
    """Not even one that holds nothing: charges name accounts without a foreign key."""
    assert "append-only" in refused(history, delete(accounts).where(accounts.c.owner_id == owner))


@pytest.mark.parametrize("moved", [{"owner_id": "mary"}, {"kind": "sms"}, {"id": 99}, {"org_id": OTHER}])
def test_an_account_cannot_be_moved(history: Database, moved: dict[str, Any]) -> None:
    the_first = accounts.c.id == account_id_of(history)

    assert "append-only" in refused(history, update(accounts).where(the_first).values(moved))


# -- entries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({"amount": 0}, "ck_entries_moves_something"),
        ({"balance_after": -1}, "ck_entries_never_below_zero"),
        ({"debt_after": -1}, "ck_entries_debt_not_negative"),
        ({"seq": 0}, "ck_entries_counted_from_opening"),
        ({"cause_kind": "opening", "amount": 0}, "ck_entries_counted_from_opening"),
        ({"seq": -1}, "ck_entries_opens_empty"),
        ({"cause_kind": "gift"}, "ck_entries_known_cause"),
    ],
)
def test_an_entry_without_sense_is_refused(history: Database, fields: dict[str, Any], constraint: str) -> None:
    assert constraint in refused(history, entry(history, **fields))


def test_a_second_entry_with_the_same_cause_is_refused(history: Database) -> None:
    first = entry(history, cause_kind="charge", cause_id="batch-1")
    second = entry(history, seq=3, cause_kind="charge", cause_id="batch-1")

    assert "cause" in refused(history, second, after=first)


def test_entries_of_several_accounts_may_have_one_cause(history: Database) -> None:
    """A batch debits each account once, and all of its entries name the batch."""
    with undone(history) as connection:
        connection.execute(entry(history))
        connection.execute(entry(history, account_id=account_id_of(history, "mary"), seq=1))


def test_two_entries_with_the_same_number_in_an_account_are_refused(history: Database) -> None:
    assert "unique" in refused(history, entry(history, cause_id="y"), after=entry(history)).lower()


@pytest.mark.parametrize("table", [entries, orders, owner_changes], ids=lambda table: table.name)
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


@pytest.mark.parametrize("table", [entries, accounts], ids=lambda table: table.name)
def test_history_cannot_be_replaced(history: Database, table: Any) -> None:
    """SQLite's REPLACE and PostgreSQL's TRUNCATE are ways around a trigger on DELETE."""
    with history.snapshot() as connection:
        before = connection.execute(select(table)).all()
    way_around = f"TRUNCATE {table.name} CASCADE"
    if history.is_sqlite:
        way_around = f"REPLACE INTO {table.name} SELECT * FROM {table.name}"

    assert "append-only" in refused(history, text(way_around))

    with history.snapshot() as connection:
        assert connection.execute(select(table)).all() == before


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
    moved = update(users).where(users.c.id == "peter").values(org_id=OTHER)

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
REFUNDED = {"refunded": 3, "refunded_at": NOON, "refunded_by": "batch-2"}
FAILED = {"state": "failed", **REFUNDED}
UNPAID = {"account_id": None, "charged_by": None, "owner_version": None}
REFUSED = {"state": "refused", **UNPAID}
BULK = {"state": "bulk", "final_at": None, **UNPAID}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        REFUNDED,
        {"crashes": 2, "lease_id": "0" * 32},
        WAITING,
        {**WAITING, "handover_started_at": NOON, "crashes": 1, "lease_id": "0" * 32},
        SENDING,
        {**SENDING, "handover_started_at": NOON, "crashes": 1},
        UNKNOWN,
        FAILED,
        REFUSED,
        BULK,
        {**BULK, "due_at": NOON},
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
        ({**REFUNDED, "refunded_at": None}, "refund_has_its_time"),
        ({"refunded_at": NOON}, "refund_has_its_time"),
        ({**REFUNDED, "refunded_by": None}, "refund_has_its_entry"),
        ({"refunded_by": "batch-2"}, "refund_has_its_entry"),
        ({"state": "failed"}, "failed_is_refunded"),
        ({**FAILED, "refunded": 2}, "failed_is_refunded"),
        ({**WAITING, **REFUNDED}, "only_final_is_refunded"),
        ({**REFUSED, **REFUNDED}, "only_final_is_refunded"),
        (UNPAID, "somebody_paid"),
        ({"state": "refused"}, "somebody_paid"),
        ({"account_id": None}, "paid_by_an_entry"),
        ({"charged_by": None}, "paid_by_an_entry"),
        ({**REFUSED, "charged_by": "batch-1"}, "paid_by_an_entry"),
        ({"owner_version": None}, "paid_by_an_owner"),
        ({**SENDING, "lease_until": None}, "lease_while_sending"),
        ({"lease_until": NOON}, "lease_while_sending"),
        ({**UNKNOWN, "unknown_since": None}, "unknown_since_then"),
        ({**SENDING, "unknown_since": NOON}, "unknown_since_then"),
        ({**WAITING, "due_at": None}, "waiting_is_due"),
        ({**SENDING, "due_at": NOON}, "due_while_waiting"),
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


def test_organizations_may_use_the_same_id(history: Database) -> None:
    with undone(history) as connection:
        connection.execute(charge(history))
        connection.execute(charge(history, org_id=OTHER, sender="olga", account_id=account_id_of(history, "olga")))


def test_an_order_without_credits_is_refused(history: Database) -> None:
    order = {
        "org_id": ACME,
        "order_id": "o",
        "digest": "0",
        "buyer_id": "john",
        "owner_id": "john",
        "owner_version": 0,
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
