"""What Alembic runs: it uses the connection that `migrate` hands it and opens none."""

from __future__ import annotations

from alembic import context

from services.aggregator.storage.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=False,  # `migrate` holds one transaction around everything
)
context.run_migrations()
