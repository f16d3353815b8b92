"""Columns get the names that the code uses: a lease has an id, workers crash, a handover starts."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

RENAMED = (
    ("charges", "holder", "lease_id"),
    ("charges", "deaths", "crashes"),
    ("charges", "handed_at", "handover_started_at"),
    ("leases", "holder", "lease_id"),
)


def upgrade() -> None:
    """Rename the columns. Both databases change their catalogue only, and constraints follow."""
    for table, old, new in RENAMED:
        op.execute(f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}")
