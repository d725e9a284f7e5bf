"""The contract suites run on SQLite and on Postgres."""

from __future__ import annotations

from testing.databases import (
    current_postgres,
    current_sqlite,
    migrated_postgres,
    migrated_sqlite,
    postgres_template,
    sqlite_template,
)

__all__ = ["current_postgres", "current_sqlite", "migrated_postgres", "migrated_sqlite", "postgres_template", "sqlite_template"]
