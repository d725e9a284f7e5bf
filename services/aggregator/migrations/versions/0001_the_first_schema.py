"""Create the first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NAME = sa.String(63).with_variant(sa.String(63, collation="C"), "postgresql")
INSTANT = sa.DateTime(timezone=True)
LIVE = sa.text("state IN ('open', 'aggregating')")


def upgrade() -> None:
    op.create_table(
        "parties",
        sa.Column("name", NAME, nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("enrolled_at", INSTANT, nullable=False),
        sa.Column("revoked_at", INSTANT, nullable=True),
        sa.Column("last_seen_at", INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("name", name="pk_parties"),
        sa.UniqueConstraint("token_hash", name="uq_parties_token_hash"),
    )
    op.create_table(
        "tasks",
        sa.Column("name", NAME, nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("served", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("name", name="pk_tasks"),
    )
    op.create_table(
        "contexts",
        sa.Column("task", NAME, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("weight", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["task"], ["tasks.name"], name="fk_contexts_tasks", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task", "version", name="pk_contexts"),
    )
    op.create_table(
        "memberships",
        sa.Column("task", NAME, nullable=False),
        sa.Column("client", NAME, nullable=False),
        sa.Column("joined_at", INSTANT, nullable=False),
        sa.Column("label_counts", sa.JSON(), nullable=False),
        sa.Column("holdout", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["client"], ["parties.name"], name="fk_memberships_parties"),
        sa.ForeignKeyConstraint(["task"], ["tasks.name"], name="fk_memberships_tasks", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task", "client", name="pk_memberships"),
    )
    op.create_index("ix_memberships_client", "memberships", ["client"], unique=False)

    op.create_table(
        "rounds",
        sa.Column("task", NAME, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("opened_at", INSTANT, nullable=False),
        sa.Column("deadline", INSTANT, nullable=False),
        sa.Column("closed_at", INSTANT, nullable=True),
        sa.Column("claimed_until", INSTANT, nullable=True),
        sa.Column("expected", sa.Integer(), nullable=False),
        sa.Column("required", sa.Integer(), nullable=False),
        sa.Column("contributed", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("produced", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("accuracy", sa.Float(), nullable=True),
        sa.Column("macro_f1", sa.Float(), nullable=True),
        sa.Column("examples", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("contributed >= 0 AND expected >= 0", name="ck_rounds_counts"),
        sa.ForeignKeyConstraint(["task"], ["tasks.name"], name="fk_rounds_tasks", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task", "number", name="pk_rounds"),
    )
    op.create_index("ix_rounds_state", "rounds", ["state", "deadline"], unique=False)
    op.create_index("uq_rounds_live", "rounds", ["task"], unique=True, postgresql_where=LIVE, sqlite_where=LIVE)

    op.create_table(
        "versions",
        sa.Column("task", NAME, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("weight", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["task"], ["tasks.name"], name="fk_versions_tasks", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task", "version", name="pk_versions"),
    )
    op.create_table(
        "contributions",
        sa.Column("task", NAME, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("client", NAME, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("received_at", INSTANT, nullable=False),
        sa.Column("weight", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("loss", sa.Float(), nullable=True),
        sa.Column("seconds", sa.Float(), nullable=True),
        sa.Column("correct", sa.BigInteger(), nullable=True),
        sa.Column("evaluated", sa.BigInteger(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["task", "number"], ["rounds.task", "rounds.number"], name="fk_contributions_rounds", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("task", "number", "client", name="pk_contributions"),
    )
    op.create_table(
        "seats",
        sa.Column("task", NAME, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("client", NAME, nullable=False),
        sa.ForeignKeyConstraint(["task", "number"], ["rounds.task", "rounds.number"], name="fk_seats_rounds", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task", "number", "client", name="pk_seats"),
    )


def downgrade() -> None:
    op.drop_table("seats")
    op.drop_table("contributions")
    op.drop_table("versions")
    op.drop_index("uq_rounds_live", "rounds")
    op.drop_index("ix_rounds_state", "rounds")

    op.drop_table("rounds")
    op.drop_index("ix_memberships_client", "memberships")

    op.drop_table("memberships")
    op.drop_table("contexts")
    op.drop_table("tasks")
    op.drop_table("parties")
