"""Usage rolled up by day. The marks begin before the first entry: upkeep catches up, and views are exact meanwhile."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the days and their marks, and the indexes that usage by message and unknown jobs are read from."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET LOCAL statement_timeout = 0")  # an index on a long history takes as long as it takes
    op.create_table(
        "usage_days",
        sa.Column("account_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("sender", sa.String(length=64), nullable=False),
        sa.Column("credits", sa.BigInteger(), nullable=False),
        sa.Column("messages", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("credits >= 0", name=op.f("ck_usage_days_refunds_within_charges")),
        sa.CheckConstraint("messages > 0", name=op.f("ck_usage_days_some_messages")),
        sa.PrimaryKeyConstraint("account_id", "day", "sender", name=op.f("pk_usage_days")),
    )
    op.create_index("ix_usage_days_sender_day", "usage_days", ["sender", "day"], unique=False)
    op.create_table(
        "usage_marks",
        sa.Column("account_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("spent", sa.BigInteger(), nullable=False),
        sa.Column("added", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("seq >= 0", name=op.f("ck_usage_marks_seq_not_negative")),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_usage_marks")),
    )
    op.add_column("audit_marks", sa.Column("usage_seq", sa.BigInteger(), nullable=True))
    op.drop_index("ix_charges_sender_created_at", table_name="charges")
    op.create_index(
        "ix_charges_sender_created_at",
        "charges",
        ["sender", "created_at"],
        unique=False,
        postgresql_where=sa.text("account_id IS NOT NULL"),
        sqlite_where=sa.text("account_id IS NOT NULL"),
    )
    op.create_index(
        "ix_charges_unknown",
        "charges",
        ["job_id"],
        unique=False,
        postgresql_where=sa.text("state = 'unknown'"),
        sqlite_where=sa.text("state = 'unknown'"),
    )
