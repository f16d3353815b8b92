"""Every table, with the constraints that refuse to store a wrong state. Times are UTC.

A user has two accounts, one for each kind of credit. A balance moves only together with an entry. A charge says who
sent a message, who paid, how much, and what became of it.

Every table that grows with use has the organization in its primary key, and in each unique and foreign key to another
such table, so that a cluster can keep each organization on a node of its own. The exceptions are `REFERENCE_TABLES` and
`LOCAL_TABLES`.
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
    python_type = datetime

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


def _org(*args: Any) -> Column[int]:  # noqa: ANN401  passed through to Column
    return Column("org_id", Integer, *args, primary_key=True, autoincrement=False)


def _key() -> Column[int]:
    # SQLite assigns numbers only to an INTEGER primary key.
    return Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True)


def _time_ordered_id() -> Column[str]:
    """Return the key of rows that nobody else names (`models.ids.new_id`)."""
    return Column("id", String(32), primary_key=True)


organizations = Table(
    "organizations",
    metadata,
    # The number that stands for the organization in every key. 0 is nobody's: for users who were never saved.
    Column("id", Integer, primary_key=True),
    _id("name", nullable=False, unique=True),
    # How many accounts were opened, which is also the number of the last one.
    Column("accounts", BigInteger, nullable=False),
)

roles = Table(
    "roles",
    metadata,
    _org(ForeignKey("organizations.id")),
    _id("role", primary_key=True),
    Column("view_user_list", Boolean, nullable=False),
    Column("edit_user", Boolean, nullable=False),
    Column("adjust_credits", Boolean, nullable=False),
    # The newest version that was saved, of those that came with one.
    Column("version", BigInteger),
)

users = Table(
    "users",
    metadata,
    _id("id", primary_key=True),
    Column("org_id", Integer, nullable=False),
    Column("name", String(500), nullable=False),
    Column("email", String(320), nullable=False),
    _id("role", nullable=False),
    Column("billing", JSON(none_as_null=True)),
    _id("credit_owner_id", nullable=False),
    Column("is_owner", Boolean, nullable=False),
    # Always true: the second half of the composite foreign key below, which then matches credit owners only.
    Column("owner_is_owner", Boolean, nullable=False, server_default=literal_column("true")),
    # How often the credit owner has changed. A charge and an order name the owner's version that they saw.
    Column("owner_version", Integer, nullable=False),
    Column("version", BigInteger),
    Column("created_at", UtcDateTime, nullable=False),
    Column("erased_at", UtcDateTime),
    CheckConstraint("is_owner = (credit_owner_id = id)", name="owner_owns_themselves"),
    CheckConstraint("owner_is_owner", name="owner_is_owner"),
    UniqueConstraint("org_id", "id", "is_owner"),
    # Sharing is one level deep and stays inside an organization: no chain, cycle or stranger can be stored.
    ForeignKeyConstraint(
        ["org_id", "credit_owner_id", "owner_is_owner"],
        ["users.org_id", "users.id", "users.is_owner"],
        name="fk_users_credit_owner",
    ),
    ForeignKeyConstraint(["org_id", "role"], ["roles.org_id", "roles.role"], name="fk_users_role"),
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
    Column("version", BigInteger),
    CheckConstraint("email >= 0 AND sms >= 0 AND email + sms > 0", name="some_credits"),
    CheckConstraint("price >= 0", name="price_not_negative"),
)

credentials = Table(
    "credentials",
    metadata,
    # With which password a user signs in to the console. Users without a row cannot.
    _org(),
    _id("user_id", ForeignKey("users.id"), primary_key=True),
    # As argon2 writes it, with its parameters and its salt.
    Column("password_hash", String(200), nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
    CheckConstraint("substr(password_hash, 1, 10) = '$argon2id$'", name="hashed"),
)

console_sessions = Table(
    "console_sessions",
    metadata,
    # Who is signed in to the console. The browser has the token, and the database only its digest.
    Column("token_hash", String(64), primary_key=True),
    Column("org_id", Integer, nullable=False),
    _id("user_id", ForeignKey("users.id"), nullable=False),
    Column("began_at", UtcDateTime, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    CheckConstraint("length(token_hash) = 64", name="hashed"),
    CheckConstraint("began_at <= seen_at AND began_at < expires_at", name="ends_after_it_began"),
    Index("ix_console_sessions_user_id", "user_id"),
    Index("ix_console_sessions_expires_at", "expires_at"),
)

sign_in_links = Table(
    "sign_in_links",
    metadata,
    # Links that sign in a user once, without a password. A row is deleted by its use.
    Column("token_hash", String(64), primary_key=True),
    Column("org_id", Integer, nullable=False),
    _id("user_id", ForeignKey("users.id"), nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    CheckConstraint("length(token_hash) = 64", name="hashed"),
    Index("ix_sign_in_links_user_id", "user_id"),
    Index("ix_sign_in_links_expires_at", "expires_at"),
)

sign_in_failures = Table(
    "sign_in_failures",
    metadata,
    # How many sign-ins have failed lately, by user and by address. Both are hashed into a fixed number of slots, so the
    # table cannot grow, whatever names and addresses an attacker makes up.
    Column("scope", String(7), primary_key=True),
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("failures", Integer, nullable=False),
    Column("last_at", UtcDateTime, nullable=False),
    CheckConstraint("scope IN ('user', 'address')", name="known_scope"),
    CheckConstraint("slot >= 0 AND slot < 65536", name="known_slot"),
    CheckConstraint("failures >= 0", name="failures_not_negative"),
    Index("ix_sign_in_failures_last_at", "last_at"),
)

REFERENCE_TABLES = ("organizations", "roles", "users", "plans")
"""Tables that do not grow with use: a cluster keeps a copy of them on every node."""

accounts = Table(
    "accounts",
    metadata,
    _org(),
    # Counted within the organization.
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    _id("owner_id", ForeignKey("users.id"), nullable=False),
    Column("kind", String(5), nullable=False),
    Column("available", BigInteger, nullable=False),
    # Credits that were spent before their purchase was reversed: the next purchases pay them first.
    Column("debt", BigInteger, nullable=False),
    # The number and the hash of the last entry.
    Column("seq", BigInteger, nullable=False),
    Column("hash", String(64), nullable=False),
    UniqueConstraint("org_id", "owner_id", "kind"),
    CheckConstraint("kind IN ('email', 'sms')", name="known_kind"),
    CheckConstraint("available >= 0", name="never_below_zero"),
    CheckConstraint("debt >= 0", name="debt_not_negative"),
    # An account holds what its last entry says. Deferred, because the entry is written after the account.
    ForeignKeyConstraint(
        ["org_id", "id", "seq", "available", "debt"],
        [f"entries.{name}" for name in ("org_id", "account_id", "seq", "balance_after", "debt_after")],
        name="fk_accounts_last_entry",
        deferrable=True,
        initially="DEFERRED",
    ),
    # Free space on the page for new versions of a row that changes all the time (heap-only updates).
    postgresql_with={"fillfactor": 50},
)

entries = Table(
    "entries",
    metadata,
    _org(),
    # No foreign key: it would lock the account, which every charge needs. Accounts are never deleted.
    Column("account_id", BigInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("amount", BigInteger, nullable=False),
    Column("balance_after", BigInteger, nullable=False),
    Column("debt_after", BigInteger, nullable=False),
    # What the entry was made for: the batch, order, reversal, … whose id is `cause_id`.
    Column("cause_kind", String(10), nullable=False),
    Column("cause_id", String(72), nullable=False),
    # The digest of what was paid for or given back, and the hash over this entry and the one before (money/chain.py).
    Column("content", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    UniqueConstraint("org_id", "account_id", "cause_kind", "cause_id"),
    UniqueConstraint("org_id", "account_id", "seq", "balance_after", "debt_after"),
    CheckConstraint(
        "cause_kind IN ('opening', 'charge', 'refund', 'purchase', 'reversal', 'adjustment')", name="known_cause"
    ),
    # A purchase may pay nothing but debt, and a reversal find nothing left to take.
    CheckConstraint("amount <> 0 OR cause_kind IN ('opening', 'purchase', 'reversal')", name="moves_something"),
    CheckConstraint("balance_after >= 0", name="never_below_zero"),
    CheckConstraint("debt_after >= 0", name="debt_not_negative"),
    CheckConstraint("(seq = 0) = (cause_kind = 'opening')", name="counted_from_opening"),
    CheckConstraint("seq > 0 OR (seq = 0 AND amount = 0 AND balance_after = 0 AND debt_after = 0)", name="opens_empty"),
)

charges = Table(
    "charges",
    metadata,
    _org(),
    Column("job_id", String(72), primary_key=True),
    Column("task", String(32), nullable=False),
    Column("kind", String(5), nullable=False),
    _id("sender", nullable=False),
    # Which of the sender's credit owners has paid (users.owner_version).
    Column("owner_version", Integer),
    Column("digest", String(72), nullable=False),
    # No foreign key: it would lock the account, which every charge needs.
    Column("account_id", BigInteger),
    Column("credits", BigInteger, nullable=False),
    # The cause of the entry that paid for it, and of the one that gave back. Their times are `created_at` and
    # `refunded_at`, by which the charges behind an entry are found.
    Column("charged_by", String(72)),
    Column("refunded", BigInteger, nullable=False),
    Column("refunded_by", String(72)),
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
    # The carrier of the last attempt that ended, by its name in the settings. One that may have the message is the only
    # one that is asked again.
    Column("carrier", String(40)),
    _id("bulk_id"),
    Column("created_at", UtcDateTime, nullable=False),
    Column("final_at", UtcDateTime),
    # When the refused recipients and the carrier's words about them were erased.
    Column("erased_at", UtcDateTime),
    CheckConstraint("kind IN ('email', 'sms')", name="known_kind"),
    CheckConstraint(
        "state IN ('waiting', 'sending', 'sent', 'failed', 'unknown', 'refused', 'bulk')", name="known_state"
    ),
    CheckConstraint("credits > 0", name="costs_something"),
    CheckConstraint("refunded BETWEEN 0 AND credits", name="refund_within_charge"),
    CheckConstraint("(refunded_at IS NOT NULL) = (refunded > 0)", name="refund_has_its_time"),
    CheckConstraint("(refunded_by IS NOT NULL) = (refunded > 0)", name="refund_has_its_entry"),
    CheckConstraint("state <> 'failed' OR refunded = credits", name="failed_is_refunded"),
    CheckConstraint("refunded = 0 OR state IN ('sent', 'failed')", name="only_final_is_refunded"),
    CheckConstraint("(account_id IS NULL) = (state IN ('refused', 'bulk'))", name="somebody_paid"),
    CheckConstraint("(account_id IS NULL) = (charged_by IS NULL)", name="paid_by_an_entry"),
    CheckConstraint("account_id IS NULL OR owner_version IS NOT NULL", name="paid_by_an_owner"),
    CheckConstraint("(lease_until IS NOT NULL) = (state = 'sending')", name="lease_while_sending"),
    # A bulk job is due in place of its messages as long as one of them was never begun.
    CheckConstraint("due_at IS NULL OR state IN ('waiting', 'bulk')", name="due_while_waiting"),
    CheckConstraint("state <> 'waiting' OR due_at IS NOT NULL OR bulk_id IS NOT NULL", name="waiting_is_due"),
    CheckConstraint("(unknown_since IS NOT NULL) = (state = 'unknown')", name="unknown_since_then"),
    CheckConstraint(
        "handover_started_at IS NULL OR state IN ('sending', 'waiting', 'unknown')", name="doubt_while_open"
    ),
    CheckConstraint("(final_at IS NOT NULL) = (state IN ('sent', 'failed', 'refused'))", name="final_has_its_time"),
    # The content of a message is kept only while something may still be done with it.
    CheckConstraint("(content IS NOT NULL) = (state IN ('waiting', 'sending', 'unknown'))", name="content_while_open"),
    # The charges of one entry are found here too: they have its account and its time.
    Index("ix_charges_org_id_account_id_created_at", "org_id", "account_id", "created_at"),
    # Free space on the page for the version that the end of an attempt writes (a heap-only update). It touches no
    # index, as long as no index has or filters by a column that the usual end changes: state, lease_until, content,
    # final_at.
    postgresql_with={"fillfactor": 55},
)


def _index_where_set(table: Table, column: str, *more: str, prefix: str = "") -> None:
    """Index the rows in which `column` is not NULL."""
    names = [name for name in (prefix, column, *more) if name]
    is_set = table.c[column].is_not(None)
    Index("_".join(("ix", table.name, *names)), *(table.c[name] for name in names), postgresql_where=is_set,
          sqlite_where=is_set)  # fmt: skip


# Only charges that were paid: a sender without credits may be refused for ever, and no view reads that.
Index("ix_charges_org_id_sender_created_at", charges.c.org_id, charges.c.sender, charges.c.created_at,
      postgresql_where=charges.c.account_id.is_not(None), sqlite_where=charges.c.account_id.is_not(None))  # fmt: skip
# What nobody paid for, refused jobs and bulk jobs: audits and the status look for recent ones of all organizations.
Index("ix_charges_unpaid_created_at", charges.c.created_at, postgresql_where=charges.c.account_id.is_(None),
      sqlite_where=charges.c.account_id.is_(None))  # fmt: skip
# What was asked for in the name of users who were never saved.
Index("ix_charges_nobodys_sender", charges.c.sender, postgresql_where=charges.c.org_id == 0,
      sqlite_where=charges.c.org_id == 0)  # fmt: skip
# The few accounts that owe something. What charges change is not in it, so their updates stay heap-only.
Index("ix_accounts_debt", accounts.c.kind, accounts.c.debt, postgresql_where=accounts.c.debt > 0,
      sqlite_where=accounts.c.debt > 0)  # fmt: skip
_index_where_set(charges, "due_at")
_index_where_set(charges, "unknown_since")
# The charges of a refund, which have its account and its time; also for the audit of recent refunds. It finds recent
# charges account by account: with an index on created_at alone, planners would read the charges of all senders to find
# those of one.
_index_where_set(charges, "refunded_at")
_index_where_set(charges, "bulk_id", prefix="org_id")


def _index_unerased(name: str, *columns: str) -> None:
    """Index the charges that may name recipients: what the carrier refused was refunded, and not erased yet."""
    names_people = charges.c.refunded_at.is_not(None) & charges.c.erased_at.is_(None)
    Index(name, *(charges.c[column] for column in columns), postgresql_where=names_people, sqlite_where=names_people)


_index_unerased("ix_charges_unerased", "refunded_at")
_index_unerased("ix_charges_unerased_of_sender", "org_id", "sender", "refunded_at")

leases = Table(
    "leases",
    metadata,
    # One row for all attempts of an organization that were begun together, so that charges need no index on their
    # leases.
    _org(),
    Column("lease_id", String(32), primary_key=True),
    Column("until", UtcDateTime, nullable=False),
    # The ids of the jobs that were about to be leased; those that are leased are among them.
    Column("job_ids", JSON, nullable=False),
    # Since when a sweep ends its attempts: from then on its worker hands nothing over, and does not renew it.
    Column("ended_at", UtcDateTime),
    Index("ix_leases_until", "until"),
)

handovers = Table(
    "handovers",
    metadata,
    # One row for all messages of a lease that a carrier may have from the same moment on. It goes with its lease.
    _org(),
    Column("lease_id", String(32), primary_key=True),
    _time_ordered_id(),
    Column("carrier", String(40), nullable=False),
    Column("job_ids", JSON, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    ForeignKeyConstraint(["org_id", "lease_id"], ["leases.org_id", "leases.lease_id"], ondelete="CASCADE"),
)

attempts = Table(
    "attempts",
    metadata,
    # How attempts ended, for people. A message that was taken at once has no row here.
    _org(),
    _time_ordered_id(),
    Column("job_id", String(72), nullable=False),
    _id("sender", nullable=False),
    Column("number", SmallInteger, nullable=False),
    Column("carrier", String(40)),
    Column("outcome", String(9), nullable=False),
    Column("detail", Text),
    Column("at", UtcDateTime, nullable=False),
    # When the carrier's words were erased.
    Column("erased_at", UtcDateTime),
    CheckConstraint(
        "outcome IN ('accepted', 'never', 'not_now', 'unsure', 'our_fault', 'crash')", name="known_outcome"
    ),
    Index("ix_attempts_org_id_job_id", "org_id", "job_id"),
)

_names_people = attempts.c.detail.is_not(None) & attempts.c.erased_at.is_(None)
Index("ix_attempts_unerased", attempts.c.at, postgresql_where=_names_people, sqlite_where=_names_people)
Index("ix_attempts_unerased_of_sender", attempts.c.org_id, attempts.c.sender, attempts.c.at,
      postgresql_where=_names_people, sqlite_where=_names_people)  # fmt: skip

resting_carriers = Table(
    "resting_carriers",
    metadata,
    # Carriers that do not work, and are left alone for a while by all workers. One that works has no row.
    Column("kind", String(5), primary_key=True),
    Column("carrier", String(40), primary_key=True),
    # How many times in a row it has been rested.
    Column("rests", SmallInteger, nullable=False),
    Column("since", UtcDateTime, nullable=False),
    Column("until", UtcDateTime, nullable=False),
    # Until when one job tries whether it works again.
    Column("probed_until", UtcDateTime),
    Column("is_our_fault", Boolean, nullable=False),
    Column("detail", Text, nullable=False),
    CheckConstraint("kind IN ('email', 'sms')", name="known_kind"),
    CheckConstraint("rests > 0", name="has_rested"),
)

orders = Table(
    "orders",
    metadata,
    _org(),
    _id("order_id", primary_key=True),
    Column("digest", String(72), nullable=False),
    _id("buyer_id", ForeignKey("users.id"), nullable=False),
    _id("owner_id", ForeignKey("users.id"), nullable=False),
    # Which of the buyer's credit owners got the credits (users.owner_version).
    Column("owner_version", Integer, nullable=False),
    _id("plan", ForeignKey("plans.id")),
    Column("email", BigInteger, nullable=False),
    Column("sms", BigInteger, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("currency", String(3), nullable=False),
    Column("billing", JSON(none_as_null=True), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    CheckConstraint("email >= 0 AND sms >= 0 AND email + sms > 0", name="some_credits"),
    CheckConstraint("amount >= 0", name="amount_not_negative"),
    Index("ix_orders_org_id_owner_id_at", "org_id", "owner_id", "at"),
    Index("ix_orders_org_id_buyer_id_at", "org_id", "buyer_id", "at"),
    Index("ix_orders_at", "at"),
)

reversals = Table(
    "reversals",
    metadata,
    _org(),
    _id("reversal_id", primary_key=True),
    Column("digest", String(72), nullable=False),
    _id("order_id", nullable=False),
    Column("kind", String(10), nullable=False),
    # The credits taken back: what the pool still held, and what became debt.
    Column("email", BigInteger, nullable=False),
    Column("sms", BigInteger, nullable=False),
    Column("email_debt", BigInteger, nullable=False),
    Column("sms_debt", BigInteger, nullable=False),
    Column("reason", String(500), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    CheckConstraint("kind IN ('refund', 'chargeback')", name="known_kind"),
    CheckConstraint("email >= 0 AND sms >= 0 AND email + sms > 0", name="some_credits"),
    CheckConstraint("email_debt BETWEEN 0 AND email AND sms_debt BETWEEN 0 AND sms", name="debt_within_reversal"),
    ForeignKeyConstraint(["org_id", "order_id"], ["orders.org_id", "orders.order_id"]),
    Index("ix_reversals_org_id_order_id", "org_id", "order_id"),
    Index("ix_reversals_at", "at"),
)

adjustments = Table(
    "adjustments",
    metadata,
    _org(),
    _id("adjustment_id", primary_key=True),
    Column("digest", String(72), nullable=False),
    _id("actor_id", ForeignKey("users.id"), nullable=False),
    _id("owner_id", ForeignKey("users.id"), nullable=False),
    # Credits given (positive) or taken (negative).
    Column("email", BigInteger, nullable=False),
    Column("sms", BigInteger, nullable=False),
    Column("reason", String(500), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    CheckConstraint("email <> 0 OR sms <> 0", name="some_credits"),
    Index("ix_adjustments_org_id_owner_id_at", "org_id", "owner_id", "at"),
    Index("ix_adjustments_at", "at"),
)

owner_changes = Table(
    "owner_changes",
    metadata,
    _org(),
    _id("change_id", primary_key=True),
    Column("digest", String(72), nullable=False),
    _id("actor_id", ForeignKey("users.id"), nullable=False),
    _id("user_id", ForeignKey("users.id"), nullable=False),
    # The user's owner_version from this change on.
    Column("version", Integer, nullable=False),
    _id("old_owner_id", ForeignKey("users.id"), nullable=False),
    _id("new_owner_id", ForeignKey("users.id"), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    UniqueConstraint("org_id", "user_id", "version"),
    CheckConstraint("version > 0", name="counted_from_one"),
)

erasures = Table(
    "erasures",
    metadata,
    _org(),
    _id("erasure_id", primary_key=True),
    Column("digest", String(72), nullable=False),
    _id("actor_id", ForeignKey("users.id"), nullable=False),
    _id("user_id", ForeignKey("users.id"), nullable=False),
    Column("at", UtcDateTime, nullable=False),
)

changes = Table(
    "changes",
    metadata,
    # Who changed what, for people: users, roles, plans, owners, balances by hand. Plans are nobody's (org_id 0).
    _org(),
    _time_ordered_id(),
    Column("kind", String(10), nullable=False),
    Column("subject", String(130), nullable=False),
    # Who did it; NULL if the message named nobody.
    _id("actor"),
    Column("old", JSON(none_as_null=True)),
    Column("new", JSON(none_as_null=True)),
    Column("at", UtcDateTime, nullable=False),
    CheckConstraint("kind IN ('user', 'role', 'plan', 'owner', 'credits', 'erasure')", name="known_kind"),
)

refusals = Table(
    "refusals",
    metadata,
    _key(),
    # The organization of the person who asked; 0 if nobody knows them.
    Column("org_id", Integer, nullable=False),
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
    Index("ix_refusals_person", "person"),
    Index("ix_refusals_task_id", "task_id"),
)

decisions = Table(
    "decisions",
    metadata,
    _org(),
    _time_ordered_id(),
    Column("job_id", String(72), nullable=False),
    Column("decision", String(6), nullable=False),
    _id("operator", nullable=False),
    Column("note", String(500)),
    Column("at", UtcDateTime, nullable=False),
    ForeignKeyConstraint(["org_id", "job_id"], ["charges.org_id", "charges.job_id"]),
    CheckConstraint("decision IN ('refund', 'resend')", name="known_decision"),
    Index("ix_decisions_org_id_job_id", "org_id", "job_id"),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    _key(),
    # The organization of the person who asked; 0 if nobody knows them.
    Column("org_id", Integer, nullable=False),
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
    Index("ix_dead_letters_key", "key"),
    Index("ix_dead_letters_person", "person"),
)

postponed_jobs = Table(
    "postponed_jobs",
    metadata,
    # Jobs of which the producer said that they are not to be done before some time, until that time.
    # The digest of all that makes the job: one that was delivered twice is stored once.
    Column("digest", String(64), primary_key=True),
    # The organization of the person who asked; 0 if nobody knows them.
    Column("org_id", Integer, nullable=False),
    Column("task", String(32), nullable=False),
    Column("task_id", String(255), nullable=False),
    # The job's id, or the id of its Celery task.
    Column("key", String(255), nullable=False),
    _id("person"),
    # The object that was on the wire, and what Celery is to do with the job.
    Column("job", JSON(none_as_null=True), nullable=False),
    Column("options", JSON(none_as_null=True), nullable=False),
    Column("due_at", UtcDateTime, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Index("ix_postponed_jobs_due_at", "due_at"),
    Index("ix_postponed_jobs_key", "key"),
    Index("ix_postponed_jobs_person", "person"),
)

cancellations = Table(
    "cancellations",
    metadata,
    # Who cancelled which jobs, and how many that were. It goes on until it is done.
    _org(),
    _id("cancel_id", primary_key=True),
    Column("digest", String(72), nullable=False),
    # A user, or the name of an operator.
    _id("actor", nullable=False),
    # One job, with all its messages, or all that a sender has waiting.
    _id("job_id"),
    _id("sender"),
    Column("cancelled", BigInteger, nullable=False),
    Column("credits", BigInteger, nullable=False),
    Column("too_late", BigInteger, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("done_at", UtcDateTime),
    CheckConstraint("(job_id IS NULL) <> (sender IS NULL)", name="of_a_job_or_a_sender"),
    CheckConstraint("cancelled >= 0 AND credits >= 0 AND too_late >= 0", name="counts_not_negative"),
)

audit_marks = Table(
    "audit_marks",
    metadata,
    # How far an account's entries were checked. No foreign key: it would lock accounts, which every charge needs.
    _org(),
    Column("account_id", BigInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, nullable=False),
    Column("balance", BigInteger, nullable=False),
    Column("debt", BigInteger, nullable=False),
    Column("hash", String(64), nullable=False),
    # How far the account's usage had been rolled up by then.
    Column("usage_seq", BigInteger),
    # The time from which on charges were not checked yet, as long as a finding keeps the mark where it is.
    Column("since", UtcDateTime, nullable=False),
    # When the whole history of the account was last checked; those checked longest ago come next.
    Column("whole_at", UtcDateTime, nullable=False),
    # How far its history was checked again since then: the last entry, and the time of the charges.
    Column("again_seq", BigInteger),
    Column("again_at", UtcDateTime),
    # Where the stretch behind these ends, if something was found in it: it is checked again by every audit.
    Column("held_seq", BigInteger),
    Column("held_at", UtcDateTime),
    Index("ix_audit_marks_whole_at", "whole_at"),
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

findings = Table(
    "findings",
    metadata,
    # What audits have found, each once. It stands until an audit finds it no more, and alarms until somebody
    # acknowledges it.
    _key(),
    # The account in whose history it was found; none for what every audit checks as a whole.
    Column("org_id", Integer, nullable=False),
    Column("account_id", BigInteger),
    # Whether it was found by an audit of the whole history, and not yet by one that will look there again.
    Column("by_whole", Boolean, nullable=False),
    Column("invariant", String(120), nullable=False),
    Column("subject", String(200), nullable=False),
    Column("difference", Text, nullable=False),
    Column("first_at", UtcDateTime, nullable=False),
    Column("last_at", UtcDateTime, nullable=False),
    Column("resolved_at", UtcDateTime),
    Column("acknowledged_at", UtcDateTime),
    _id("acknowledged_by"),
    Column("note", String(500)),
    UniqueConstraint("org_id", "invariant", "subject"),
    CheckConstraint("(acknowledged_at IS NULL) = (acknowledged_by IS NULL)", name="acknowledged_by_somebody"),
)

usage_days = Table(
    "usage_days",
    metadata,
    # What an account's charges cost now, by the day (UTC) of the charge, up to the account's mark.
    _org(),
    Column("account_id", BigInteger, primary_key=True, autoincrement=False),
    Column("day", Date, primary_key=True),
    _id("sender", primary_key=True),
    Column("credits", BigInteger, nullable=False),
    Column("messages", BigInteger, nullable=False),
    CheckConstraint("credits >= 0", name="refunds_within_charges"),
    CheckConstraint("messages > 0", name="some_messages"),
    Index("ix_usage_days_org_id_sender_day", "org_id", "sender", "day"),
)

usage_marks = Table(
    "usage_marks",
    metadata,
    # How far an account's entries are in usage_days. No foreign key: it would lock accounts, which every charge needs.
    _org(),
    Column("account_id", BigInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, nullable=False),
    # The sum of those entries in two parts: charges less refunds, and everything else.
    Column("spent", BigInteger, nullable=False),
    Column("added", BigInteger, nullable=False),
    CheckConstraint("seq >= 0", name="seq_not_negative"),
)

APPEND_ONLY = ("entries", "orders", "reversals", "adjustments", "owner_changes", "erasures", "changes", "decisions")
"""Tables whose rows are never changed or removed; triggers refuse it (0006_vault.py)."""
ERASABLE = {"decisions": "note"}
"""The column of an append-only table that may name people. Triggers allow it to be set to NULL, and to nothing else."""
LOCAL_TABLES = (
    *("refusals", "dead_letters", "postponed_jobs", "findings", "audit_progress", "resting_carriers"),
    *("console_sessions", "sign_in_links", "sign_in_failures"),
)
"""Tables for operators and the console, whose rows are removed after a while: a cluster keeps them on one node."""
NEVER_DELETED = ("accounts",)
"""Tables whose rows are never removed; triggers refuse it."""
