"""The database migrations, which Alembic runs."""
