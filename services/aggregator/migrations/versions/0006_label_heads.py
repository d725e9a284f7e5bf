"""Label heads: what head rounds ask, the head of each version, and evaluations by likelihood."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

NAME = sa.String(63).with_variant(sa.String(63, collation="C"), "postgresql")


def _added() -> tuple[tuple[str, sa.Column[Any]], ...]:
    return (
        ("tasks", sa.Column("head", sa.String(length=16), nullable=False, server_default="none")),
        ("versions", sa.Column("head", sa.String(length=16), nullable=False, server_default="none")),
        ("rounds", sa.Column("question", sa.String(length=16), nullable=True)),
        ("rounds", sa.Column("solve", sa.Integer(), nullable=True)),
        ("rounds", sa.Column("log_likelihood", sa.Float(), nullable=True)),
        ("rounds", sa.Column("reading", sa.String(length=16), nullable=True)),
        ("rounds", sa.Column("readings", sa.JSON(), nullable=True)),
    )


def upgrade() -> None:
    for table, column in _added():
        op.add_column(table, column)
    op.create_table(
        "head_queries",
        sa.Column("task", NAME, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("next_question", sa.String(length=16), nullable=True),
        sa.Column("next_body", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("task", "number", name="pk_head_queries"),
        sa.ForeignKeyConstraint(
            ["task", "number"], ["rounds.task", "rounds.number"], name="fk_head_queries_rounds", ondelete="CASCADE"
        ),
    )


def downgrade() -> None:
    op.drop_table("head_queries")
    for table, column in reversed(_added()):
        op.drop_column(table, column.name)
