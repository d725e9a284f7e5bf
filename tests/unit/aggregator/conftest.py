"""A migrated SQLite file for what needs a database."""

from __future__ import annotations

from testing.databases import migrated_sqlite, sqlite_template

__all__ = ["migrated_sqlite", "sqlite_template"]
