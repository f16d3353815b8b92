"""Every table, with the constraints that refuse to store a wrong state. Times are UTC.

A user has two accounts, one for each kind of credit. A balance moves only together with an entry. A charge says who
sent a message, who paid, how much, and what became of it.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    literal_column,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time in UTC. SQLite stores no offset, so it is removed on the way in and added on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the time as the database stores it."""
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Return the stored time as an aware datetime."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _id(name: str, *args: Any, **options: Any) -> Column[str]:  # noqa: ANN401  passed through to Column
    return Column(name, String(64), *args, **options)


def _key() -> Column[int]:
    # SQLite assigns numbers only to an INTEGER primary key.
    return Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True)


roles = Table(
    "roles",
    metadata,
    _id("organization", primary_key=True),
    _id("role", primary_key=True),
    Column("view_user_list", Boolean, nullable=False),
    Column("edit_user", Boolean, nullable=False),
)

users = Table(
    "users",
    metadata,
    _id("id", primary_key=True),
    _id("organization", nullable=False),
    Column("name", String(500), nullable=False),
    Column("email", String(320), nullable=False),
    _id("role", nullable=False),
    Column("billing", JSON(none_as_null=True)),
    _id("credit_owner_id", nullable=False),
    Column("is_owner", Boolean, nullable=False),
    # Always true: the second half of the composite foreign key below, which then matches credit owners only.
    Column("owner_is_owner", Boolean, nullable=False, server_default=literal_column("true")),
    Column("created_at", UtcDateTime, nullable=False),
    CheckConstraint("is_owner = (credit_owner_id = id)", name="owner_owns_themselves"),
    CheckConstraint("owner_is_owner", name="owner_is_owner"),
    UniqueConstraint("id", "is_owner", "organization"),
    # Sharing is one level deep and stays inside an organization: no chain, cycle or stranger can be stored.
    ForeignKeyConstraint(
        ["credit_owner_id", "owner_is_owner", "organization"],
        ["users.id", "users.is_owner", "users.organization"],
        name="fk_users_credit_owner",
    ),
    ForeignKeyConstraint(["organization", "role"], ["roles.organization", "roles.role"], name="fk_users_role"),
    Index("ix_users_organization_id", "organization", "id"),
    Index("ix_users_credit_owner_id", "credit_owner_id"),
)

plans = Table(
    "plans",
    metadata,
    _id("id", primary_key=True),
    Column("name", String(500), nullable=False),
    Column("email", BigInteger, nullable=False),
    Column("sms", BigInteger, nullable=False),
    Column("price", BigInteger, nullable=False),
    Column("currency", String(3), nullable=False),
    CheckConstraint("email >= 0 AND sms >= 0 AND email + sms > 0", name="some_credits"),
    CheckConstraint("price >= 0", name="price_not_negative"),
)

accounts = Table(
    "accounts",
    metadata,
    _key(),
    _id("owner_id", ForeignKey("users.id"), nullable=False),
    Column("kind", String(5), nullable=False),
    Column("available", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    UniqueConstraint("owner_id", "kind"),
    CheckConstraint("kind IN ('email', 'sms')", name="known_kind"),
    CheckConstraint("available >= 0", name="never_below_zero"),
    # Free space on the page for new versions of a row that changes all the time (heap-only updates).
    postgresql_with={"fillfactor": 50},
)

entries = Table(
    "entries",
    metadata,
    Column("account_id", BigInteger, ForeignKey("accounts.id"), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("amount", BigInteger, nullable=False),
    Column("balance_after", BigInteger, nullable=False),
    Column("cause", String(120), nullable=False, unique=True),
    Column("at", UtcDateTime, nullable=False),
    CheckConstraint("amount <> 0", name="moves_something"),
    CheckConstraint("balance_after >= 0", name="never_below_zero"),
    CheckConstraint("seq > 0", name="counted_from_one"),
)

charges = Table(
    "charges",
    metadata,
    Column("job_id", String(72), primary_key=True),
    Column("task", String(32), nullable=False),
    Column("kind", String(5), nullable=False),
    _id("sender", nullable=False),
    Column("digest", String(64), nullable=False),
    Column("account_id", BigInteger, ForeignKey("accounts.id")),
    Column("credits", BigInteger, nullable=False),
    Column("refunded", BigInteger, nullable=False),
    Column("refunded_at", UtcDateTime),
    Column("state", String(8), nullable=False),
    Column("reason", String(40)),
    Column("detail", Text),
    Column("attempts", SmallInteger, nullable=False),
    Column("lease_until", UtcDateTime),
    Column("due_at", UtcDateTime),
    Column("crashes", SmallInteger, nullable=False),
    # The lease of the last attempt. It is recognized again after a commit whose answer was lost.
    Column("lease_id", String(32)),
    # Since when the carrier may have the message without our knowing its answer.
    Column("handover_started_at", UtcDateTime),
    # Since when the outcome is unknown, so that a person has to decide.
    Column("unknown_since", UtcDateTime),
    Column("content", JSON(none_as_null=True)),
    Column("recipients_refused", JSON(none_as_null=True)),
    Column("carrier_reference", String(300)),
    _id("bulk_id"),
    # Of a bulk job whose entry paid for all its messages: their number.
    Column("messages", SmallInteger),
    Column("created_at", UtcDateTime, nullable=False),
    Column("final_at", UtcDateTime),
    CheckConstraint("kind IN ('email', 'sms')", name="known_kind"),
    CheckConstraint(
        "state IN ('waiting', 'sending', 'sent', 'failed', 'unknown', 'refused', 'bulk')", name="known_state"
    ),
    CheckConstraint("credits > 0", name="costs_something"),
    CheckConstraint("refunded BETWEEN 0 AND credits", name="refund_within_charge"),
    CheckConstraint("(refunded_at IS NOT NULL) = (refunded > 0)", name="refund_has_its_time"),
    CheckConstraint("state <> 'failed' OR refunded = credits", name="failed_is_refunded"),
    CheckConstraint("refunded = 0 OR state IN ('sent', 'failed')", name="only_final_is_refunded"),
    CheckConstraint("(account_id IS NULL) = (state IN ('refused', 'bulk'))", name="somebody_paid"),
    CheckConstraint("(lease_until IS NOT NULL) = (state = 'sending')", name="lease_while_sending"),
    # A bulk job is due in place of its messages as long as one of them was never begun.
    CheckConstraint("due_at IS NULL OR state IN ('waiting', 'bulk')", name="due_while_waiting"),
    CheckConstraint("state <> 'waiting' OR due_at IS NOT NULL OR bulk_id IS NOT NULL", name="waiting_is_due"),
    CheckConstraint("messages IS NULL OR (messages > 0 AND state = 'bulk')", name="messages_of_bulk"),
    CheckConstraint("(unknown_since IS NOT NULL) = (state = 'unknown')", name="unknown_since_then"),
    CheckConstraint(
        "handover_started_at IS NULL OR state IN ('sending', 'waiting', 'unknown')", name="doubt_while_open"
    ),
    CheckConstraint("(final_at IS NOT NULL) = (state IN ('sent', 'failed', 'refused'))", name="final_has_its_time"),
    # The content of a message is kept only while something may still be done with it.
    CheckConstraint("(content IS NOT NULL) = (state IN ('waiting', 'sending', 'unknown'))", name="content_while_open"),
    Index("ix_charges_account_id_created_at", "account_id", "created_at"),
    # Free space on the page for the version that the end of an attempt writes (a heap-only update). It touches no
    # index, as long as no index has or filters by a column that the usual end changes: state, lease_until, content,
    # final_at.
    postgresql_with={"fillfactor": 55},
)
# Only charges that were paid: a sender without credits may be refused for ever, and no view reads that.
Index("ix_charges_sender_created_at", charges.c.sender, charges.c.created_at,
      postgresql_where=charges.c.account_id.is_not(None), sqlite_where=charges.c.account_id.is_not(None))  # fmt: skip
Index("ix_charges_due_at", charges.c.due_at, postgresql_where=charges.c.due_at.is_not(None),
      sqlite_where=charges.c.due_at.is_not(None))  # fmt: skip
Index("ix_charges_unknown_since", charges.c.unknown_since, postgresql_where=charges.c.unknown_since.is_not(None),
      sqlite_where=charges.c.unknown_since.is_not(None))  # fmt: skip
# For the audit of recent refunds. It finds recent charges account by account: with an index on created_at alone,
# planners would read the charges of all senders to find those of one.
Index("ix_charges_refunded_at", charges.c.refunded_at, postgresql_where=charges.c.refunded_at.is_not(None),
      sqlite_where=charges.c.refunded_at.is_not(None))  # fmt: skip
Index("ix_charges_bulk_id", charges.c.bulk_id, postgresql_where=charges.c.bulk_id.is_not(None),
      sqlite_where=charges.c.bulk_id.is_not(None))  # fmt: skip

leases = Table(
    "leases",
    metadata,
    # One row for all attempts that were begun together, so that charges need no index on their leases.
    Column("lease_id", String(32), primary_key=True),
    Column("until", UtcDateTime, nullable=False),
    # The ids of the jobs that were about to be leased; those that are leased are among them.
    Column("job_ids", JSON, nullable=False),
    Index("ix_leases_until", "until"),
)

orders = Table(
    "orders",
    metadata,
    _id("order_id", primary_key=True),
    Column("digest", String(64), nullable=False),
    _id("buyer_id", ForeignKey("users.id"), nullable=False),
    _id("owner_id", ForeignKey("users.id"), nullable=False),
    _id("plan", ForeignKey("plans.id")),
    Column("email", BigInteger, nullable=False),
    Column("sms", BigInteger, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("currency", String(3), nullable=False),
    Column("billing", JSON(none_as_null=True), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    CheckConstraint("email >= 0 AND sms >= 0 AND email + sms > 0", name="some_credits"),
    CheckConstraint("amount >= 0", name="amount_not_negative"),
    Index("ix_orders_owner_id_at", "owner_id", "at"),
    Index("ix_orders_buyer_id_at", "buyer_id", "at"),
    Index("ix_orders_at", "at"),
)

owner_changes = Table(
    "owner_changes",
    metadata,
    _id("change_id", primary_key=True),
    Column("digest", String(64), nullable=False),
    _id("actor_id", ForeignKey("users.id"), nullable=False),
    _id("user_id", ForeignKey("users.id"), nullable=False),
    _id("old_owner_id", ForeignKey("users.id"), nullable=False),
    _id("new_owner_id", ForeignKey("users.id"), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Index("ix_owner_changes_user_id_at", "user_id", "at"),
)

refusals = Table(
    "refusals",
    metadata,
    _key(),
    Column("task", String(32), nullable=False),
    Column("task_id", String(255), nullable=False),
    # The id and the user that the message named, as far as they could be read.
    _id("key"),
    _id("person"),
    Column("reason", String(40), nullable=False),
    Column("detail", Text, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Index("ix_refusals_at", "at"),
    Index("ix_refusals_key", "key"),
    Index("ix_refusals_task_id", "task_id"),
)

decisions = Table(
    "decisions",
    metadata,
    _key(),
    Column("job_id", String(72), ForeignKey("charges.job_id"), nullable=False),
    Column("decision", String(6), nullable=False),
    _id("operator", nullable=False),
    Column("note", String(500)),
    Column("at", UtcDateTime, nullable=False),
    CheckConstraint("decision IN ('refund', 'resend')", name="known_decision"),
    Index("ix_decisions_job_id", "job_id"),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    _key(),
    Column("task", String(32), nullable=False),
    # NULL where the job failed long after its task.
    Column("task_id", String(255)),
    # The job's id, or the id of its Celery task.
    Column("key", String(255), nullable=False),
    _id("person"),
    Column("status", String(7), nullable=False),
    Column("reason", String(40)),
    Column("detail", Text),
    Column("job", JSON(none_as_null=True), nullable=False),
    # Of task, key and job: the same job has one letter, however often it ends here.
    Column("digest", String(64), nullable=False, unique=True),
    Column("at", UtcDateTime, nullable=False),
    Column("replayed_as", String(255)),
    Column("replayed_at", UtcDateTime),
    CheckConstraint("status IN ('refused', 'failed', 'fault')", name="known_status"),
    CheckConstraint("(replayed_as IS NULL) = (replayed_at IS NULL)", name="replayed_as_something"),
    Index("ix_dead_letters_at", "at"),
)

audit_marks = Table(
    "audit_marks",
    metadata,
    # How far an account's entries were checked. No foreign key: it would lock accounts, which every charge needs.
    Column("account_id", BigInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, nullable=False),
    Column("balance", BigInteger, nullable=False),
    # How far the account's usage had been rolled up by then.
    Column("usage_seq", BigInteger),
)

audit_progress = Table(
    "audit_progress",
    metadata,
    # One row: when an audit last found nothing, and when an audit of the whole history last did.
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("checked_at", UtcDateTime, nullable=False),
    Column("whole_at", UtcDateTime),
    CheckConstraint("id = 1", name="one_row"),
)

usage_days = Table(
    "usage_days",
    metadata,
    # What an account's charges cost now, by the day (UTC) of the charge, up to the account's mark.
    Column("account_id", BigInteger, primary_key=True, autoincrement=False),
    Column("day", Date, primary_key=True),
    _id("sender", primary_key=True),
    Column("credits", BigInteger, nullable=False),
    Column("messages", BigInteger, nullable=False),
    CheckConstraint("credits >= 0", name="refunds_within_charges"),
    CheckConstraint("messages > 0", name="some_messages"),
    Index("ix_usage_days_sender_day", "sender", "day"),
)

usage_marks = Table(
    "usage_marks",
    metadata,
    # How far an account's entries are in usage_days. No foreign key: it would lock accounts, which every charge needs.
    Column("account_id", BigInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, nullable=False),
    # The sum of those entries in two parts: charges less refunds, and everything else.
    Column("spent", BigInteger, nullable=False),
    Column("added", BigInteger, nullable=False),
    CheckConstraint("seq >= 0", name="seq_not_negative"),
)

APPEND_ONLY = ("entries", "owner_changes", "refusals", "decisions")
"""Tables whose rows are never changed or removed; triggers refuse it (0001_first_schema.py)."""
