"""The tables, defined once for Postgres and SQLite."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)

# Byte order on every database: sums run in the order of client names, and the locale of the database must not change them.
NAME = String(63).with_variant(String(63, collation="C"), "postgresql")
DIGEST = String(64)
WORD = String(16)
COUNTER = BigInteger().with_variant(Integer(), "sqlite")


class Instant(TypeDecorator[datetime]):
    """A time in UTC. It has its zone in Python on every database, also on SQLite, which stores none."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to UTC.

        Raises:
            ValueError: the time has no zone.
        """
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone cannot be stored")
        return value.astimezone(UTC).replace(tzinfo=None) if dialect.name == "sqlite" else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Return the time with its zone."""
        return None if value is None else value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)
tasks = Table(
    "tasks",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("spec", JSON, nullable=False),
    Column("state", WORD, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("version", Integer),
    Column("served", Integer),
    Column("reason", Text),
    Column("calibrated", Integer, nullable=False, server_default="0"),
    Column("warm_start", NAME),
    Column("context_changes", Integer, nullable=False, server_default="0"),
    Column("context_settled", Integer, nullable=False, server_default="0"),
    Column("context_claimed_until", Instant),
    Column("head", WORD, nullable=False, server_default="none"),
)
sketches = Table(
    "sketches",
    metadata,
    Column("task", NAME, ForeignKey("tasks.name", ondelete="CASCADE"), primary_key=True),
    Column("key", DIGEST, nullable=False),
    Column("numbers", Text, nullable=False),
    Index(None, "key"),
)
parties = Table(
    "parties",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("role", WORD, nullable=False),
    Column("token_hash", DIGEST, nullable=False),
    Column("enrolled_at", Instant, nullable=False),
    Column("revoked_at", Instant),
    Column("last_seen_at", Instant),
    UniqueConstraint("token_hash"),
)
memberships = Table(
    "memberships",
    metadata,
    Column("task", NAME, ForeignKey("tasks.name", ondelete="CASCADE"), nullable=False),
    Column("client", NAME, ForeignKey("parties.name"), nullable=False),
    Column("joined_at", Instant, nullable=False),
    Column("label_counts", JSON, nullable=False),
    Column("holdout", Integer, nullable=False),
    Column("withdrawn_at", Instant),
    PrimaryKeyConstraint("task", "client"),
    Index(None, "client"),
)
rounds = Table(
    "rounds",
    metadata,
    Column("task", NAME, ForeignKey("tasks.name", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("kind", WORD, nullable=False),
    Column("state", WORD, nullable=False),
    Column("opened_at", Instant, nullable=False),
    Column("deadline", Instant, nullable=False),
    Column("closed_at", Instant),
    Column("claimed_until", Instant),
    Column("expected", Integer, nullable=False),
    Column("required", Integer, nullable=False),
    Column("contributed", Integer, nullable=False),
    Column("version", Integer),
    Column("produced", Integer),
    Column("reason", Text),
    Column("accuracy", Float),
    Column("macro_f1", Float),
    Column("examples", BigInteger),
    Column("label_bias", JSON(none_as_null=True)),
    Column("attempt", Integer, nullable=False, server_default="1"),
    Column("context", Integer),
    Column("question", WORD),
    Column("solve", Integer),
    Column("log_likelihood", Float),
    Column("reading", WORD),
    Column("readings", JSON(none_as_null=True)),
    Column("labels", JSON(none_as_null=True)),
    Column("confidence", JSON(none_as_null=True)),
    PrimaryKeyConstraint("task", "number"),
    CheckConstraint("contributed >= 0 AND expected >= 0", name="counts"),
    Index("ix_rounds_state", "state", "deadline"),
    # The database itself ensures that a task has one live round at a time.
    Index(
        "uq_rounds_live",
        "task",
        unique=True,
        postgresql_where=text("state IN ('open', 'aggregating')"),
        sqlite_where=text("state IN ('open', 'aggregating')"),
    ),
)
seats = Table(
    "seats",
    metadata,
    Column("task", NAME, nullable=False),
    Column("number", Integer, nullable=False),
    Column("client", NAME, nullable=False),
    PrimaryKeyConstraint("task", "number", "client"),
    ForeignKeyConstraint(["task", "number"], ["rounds.task", "rounds.number"], ondelete="CASCADE"),
)
contributions = Table(
    "contributions",
    metadata,
    Column("task", NAME, nullable=False),
    Column("number", Integer, nullable=False),
    Column("client", NAME, nullable=False),
    Column("digest", DIGEST, nullable=False),
    Column("received_at", Instant, nullable=False),
    Column("weight", BigInteger, nullable=False),
    Column("size", Integer, nullable=False),
    Column("loss", Float),
    Column("seconds", Float),
    Column("correct", BigInteger),
    Column("evaluated", BigInteger),
    Column("body", LargeBinary, nullable=False),
    # The change it came with, only in context rounds, 0 for one that came in the round itself; and, in head rounds too, the change it was
    # withdrawn with.
    Column("change", Integer, nullable=False, server_default="0"),
    Column("removed", Integer),
    PrimaryKeyConstraint("task", "number", "client", "change"),
    ForeignKeyConstraint(["task", "number"], ["rounds.task", "rounds.number"], ondelete="CASCADE"),
)
contexts = Table(
    "contexts",
    metadata,
    Column("task", NAME, ForeignKey("tasks.name", ondelete="CASCADE"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("digest", DIGEST, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("round", Integer, nullable=False),
    Column("weight", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("changes", Integer, nullable=False, server_default="0"),
    PrimaryKeyConstraint("task", "version"),
)
versions = Table(
    "versions",
    metadata,
    Column("task", NAME, ForeignKey("tasks.name", ondelete="CASCADE"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("digest", DIGEST, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("round", Integer, nullable=False),
    Column("weight", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("calibrated", Integer, nullable=False, server_default="0"),
    Column("moments", LargeBinary),
    Column("withdrawn_at", Instant),
    Column("context", Integer, nullable=False, server_default="1"),
    Column("head", WORD, nullable=False, server_default="none"),
    Column("solve", Integer),
    PrimaryKeyConstraint("task", "version"),
)
# What each head round asks, and, once it has closed, what the next one asks.
head_queries = Table(
    "head_queries",
    metadata,
    Column("task", NAME, nullable=False),
    Column("number", Integer, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("next_question", WORD),
    Column("next_body", LargeBinary),
    PrimaryKeyConstraint("task", "number"),
    ForeignKeyConstraint(["task", "number"], ["rounds.task", "rounds.number"], ondelete="CASCADE"),
)
# Label heads made anew after withdrawals, for every version whose head came from the solution; tensors of the head alone.
head_revisions = Table(
    "head_revisions",
    metadata,
    Column("task", NAME, ForeignKey("tasks.name", ondelete="CASCADE"), nullable=False),
    Column("solve", Integer, nullable=False),
    Column("changes", Integer, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("weight", BigInteger, nullable=False),
    Column("digest", DIGEST, nullable=False),
    Column("body", LargeBinary, nullable=False),
    PrimaryKeyConstraint("task", "solve", "changes"),
)
enrolments = Table(
    "enrolments",
    metadata,
    Column("code_hash", DIGEST, primary_key=True),
    Column("name", NAME, nullable=False),
    Column("role", WORD, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False),
    Column("used_at", Instant),
)
# Triggers made by the migration refuse to update or delete rows.
audit = Table(
    "audit",
    metadata,
    Column("id", COUNTER, primary_key=True, autoincrement=True),
    Column("at", Instant, nullable=False),
    Column("actor", NAME, nullable=False),
    Column("action", String(100), nullable=False),
    Column("target", String(300), nullable=False),
    Column("request_id", String(100)),
)
# Triggers made by the migration refuse to update or delete rows. There is no foreign key: the events of a task outlive it.
events = Table(
    "events",
    metadata,
    Column("id", COUNTER, primary_key=True, autoincrement=True),
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
    Column("event", COUNTER, ForeignKey("events.id"), nullable=False),
    Column("state", WORD, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_at", Instant),
    Column("status", Integer),
    Column("error", Text),
    Column("delivered_at", Instant),
    PrimaryKeyConstraint("webhook", "event"),
    Index("ix_deliveries_state", "state", "next_at"),
)
