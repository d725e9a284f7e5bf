"""The tables of what happens and of who is told. One definition for Postgres and SQLite; knows no queries."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, ForeignKey, Index, Integer, PrimaryKeyConstraint, String, Table, Text

from services.aggregator.tables import NAME, WORD, Instant, metadata

COUNTED = BigInteger().with_variant(Integer(), "sqlite")

# Triggers of the migration refuse to change or remove a line. No foreign key: what happened to a task outlives it.
events = Table(
    "events",
    metadata,
    Column("id", COUNTED, primary_key=True, autoincrement=True),
    Column("at", Instant, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("task", NAME, nullable=False),
    Column("round", Integer),
    Column("round_kind", WORD),
    Column("version", Integer),
    Column("reason", Text),
    Index(None, "task", "id"),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("url", Text, nullable=False),
    Column("secret", String(100), nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("kinds", JSON(none_as_null=True)),
    Column("task", NAME),
    Column("claimed_until", Instant),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("webhook", NAME, ForeignKey("webhooks.name", ondelete="CASCADE"), nullable=False),
    Column("event", COUNTED, ForeignKey("events.id"), nullable=False),
    Column("state", WORD, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_at", Instant),
    Column("status", Integer),
    Column("error", Text),
    Column("delivered_at", Instant),
    PrimaryKeyConstraint("webhook", "event"),
    Index("ix_deliveries_state", "state", "next_at"),
)
