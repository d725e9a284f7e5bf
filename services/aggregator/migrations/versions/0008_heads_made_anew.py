"""Label heads that are made anew when a client withdraws, and the solution that the head of each version came from."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

NAME = sa.String(63).with_variant(sa.String(63, collation="C"), "postgresql")
ROUNDS = sa.table("rounds", *(sa.column(name) for name in ("task", "number", "version", "solve")))
VERSIONS = sa.table("versions", *(sa.column(name) for name in ("task", "version", "round", "head", "solve")))


def upgrade() -> None:
    op.add_column("versions", sa.Column("solve", sa.Integer(), nullable=True))
    op.create_table(
        "head_revisions",
        sa.Column("task", NAME, nullable=False),
        sa.Column("solve", sa.Integer(), nullable=False),
        sa.Column("changes", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("weight", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("task", "solve", "changes", name="pk_head_revisions"),
        sa.ForeignKeyConstraint(["task"], ["tasks.name"], name="fk_head_revisions_tasks", ondelete="CASCADE"),
    )
    _fill_solve(op.get_bind())


def _fill_solve(connection: sa.Connection) -> None:
    """Give each version with a head the solution that it came from: its round's, or that of the version its round started from."""
    of_version: dict[tuple[str, Any], int | None] = {}
    same = sa.and_(ROUNDS.c.task == VERSIONS.c.task, ROUNDS.c.number == VERSIONS.c.round)
    columns = VERSIONS.c.task, VERSIONS.c.version, ROUNDS.c.solve, ROUNDS.c.version.label("start")
    made = sa.select(*columns).join(ROUNDS, same).where(VERSIONS.c.head != "none").order_by(VERSIONS.c.task, VERSIONS.c.version)
    for row in connection.execute(made).all():
        solve = row.solve if row.solve is not None else of_version.get((row.task, row.start))
        of_version[row.task, row.version] = solve
        this = VERSIONS.c.task == row.task, VERSIONS.c.version == row.version
        connection.execute(sa.update(VERSIONS).where(*this).values(solve=solve))


def downgrade() -> None:
    count = op.get_bind().scalar(sa.text("SELECT COUNT(*) FROM head_revisions"))
    if count:
        raise CommandError(
            f"the schema cannot go below revision {revision}: the database has {count} label heads that were made anew without clients "
            "that withdrew, for which the older schema has no place; delete those tasks first, or restore a backup of the older release"
        )
    op.drop_table("head_revisions")
    op.drop_column("versions", "solve")
