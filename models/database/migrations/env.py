"""What Alembic runs, inside the transaction that `models.database.migrations.migrate` has begun."""

from alembic import context

from models.database.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
