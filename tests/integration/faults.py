"""Faults that are seeded into the database of a busy day, past the code, and the invariant that each of them breaks."""

from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

from sqlalchemy import Connection, insert, select

from models.database.schema import accounts, charges, orders
from models.money.accounts import AccountKey
from models.money.chain import Paid, content_of
from models.money.ledger import Move, post
from models.money.orders import order_content
from models.sends.charges import State
from tests.factories import ACME, BILLING
from tests.fakes import NOON

GAP = "An account's entries are counted without a gap"
BALANCE = "Each entry leaves the balance that the one before and its amount make"
CHAIN = "Each entry's hash is that of the one before and of itself"
CAUSE = "Each entry moves what it was made for, and has its content"
CHARGE = "Each charge has its entry, made when it was"
REFUND = "Each refund has its entry, made when it was"
EARNED = "Each refund is what the refused recipients cost"
ORDER = "Each order has its entries"
CORRECTION = "Each correction has its entries"
PAYER = "Each charge is paid by the sender's credit owner of then, in its kind"
OWNER = "Each order is credited to the buyer's credit owner of then"
CHANGE = "Each change of owner begins where the one before ended"
BULK = "A bulk job costs what its messages cost"
WAITS = "What waits is due, itself or by its bulk job"
HELD = "What is being sent is held under a lease"
USAGE = "An account's days of usage add up to its entries"
DAYS = "Each day of usage is what its charges cost"
DEBTS = "A debt is what reversals found spent, less what purchases paid of it first"
ORDERS = "An order is reversed by no more than it brought"
BELOW_ZERO = "No balance is below zero"
ACCOUNTS = "Each user has an account of each kind"
SHARING = "A credit owner owns their own credits, in the same organization"
LAST_CHANGE = "A user's credit owner is the one of their last change"
LAST_ENTRY = "An account holds what its last entry says"
STAYED = "What was checked of an account has stayed so"
LEASE = "No attempt outlives its lease"
DUE = "No job is due later than its longest retry"
UNKNOWN = "No message is unknown for long"

JOHNS, MARYS = "owner_id = 'john' AND kind = 'email'", "owner_id = 'mary' AND kind = 'email'"
_JOHNS, _MARYS = f"(SELECT id FROM accounts WHERE {JOHNS})", f"(SELECT id FROM accounts WHERE {MARYS})"
_LAST = f"org_id = 1 AND account_id = {_JOHNS} AND seq = (SELECT seq FROM accounts WHERE {JOHNS})"
_HELD = (
    "UPDATE charges SET state = 'sending', due_at = NULL, final_at = NULL, content = '{}', "
    "lease_until = '2026-01-05 20:00:00.000000', lease_id = 'gone' WHERE job_id = 'e0'"
)


def _entry_of(job_id: str, kind: str = "charge") -> str:
    cause = {"charge": "charged_by", "refund": "refunded_by"}[kind]
    return (
        f"org_id = 1 AND cause_kind = '{kind}' AND cause_id = (SELECT {cause} FROM charges WHERE job_id = '{job_id}')"
    )


class Fault(NamedTuple):
    """What is done to the database, and the invariant that it breaks."""

    name: str
    breaks: str
    does: str | Callable[[Connection], None]
    """Statements, or a function. `.charges` and so on are tables."""

    def seed(self, connection: Connection) -> None:
        """Do it."""
        if isinstance(self.does, str):
            for statement in self.does.split("; "):
                assert connection.exec_driver_sql(statement).rowcount != 0, statement
        else:
            self.does(connection)


# -- consistent forgeries: balance, entry, hash and what is behind it agree --------------------------------------------


def _account(connection: Connection, owner: str) -> AccountKey:
    of_owner = (accounts.c.owner_id == owner) & (accounts.c.kind == "email")
    return AccountKey(ACME, connection.execute(select(accounts.c.id).where(of_owner)).scalar_one())


def _charge_to_a_stranger(connection: Connection) -> None:
    """Let peter pay for john, whose credit owner he never was."""
    account, at = _account(connection, "peter"), NOON - timedelta(days=1)
    content = content_of([Paid("forged", "d", "john", 1)])
    assert post(connection, [Move(account=account, amount=-1, cause_kind="charge", cause_id="f", content=content)], at)
    connection.execute(
        insert(charges).values(
            **account._asdict(), job_id="forged", task="email.send", kind="email", sender="john", owner_version=0,
            digest="d", credits=1, charged_by="f", refunded=0, state=State.SENT, attempts=1, crashes=0, created_at=at,
            final_at=at,
        )
    )  # fmt: skip


def _order_for_a_stranger(connection: Connection) -> None:
    """Credit peter with what john has bought, whose credit owner he never was."""
    account, at = _account(connection, "peter"), NOON - timedelta(days=1)
    order = connection.execute(
        insert(orders)
        .values(
            org_id=ACME, order_id="forged", digest="d", buyer_id="john", owner_id="peter", owner_version=0, email=5,
            sms=0, amount=1, currency="EUR", billing=BILLING, at=at,
        )
        .returning(*orders.c)
    ).one()  # fmt: skip
    move = Move(account=account, amount=5, cause_kind="purchase", cause_id="forged", content=order_content(order))
    assert post(connection, [move], at)


# -- the matrix -------------------------------------------------------------------------------------------------------

FAULTS = [
    Fault("a balance and one more credit", LAST_ENTRY, f"UPDATE accounts SET available = available + 1 WHERE {JOHNS}"),
    Fault(
        "a balance, its last entry, and two more credits", CHAIN,
        f"UPDATE entries SET amount = amount + 2, balance_after = balance_after + 2 WHERE {_LAST}; "
        f"UPDATE accounts SET available = available + 2 WHERE {JOHNS}",
    ),
    Fault("an entry between others is deleted", GAP, f"DELETE FROM entries WHERE {_entry_of('e0')}"),
    Fault("the last entry is deleted", LAST_ENTRY, f"DELETE FROM entries WHERE {_LAST}"),
    Fault(
        "the last entry is deleted, and the account put back: a free message", CHARGE,
        f"UPDATE accounts SET seq = seq - 1, available = available - (SELECT amount FROM entries WHERE {_LAST}), "
        "hash = (SELECT hash FROM entries WHERE org_id = 1 AND account_id = accounts.id AND seq = accounts.seq - 1) "
        f"WHERE {JOHNS}; "
        f"DELETE FROM entries WHERE org_id = 1 AND account_id = {_JOHNS} "
        f"AND seq > (SELECT seq FROM accounts WHERE {JOHNS})",
    ),
    Fault(
        "another debit for no message", CAUSE,
        f"INSERT INTO entries SELECT org_id, account_id, seq + 1, -1, balance_after - 1, 0, 'charge', 'ghost', '', "
        f"'h', at FROM entries WHERE {_LAST}; "
        f"UPDATE accounts SET seq = seq + 1, available = available - 1, hash = 'h' WHERE {JOHNS}",
    ),
    Fault(
        "a gift without an order", CAUSE,
        f"INSERT INTO entries SELECT org_id, account_id, seq + 1, 1, balance_after + 1, 0, 'purchase', 'gift', '', "
        f"'h', at FROM entries WHERE {_LAST}; "
        f"UPDATE accounts SET seq = seq + 1, available = available + 1, hash = 'h' WHERE {JOHNS}",
    ),
    Fault("a charge is deleted", CAUSE, "DELETE FROM charges WHERE job_id = 'e0'"),
    Fault(
        "a message that nobody was debited for", CHARGE,
        "INSERT INTO charges (org_id, job_id, task, kind, sender, owner_version, digest, account_id, credits, "
        "charged_by, refunded, state, attempts, crashes, created_at, final_at) SELECT org_id, 'free', task, kind, "
        "sender, owner_version, digest, account_id, credits, 'nothing', 0, 'sent', 1, 0, created_at, final_at "
        "FROM charges WHERE job_id = 'e0'",
    ),
    Fault(
        "a charge points to another account", CHARGE,
        f"UPDATE charges SET account_id = {_MARYS} "
        f"WHERE job_id = 'e0'",
    ),
    Fault("a stranger has paid, consistently", PAYER, _charge_to_a_stranger),
    Fault("a stranger was credited, consistently", OWNER, _order_for_a_stranger),
    Fault("a charge of another kind than its account", PAYER, "UPDATE charges SET kind = 'sms' WHERE job_id = 'e0'"),
    Fault("another owner's version", PAYER, "UPDATE charges SET owner_version = 0 WHERE job_id = 'e3'"),
    Fault("a charge's sender", CAUSE, "UPDATE charges SET sender = 'mary' WHERE job_id = 'e0'"),
    Fault("a charge's digest", CAUSE, "UPDATE charges SET digest = 'other' WHERE job_id = 'e0'"),
    Fault("a charge costs one more", CAUSE, "UPDATE charges SET credits = credits + 1 WHERE job_id = 'e0'"),
    Fault(
        "a refund without an entry", REFUND,
        "UPDATE charges SET refunded = 1, refunded_by = 'nothing', refunded_at = created_at WHERE job_id = 'e0'",
    ),
    Fault("a refund that nobody earned", EARNED, "UPDATE charges SET recipients_refused = NULL WHERE job_id = 'e2'"),
    Fault("more refused than was given back", EARNED,
          "UPDATE charges SET recipients_refused = '{\"a@b.test\": \"550\"}' WHERE job_id = 'e0'"),
    Fault("a refund's entry is deleted", GAP, f"DELETE FROM entries WHERE {_entry_of('e1', 'refund')}"),
    Fault("a failed job turned to sent", EARNED, "UPDATE charges SET state = 'sent' WHERE job_id = 'e1'"),
    Fault(
        "usage of two senders is swapped", DAYS,
        "UPDATE usage_days SET credits = credits + 1 WHERE sender = 'peter' AND org_id = 1 "
        f"AND account_id = {_JOHNS}; "
        f"UPDATE usage_days SET credits = credits - 1 WHERE sender = 'john' AND account_id = {_JOHNS}",
    ),
    Fault(
        "a day of usage and one more credit", USAGE,
        "UPDATE usage_days SET credits = credits + 1 "
        "WHERE sender = 'john'",
    ),
    Fault("a day of usage and one more message", DAYS,
          "UPDATE usage_days SET messages = messages + 1 WHERE sender = 'john'"),
    Fault("a mark of usage is put back", USAGE, f"UPDATE usage_marks SET seq = seq - 1 WHERE account_id = {_JOHNS}"),
    Fault("the marks of usage are gone", DAYS, "DELETE FROM usage_marks"),
    Fault("a day of usage is deleted", USAGE, "DELETE FROM usage_days WHERE sender = 'john'"),
    Fault("a day of usage is another day", DAYS, "UPDATE usage_days SET day = '2026-01-04' WHERE sender = 'john'"),
    Fault(
        "messages wait for a bulk job that is not due", WAITS,
        "UPDATE charges SET state = 'waiting', final_at = NULL, content = '{}' WHERE job_id = 'bulk-1/0'",
    ),
    Fault("a message of a bulk job is deleted", BULK, "DELETE FROM charges WHERE job_id = 'bulk-1/3'"),
    Fault("a bulk job is deleted", BULK, "DELETE FROM charges WHERE job_id = 'bulk-1'"),
    Fault("a bulk job costs one more", BULK, "UPDATE charges SET credits = credits + 1 WHERE job_id = 'bulk-1'"),
    Fault("an order is deleted", CAUSE, "DELETE FROM orders WHERE order_id = 'order-1'"),
    Fault("an order's amount", CAUSE, "UPDATE orders SET amount = amount + 1 WHERE order_id = 'order-1'"),
    Fault("an order's currency", CAUSE, "UPDATE orders SET currency = 'USD' WHERE order_id = 'order-1'"),
    Fault("an order's buyer", CAUSE, "UPDATE orders SET buyer_id = 'mary' WHERE order_id = 'order-1'"),
    Fault("an order's time", ORDER, "UPDATE orders SET at = '2026-01-05 12:00:01.000000' WHERE order_id = 'order-1'"),
    Fault("an order's owner", CAUSE, "UPDATE orders SET owner_id = 'mary' WHERE order_id = 'order-1'"),
    Fault("an order of one more", CAUSE, "UPDATE orders SET sms = sms + 1 WHERE order_id = 'order-1'"),
    Fault(
        "an order that brought nothing", ORDER,
        "INSERT INTO orders (org_id, order_id, digest, buyer_id, owner_id, owner_version, email, sms, amount, "
        "currency, billing, at) SELECT org_id, 'empty', digest, buyer_id, owner_id, owner_version, email, sms, "
        "amount, currency, "
        "billing, at FROM orders WHERE order_id = 'order-1'",
    ),
    Fault(
        "an adjustment that changed nothing", CORRECTION,
        "INSERT INTO adjustments (org_id, adjustment_id, digest, actor_id, owner_id, email, sms, reason, at) "
        "SELECT org_id, 'empty', digest, buyer_id, owner_id, 1, 0, 'r', at FROM orders WHERE order_id = 'order-1'",
    ),
    Fault(
        "a reversal that took nothing", CORRECTION,
        "INSERT INTO reversals (org_id, reversal_id, digest, order_id, kind, email, sms, email_debt, sms_debt, reason, "
        "at) SELECT org_id, 'empty', digest, order_id, 'refund', 1, 0, 0, 0, 'r', at FROM orders "
        "WHERE order_id = 'order-1'",
    ),
    Fault("a credit owner changed by hand", LAST_CHANGE,
          "UPDATE users SET credit_owner_id = 'john', is_owner = (1 = 0) WHERE id = 'mary'"),
    Fault("the last change of owner is deleted", LAST_CHANGE,
          "DELETE FROM owner_changes WHERE user_id = 'peter' AND version = 2"),
    Fault("an earlier change of owner is deleted", CHANGE,
          "DELETE FROM owner_changes WHERE user_id = 'peter' AND version = 1"),
    Fault("an owner's version is put back", LAST_CHANGE, "UPDATE users SET owner_version = 1 WHERE id = 'peter'"),
    Fault("an entry's time", CHAIN, f"UPDATE entries SET at = '2026-01-05 12:00:01.000000' WHERE {_entry_of('e0')}"),
    Fault("an entry's content", CHAIN, f"UPDATE entries SET content = 'other' WHERE {_entry_of('e0')}"),
    Fault(
        "an entry's balance", BALANCE,
        f"UPDATE entries SET balance_after = balance_after + 1 "
        f"WHERE {_entry_of('e0')}",
    ),
    Fault("an account's hash", LAST_ENTRY, f"UPDATE accounts SET hash = 'other' WHERE {JOHNS}"),
    Fault("a charge's time, moved a month", CAUSE,
          "UPDATE charges SET created_at = '2025-12-05 12:00:00.000000' WHERE job_id = 'e0'"),
    Fault(
        "a paid charge that says it was refused", CAUSE,
        "UPDATE charges SET state = 'refused', account_id = NULL, charged_by = NULL, owner_version = NULL "
        "WHERE job_id = 'e0'",
    ),
    Fault(
        "an order, its entry, and one more credit", CHAIN,
        f"UPDATE entries SET amount = amount + 1, balance_after = balance_after + 1 "
        f"WHERE account_id = {_JOHNS} AND cause_id = 'order-1'; "
        "UPDATE orders SET email = email + 1 WHERE order_id = 'order-1'",
    ),
    Fault("a held job without its lease", HELD, _HELD),
    Fault(
        "a lease that ended long ago", LEASE,
        _HELD.replace("20:00", "12:00") + "; INSERT INTO leases (org_id, lease_id, until, job_ids) VALUES "
        "(1, 'gone', '2026-01-05 12:00:00.000000', '[\"e0\"]')",
    ),
    Fault(
        "a job due in the year 2999", DUE,
        "UPDATE charges SET state = 'waiting', final_at = NULL, content = '{}', due_at = '2999-01-01 00:00:00.000000' "
        "WHERE job_id = 'e0'",
    ),
    Fault("a message unknown since months", UNKNOWN,
          "UPDATE charges SET unknown_since = '2025-10-01 00:00:00.000000' WHERE job_id = 'e5'"),
    Fault("an account is deleted", ACCOUNTS, f"DELETE FROM accounts WHERE {MARYS}"),
    Fault(
        "an owner of another organization", SHARING,
        "UPDATE users SET credit_owner_id = 'olga', is_owner = (1 = 0) "
        "WHERE id = 'mary'",
    ),
    Fault(
        "an owner who never was", SHARING,
        "UPDATE users SET credit_owner_id = 'ghost', is_owner = (1 = 0) "
        "WHERE id = 'mary'",
    ),
]  # fmt: skip
"""The matrix: each fault is found by the next audit while it is new, and else within one circle."""

_NO_TRIGGER = "DROP TRIGGER accounts_never_deleted ON accounts"
_HALF_A_TRIGGER = (
    "CREATE TRIGGER accounts_never_deleted BEFORE DELETE ON accounts FOR EACH ROW EXECUTE FUNCTION refuse_change()"
)
_NO_CHECK = "ALTER TABLE accounts DROP CONSTRAINT ck_accounts_never_below_zero"
_UNCHECKED = "ALTER TABLE accounts ADD CONSTRAINT ck_accounts_never_below_zero CHECK (available >= 0) NOT VALID"

GUARD_FAULTS = {
    "postgresql": [
        _NO_CHECK,
        "ALTER TABLE accounts DROP CONSTRAINT fk_accounts_last_entry",
        "DROP TRIGGER entries_append_only ON entries",
        "DROP TRIGGER orders_no_truncate ON orders",
        "ALTER TABLE entries DISABLE TRIGGER entries_append_only",
        "ALTER TABLE users DISABLE TRIGGER ALL",
        f"{_NO_TRIGGER}; {_HALF_A_TRIGGER}",
        f"{_NO_CHECK}; {_UNCHECKED}",
        "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW;END'",
    ],
    "sqlite": ["DROP TRIGGER entries_no_update", "DROP TRIGGER orders_no_delete", "DROP TRIGGER accounts_no_update"],
}
"""What takes away a guard of the database."""
