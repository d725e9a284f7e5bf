"""The environment of Alembic. It uses the connection that `migrate` passes and opens none."""

from __future__ import annotations

from alembic import context

from services.aggregator.storage.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=False,  # `migrate` runs all migrations in one transaction
)
context.run_migrations()
