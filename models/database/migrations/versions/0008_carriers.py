"""Several carriers of a kind: which one had each attempt, what they may have, and which of them rest.

Charges and leases get a column; what is noted in an earlier release as handed over stays noted on the charge.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add both columns, which locks no table for long, and make three tables."""
    op.add_column("charges", sa.Column("carrier", sa.String(length=40), nullable=True))
    op.add_column("leases", sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "handovers",
        sa.Column("org_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("lease_id", sa.String(length=32), nullable=False),
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("carrier", sa.String(length=40), nullable=False),
        sa.Column("job_ids", sa.JSON(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["org_id", "lease_id"],
            ["leases.org_id", "leases.lease_id"],
            name=op.f("fk_handovers_org_id_lease_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("org_id", "lease_id", "id", name=op.f("pk_handovers")),
    )
    op.create_table(
        "attempts",
        sa.Column("org_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("job_id", sa.String(length=72), nullable=False),
        sa.Column("sender", sa.String(length=64), nullable=False),
        sa.Column("number", sa.SmallInteger(), nullable=False),
        sa.Column("carrier", sa.String(length=40), nullable=True),
        sa.Column("outcome", sa.String(length=9), nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("erased_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "outcome IN ('accepted', 'never', 'not_now', 'unsure', 'our_fault', 'crash')",
            name=op.f("ck_attempts_known_outcome"),
        ),
        sa.PrimaryKeyConstraint("org_id", "id", name=op.f("pk_attempts")),
    )
    op.create_index("ix_attempts_org_id_job_id", "attempts", ["org_id", "job_id"])
    names_people = sa.text("detail IS NOT NULL AND erased_at IS NULL")
    for name, columns in (
        ("ix_attempts_unerased", ["at"]),
        ("ix_attempts_unerased_of_sender", ["org_id", "sender", "at"]),
    ):
        op.create_index(name, "attempts", columns, postgresql_where=names_people, sqlite_where=names_people)
    op.create_table(
        "resting_carriers",
        sa.Column("kind", sa.String(length=5), nullable=False),
        sa.Column("carrier", sa.String(length=40), nullable=False),
        sa.Column("rests", sa.SmallInteger(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("probed_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("is_our_fault", sa.Boolean(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.CheckConstraint("kind IN ('email', 'sms')", name=op.f("ck_resting_carriers_known_kind")),
        sa.CheckConstraint("rests > 0", name=op.f("ck_resting_carriers_has_rested")),
        sa.PrimaryKeyConstraint("kind", "carrier", name=op.f("pk_resting_carriers")),
    )
