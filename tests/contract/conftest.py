"""The contract suites run on SQLite and on Postgres."""

from __future__ import annotations

from testing.databases import migrated_postgres, migrated_sqlite, postgres_template, sqlite_template

__all__ = ["migrated_postgres", "migrated_sqlite", "postgres_template", "sqlite_template"]
