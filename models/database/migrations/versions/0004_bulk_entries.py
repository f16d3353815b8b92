"""A bulk job is charged by one entry, and is due in place of those of its messages that were never begun."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make room for the number of messages that an entry pays for. Earlier bulk jobs, each message paid alone, stay."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET LOCAL statement_timeout = 0")  # a long history takes as long as it takes
    with op.batch_alter_table("charges") as charges:
        charges.add_column(sa.Column("messages", sa.SmallInteger(), nullable=True))
        charges.drop_constraint(op.f("ck_charges_due_while_waiting"), type_="check")
    with op.batch_alter_table("charges") as charges:
        charges.create_check_constraint(
            op.f("ck_charges_due_while_waiting"), "due_at IS NULL OR state IN ('waiting', 'bulk')"
        )
        charges.create_check_constraint(
            op.f("ck_charges_waiting_is_due"), "state <> 'waiting' OR due_at IS NOT NULL OR bulk_id IS NOT NULL"
        )
        charges.create_check_constraint(
            op.f("ck_charges_messages_of_bulk"), "messages IS NULL OR (messages > 0 AND state = 'bulk')"
        )
