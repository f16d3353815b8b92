"""Accounts that owe something are found by an index: monitoring asks for the debt every few seconds."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the index, which is empty unless somebody owes something."""
    if op.get_bind().dialect.name == "postgresql":
        # An earlier migration of the same transaction may have written accounts, and their deferred key is not checked
        # yet. PostgreSQL makes no index before that.
        op.execute("SET CONSTRAINTS ALL IMMEDIATE")
        op.execute("SET CONSTRAINTS ALL DEFERRED")
    owes = sa.text("debt > 0")
    op.create_index("ix_accounts_debt", "accounts", ["kind", "debt"], postgresql_where=owes, sqlite_where=owes)
