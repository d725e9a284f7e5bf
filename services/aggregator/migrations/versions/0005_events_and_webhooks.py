"""Add domain events, webhooks and their deliveries."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

NAME = sa.String(63).with_variant(sa.String(63, collation="C"), "postgresql")
INSTANT = sa.DateTime(timezone=True)
COUNTED = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "events",
        sa.Column("id", COUNTED, nullable=False, autoincrement=True),
        sa.Column("at", INSTANT, nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("task", NAME, nullable=False),
        sa.Column("round", sa.Integer(), nullable=True),
        sa.Column("round_kind", sa.String(length=16), nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
    )
    op.create_index("ix_events_task", "events", ["task", "id"], unique=False)
    refuse = _refuse_on_postgres if op.get_bind().dialect.name == "postgresql" else _refuse_on_sqlite
    refuse()
    _webhooks()


def _webhooks() -> None:
    op.create_table(
        "webhooks",
        sa.Column("name", NAME, nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret", sa.String(length=100), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("kinds", sa.JSON(), nullable=True),
        sa.Column("task", NAME, nullable=True),
        sa.Column("claimed_until", INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("name", name="pk_webhooks"),
    )
    op.create_table(
        "deliveries",
        sa.Column("webhook", NAME, nullable=False),
        sa.Column("event", COUNTED, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_at", INSTANT, nullable=True),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("delivered_at", INSTANT, nullable=True),
        sa.ForeignKeyConstraint(["webhook"], ["webhooks.name"], name="fk_deliveries_webhooks", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["event"], ["events.id"], name="fk_deliveries_events"),
        sa.PrimaryKeyConstraint("webhook", "event", name="pk_deliveries"),
    )
    op.create_index("ix_deliveries_state", "deliveries", ["state", "next_at"], unique=False)


def _refuse_on_postgres() -> None:
    op.execute(
        "CREATE FUNCTION ifed_events_only_grow() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the events only grow'; END $$"
    )
    op.execute(
        "CREATE TRIGGER events_only_grow BEFORE UPDATE OR DELETE OR TRUNCATE ON events "
        "FOR EACH STATEMENT EXECUTE FUNCTION ifed_events_only_grow()"
    )


def _refuse_on_sqlite() -> None:
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER events_refuse_{verb.lower()} BEFORE {verb} ON events BEGIN SELECT RAISE(ABORT, 'the events only grow'); END"
        )


def downgrade() -> None:
    op.drop_table("deliveries")
    op.drop_table("webhooks")
    op.drop_table("events")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION ifed_events_only_grow()")
