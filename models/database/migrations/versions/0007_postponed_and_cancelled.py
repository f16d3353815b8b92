"""Jobs that are not due for long wait in the database, and jobs can be cancelled. Nothing that exists is changed."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make both tables."""
    op.create_table(
        "postponed_jobs",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("org_id", sa.Integer(), nullable=False),
        sa.Column("task", sa.String(length=32), nullable=False),
        sa.Column("task_id", sa.String(length=255), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("person", sa.String(length=64), nullable=True),
        sa.Column("job", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("options", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_postponed_jobs")),
    )
    for column in ("due_at", "key", "person"):
        op.create_index(f"ix_postponed_jobs_{column}", "postponed_jobs", [column])
    op.create_table(
        "cancellations",
        sa.Column("org_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("cancel_id", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=72), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=True),
        sa.Column("sender", sa.String(length=64), nullable=True),
        sa.Column("cancelled", sa.BigInteger(), nullable=False),
        sa.Column("credits", sa.BigInteger(), nullable=False),
        sa.Column("too_late", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("done_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(job_id IS NULL) <> (sender IS NULL)", name=op.f("ck_cancellations_of_a_job_or_a_sender")),
        sa.CheckConstraint(
            "cancelled >= 0 AND credits >= 0 AND too_late >= 0", name=op.f("ck_cancellations_counts_not_negative")
        ),
        sa.PrimaryKeyConstraint("org_id", "cancel_id", name=op.f("pk_cancellations")),
    )
