"""Evaluations by label and by confidence."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

ADDED = ("labels", "confidence")


def upgrade() -> None:
    for name in ADDED:
        op.add_column("rounds", sa.Column(name, sa.JSON(), nullable=True))


def downgrade() -> None:
    for name in reversed(ADDED):
        op.drop_column("rounds", name)
