"""A migrated SQLite file for what needs a database."""

from __future__ import annotations

from testing.databases import current_sqlite, migrated_sqlite, sqlite_template

__all__ = ["current_sqlite", "migrated_sqlite", "sqlite_template"]
