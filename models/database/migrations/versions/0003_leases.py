"""Leases in a table of their own, so that the usual end of an attempt touches no index of the charges."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Move the leases that there are, and find charges by times that the usual end of an attempt leaves alone."""
    dialect = op.get_bind().dialect.name
    if dialect == "postgresql":
        op.execute("SET LOCAL statement_timeout = 0")  # a long history takes as long as it takes
        op.execute("ALTER TABLE charges SET (fillfactor = 55)")
    _move_leases("json_agg(job_id)" if dialect == "postgresql" else "json_group_array(job_id)")
    for column in ("lease_until", "unknown", "final_at", "open_created_at"):
        op.drop_index(f"ix_charges_{column}", table_name="charges")
    _note_times()
    for column in ("unknown_since", "refunded_at"):
        some = sa.text(f"{column} IS NOT NULL")
        op.create_index(f"ix_charges_{column}", "charges", [column], postgresql_where=some, sqlite_where=some)


def _move_leases(job_ids: str) -> None:
    op.create_table(
        "leases",
        sa.Column("holder", sa.String(length=32), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("job_ids", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("holder", name=op.f("pk_leases")),
    )
    op.create_index("ix_leases_until", "leases", ["until"], unique=False)
    op.execute(
        f"INSERT INTO leases (holder, until, job_ids) SELECT holder, max(lease_until), {job_ids} "
        "FROM charges WHERE state = 'sending' AND holder IS NOT NULL GROUP BY holder"
    )


def _note_times() -> None:
    with op.batch_alter_table("charges") as charges:
        charges.add_column(sa.Column("unknown_since", sa.DateTime(timezone=True), nullable=True))
        charges.add_column(sa.Column("refunded_at", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE charges SET unknown_since = coalesce(handed_at, created_at) WHERE state = 'unknown'")
    op.execute("UPDATE charges SET refunded_at = final_at WHERE refunded > 0")
    with op.batch_alter_table("charges") as charges:
        charges.create_check_constraint(
            op.f("ck_charges_unknown_since_then"), "(unknown_since IS NOT NULL) = (state = 'unknown')"
        )
        charges.create_check_constraint(
            op.f("ck_charges_refund_has_its_time"), "(refunded_at IS NOT NULL) = (refunded > 0)"
        )
