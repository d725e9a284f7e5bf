"""Add what a rollback and a repeated round need: parent versions, optimiser moments, attempts, label biases. Add similarity sketches."""

from __future__ import annotations

import contextlib

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

NAME = sa.String(63).with_variant(sa.String(63, collation="C"), "postgresql")
INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("tasks", sa.Column("calibrated", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("rounds", sa.Column("label_bias", sa.JSON(), nullable=True))
    op.add_column("rounds", sa.Column("attempt", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("versions", sa.Column("calibrated", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("versions", sa.Column("moments", sa.LargeBinary(), nullable=True))
    op.add_column("versions", sa.Column("withdrawn_at", INSTANT, nullable=True))
    op.add_column("tasks", sa.Column("warm_start", NAME, nullable=True))
    op.create_table(
        "sketches",
        sa.Column("task", NAME, nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("numbers", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["task"], ["tasks.name"], name="fk_sketches_tasks", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task", name="pk_sketches"),
    )
    op.create_index("ix_sketches_key", "sketches", ["key"], unique=False)
    _vectors()
    # Before this revision every closed calibration round made the next version.
    op.execute("UPDATE tasks SET calibrated = COALESCE(version, 0)")
    op.execute("UPDATE versions SET calibrated = version")


def _vectors() -> None:
    """Add a vector column if pgvector is installed and this role may enable it; otherwise numpy compares the sketches."""
    bind = op.get_bind()
    if bind.dialect.name != "postgresql":
        return
    if not bind.scalar(sa.text("SELECT EXISTS (SELECT 1 FROM pg_available_extensions WHERE name = 'vector')")):
        return
    with contextlib.suppress(sa.exc.DBAPIError), bind.begin_nested():
        bind.execute(sa.text("CREATE EXTENSION IF NOT EXISTS vector"))


def downgrade() -> None:
    if count := op.get_bind().scalar(sa.text("SELECT COUNT(*) FROM versions WHERE withdrawn_at IS NOT NULL")):
        raise CommandError(
            f"the schema cannot go below revision 0003: the database has {count} versions that a roll-back withdrew, and the older release "
            "would serve them; delete those tasks first, or restore a backup of the older release"
        )
    op.drop_index("ix_sketches_key", "sketches")
    op.drop_table("sketches")
    for table, column in (
        ("versions", "withdrawn_at"),
        ("versions", "moments"),
        ("versions", "calibrated"),
        ("rounds", "attempt"),
        ("rounds", "label_bias"),
        ("tasks", "warm_start"),
        ("tasks", "calibrated"),
    ):
        op.drop_column(table, column)
