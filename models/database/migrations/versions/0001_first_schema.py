"""The first schema: people, plans, accounts, entries, charges, orders, changes of owner, refusals, dead letters."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

APPEND_ONLY = ("entries", "owner_changes", "refusals", "decisions")


def upgrade() -> None:
    """Make every table, and the triggers that keep history as it was written."""
    op.create_table(
        "plans",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=500), nullable=False),
        sa.Column("email", sa.BigInteger(), nullable=False),
        sa.Column("sms", sa.BigInteger(), nullable=False),
        sa.Column("price", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.CheckConstraint("email >= 0 AND sms >= 0 AND email + sms > 0", name=op.f("ck_plans_some_credits")),
        sa.CheckConstraint("price >= 0", name=op.f("ck_plans_price_not_negative")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plans")),
    )
    op.create_table(
        "refusals",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("task", sa.String(length=32), nullable=False),
        sa.Column("task_id", sa.String(length=255), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=True),
        sa.Column("person", sa.String(length=64), nullable=True),
        sa.Column("reason", sa.String(length=40), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_refusals")),
    )
    op.create_index("ix_refusals_key", "refusals", ["key"], unique=False)
    op.create_index("ix_refusals_at", "refusals", ["at"], unique=False)
    op.create_index("ix_refusals_task_id", "refusals", ["task_id"], unique=False)
    op.create_table(
        "roles",
        sa.Column("organization", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=64), nullable=False),
        sa.Column("view_user_list", sa.Boolean(), nullable=False),
        sa.Column("edit_user", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("organization", "role", name=op.f("pk_roles")),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organization", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=500), nullable=False),
        sa.Column("email", sa.String(length=320), nullable=False),
        sa.Column("role", sa.String(length=64), nullable=False),
        sa.Column("billing", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("credit_owner_id", sa.String(length=64), nullable=False),
        sa.Column("is_owner", sa.Boolean(), nullable=False),
        sa.Column("owner_is_owner", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("is_owner = (credit_owner_id = id)", name=op.f("ck_users_owner_owns_themselves")),
        sa.CheckConstraint("owner_is_owner", name=op.f("ck_users_owner_is_owner")),
        sa.ForeignKeyConstraint(
            ["credit_owner_id", "owner_is_owner", "organization"],
            ["users.id", "users.is_owner", "users.organization"],
            name="fk_users_credit_owner",
        ),
        sa.ForeignKeyConstraint(["organization", "role"], ["roles.organization", "roles.role"], name="fk_users_role"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("id", "is_owner", "organization", name=op.f("uq_users_id_is_owner_organization")),
    )
    op.create_index("ix_users_credit_owner_id", "users", ["credit_owner_id"], unique=False)
    op.create_index("ix_users_organization_id", "users", ["organization", "id"], unique=False)
    op.create_table(
        "accounts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("owner_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=5), nullable=False),
        sa.Column("available", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("kind IN ('email', 'sms')", name=op.f("ck_accounts_known_kind")),
        sa.CheckConstraint("available >= 0", name=op.f("ck_accounts_never_below_zero")),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_accounts_owner_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accounts")),
        sa.UniqueConstraint("owner_id", "kind", name=op.f("uq_accounts_owner_id_kind")),
        postgresql_with={"fillfactor": 50},
    )
    op.create_table(
        "orders",
        sa.Column("order_id", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("buyer_id", sa.String(length=64), nullable=False),
        sa.Column("owner_id", sa.String(length=64), nullable=False),
        sa.Column("plan", sa.String(length=64), nullable=True),
        sa.Column("email", sa.BigInteger(), nullable=False),
        sa.Column("sms", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("billing", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("amount >= 0", name=op.f("ck_orders_amount_not_negative")),
        sa.CheckConstraint("email >= 0 AND sms >= 0 AND email + sms > 0", name=op.f("ck_orders_some_credits")),
        sa.ForeignKeyConstraint(["buyer_id"], ["users.id"], name=op.f("fk_orders_buyer_id")),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_orders_owner_id")),
        sa.ForeignKeyConstraint(["plan"], ["plans.id"], name=op.f("fk_orders_plan")),
        sa.PrimaryKeyConstraint("order_id", name=op.f("pk_orders")),
    )
    op.create_index("ix_orders_buyer_id_at", "orders", ["buyer_id", "at"], unique=False)
    op.create_index("ix_orders_at", "orders", ["at"], unique=False)
    op.create_index("ix_orders_owner_id_at", "orders", ["owner_id", "at"], unique=False)
    op.create_table(
        "owner_changes",
        sa.Column("change_id", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("actor_id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("old_owner_id", sa.String(length=64), nullable=False),
        sa.Column("new_owner_id", sa.String(length=64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["actor_id"], ["users.id"], name=op.f("fk_owner_changes_actor_id")),
        sa.ForeignKeyConstraint(["new_owner_id"], ["users.id"], name=op.f("fk_owner_changes_new_owner_id")),
        sa.ForeignKeyConstraint(["old_owner_id"], ["users.id"], name=op.f("fk_owner_changes_old_owner_id")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_owner_changes_user_id")),
        sa.PrimaryKeyConstraint("change_id", name=op.f("pk_owner_changes")),
    )
    op.create_index("ix_owner_changes_user_id_at", "owner_changes", ["user_id", "at"], unique=False)
    op.create_table(
        "charges",
        sa.Column("job_id", sa.String(length=72), nullable=False),
        sa.Column("task", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=5), nullable=False),
        sa.Column("sender", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("account_id", sa.BigInteger(), nullable=True),
        sa.Column("credits", sa.BigInteger(), nullable=False),
        sa.Column("refunded", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("reason", sa.String(length=40), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("attempts", sa.SmallInteger(), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deaths", sa.SmallInteger(), nullable=False),
        sa.Column("holder", sa.String(length=32), nullable=True),
        sa.Column("handed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("content", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("recipients_refused", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("carrier_reference", sa.String(length=300), nullable=True),
        sa.Column("bulk_id", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("final_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(account_id IS NULL) = (state IN ('refused', 'bulk'))", name=op.f("ck_charges_somebody_paid")
        ),
        sa.CheckConstraint(
            "(content IS NOT NULL) = (state IN ('waiting', 'sending', 'unknown'))",
            name=op.f("ck_charges_content_while_open"),
        ),
        sa.CheckConstraint("(due_at IS NOT NULL) = (state = 'waiting')", name=op.f("ck_charges_due_while_waiting")),
        sa.CheckConstraint(
            "handed_at IS NULL OR state IN ('sending', 'waiting', 'unknown')",
            name=op.f("ck_charges_doubt_while_open"),
        ),
        sa.CheckConstraint(
            "(final_at IS NOT NULL) = (state IN ('sent', 'failed', 'refused'))",
            name=op.f("ck_charges_final_has_its_time"),
        ),
        sa.CheckConstraint(
            "(lease_until IS NOT NULL) = (state = 'sending')", name=op.f("ck_charges_lease_while_sending")
        ),
        sa.CheckConstraint("kind IN ('email', 'sms')", name=op.f("ck_charges_known_kind")),
        sa.CheckConstraint(
            "refunded = 0 OR state IN ('sent', 'failed')", name=op.f("ck_charges_only_final_is_refunded")
        ),
        sa.CheckConstraint("state <> 'failed' OR refunded = credits", name=op.f("ck_charges_failed_is_refunded")),
        sa.CheckConstraint(
            "state IN ('waiting', 'sending', 'sent', 'failed', 'unknown', 'refused', 'bulk')",
            name=op.f("ck_charges_known_state"),
        ),
        sa.CheckConstraint("credits > 0", name=op.f("ck_charges_costs_something")),
        sa.CheckConstraint("refunded BETWEEN 0 AND credits", name=op.f("ck_charges_refund_within_charge")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_charges_account_id")),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_charges")),
    )
    op.create_index("ix_charges_account_id_created_at", "charges", ["account_id", "created_at"], unique=False)
    op.create_index(
        "ix_charges_bulk_id",
        "charges",
        ["bulk_id"],
        unique=False,
        postgresql_where=sa.text("bulk_id IS NOT NULL"),
        sqlite_where=sa.text("bulk_id IS NOT NULL"),
    )
    op.create_index(
        "ix_charges_due_at",
        "charges",
        ["due_at"],
        unique=False,
        postgresql_where=sa.text("due_at IS NOT NULL"),
        sqlite_where=sa.text("due_at IS NOT NULL"),
    )
    op.create_index(
        "ix_charges_lease_until",
        "charges",
        ["lease_until"],
        unique=False,
        postgresql_where=sa.text("lease_until IS NOT NULL"),
        sqlite_where=sa.text("lease_until IS NOT NULL"),
    )
    op.create_index("ix_charges_sender_created_at", "charges", ["sender", "created_at"], unique=False)
    op.create_index(
        "ix_charges_final_at",
        "charges",
        ["final_at"],
        unique=False,
        postgresql_where=sa.text("final_at IS NOT NULL"),
        sqlite_where=sa.text("final_at IS NOT NULL"),
    )
    op.create_index(
        "ix_charges_open_created_at",
        "charges",
        ["created_at"],
        unique=False,
        postgresql_where=sa.text("final_at IS NULL"),
        sqlite_where=sa.text("final_at IS NULL"),
    )
    op.create_table(
        "decisions",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("job_id", sa.String(length=72), nullable=False),
        sa.Column("decision", sa.String(length=6), nullable=False),
        sa.Column("operator", sa.String(length=64), nullable=False),
        sa.Column("note", sa.String(length=500), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("decision IN ('refund', 'resend')", name=op.f("ck_decisions_known_decision")),
        sa.ForeignKeyConstraint(["job_id"], ["charges.job_id"], name=op.f("fk_decisions_job_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_decisions")),
    )
    op.create_index("ix_decisions_job_id", "decisions", ["job_id"], unique=False)
    op.create_table(
        "dead_letters",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("task", sa.String(length=32), nullable=False),
        sa.Column("task_id", sa.String(length=255), nullable=True),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("person", sa.String(length=64), nullable=True),
        sa.Column("status", sa.String(length=7), nullable=False),
        sa.Column("reason", sa.String(length=40), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("job", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("replayed_as", sa.String(length=255), nullable=True),
        sa.Column("replayed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("status IN ('refused', 'failed', 'fault')", name=op.f("ck_dead_letters_known_status")),
        sa.CheckConstraint(
            "(replayed_as IS NULL) = (replayed_at IS NULL)", name=op.f("ck_dead_letters_replayed_as_something")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dead_letters")),
        sa.UniqueConstraint("digest", name=op.f("uq_dead_letters_digest")),
    )
    op.create_index("ix_dead_letters_at", "dead_letters", ["at"], unique=False)
    op.create_table(
        "entries",
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("balance_after", sa.BigInteger(), nullable=False),
        sa.Column("cause", sa.String(length=120), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("amount <> 0", name=op.f("ck_entries_moves_something")),
        sa.CheckConstraint("balance_after >= 0", name=op.f("ck_entries_never_below_zero")),
        sa.CheckConstraint("seq > 0", name=op.f("ck_entries_counted_from_one")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_entries_account_id")),
        sa.PrimaryKeyConstraint("account_id", "seq", name=op.f("pk_entries")),
        sa.UniqueConstraint("cause", name=op.f("uq_entries_cause")),
    )
    op.create_table(
        "audit_marks",
        sa.Column("account_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("balance", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_audit_marks")),
    )
    op.create_table(
        "audit_progress",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("checked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("whole_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("id = 1", name=op.f("ck_audit_progress_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_progress")),
    )
    if op.get_bind().dialect.name == "postgresql":
        _refuse_changes_on_postgresql()
    else:
        _refuse_changes_on_sqlite()


def _refuse_changes_on_postgresql() -> None:
    op.execute(
        """
        CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '% is append-only: % is refused', TG_TABLE_NAME, TG_OP
                USING ERRCODE = 'restrict_violation';
        END $$
        """
    )
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION refuse_change()"
        )
        op.execute(
            f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )


def _refuse_changes_on_sqlite() -> None:
    for table in APPEND_ONLY:
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only: {verb} is refused'); END"
            )
