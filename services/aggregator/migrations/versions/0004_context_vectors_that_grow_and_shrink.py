"""Add what additions and withdrawals need: context parts, their changes, and the context version of each round."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

NAME = sa.String(63).with_variant(sa.String(63, collation="C"), "postgresql")
INSTANT = sa.DateTime(timezone=True)
KEPT = "task, number, client, digest, received_at, weight, size, loss, seconds, correct, evaluated, body"


def _added() -> tuple[tuple[str, sa.Column[Any]], ...]:
    return (
        ("tasks", sa.Column("context_changes", sa.Integer(), nullable=False, server_default="0")),
        ("tasks", sa.Column("context_settled", sa.Integer(), nullable=False, server_default="0")),
        ("tasks", sa.Column("context_claimed_until", INSTANT, nullable=True)),
        ("memberships", sa.Column("withdrawn_at", INSTANT, nullable=True)),
        ("rounds", sa.Column("context", sa.Integer(), nullable=True)),
        ("contexts", sa.Column("changes", sa.Integer(), nullable=False, server_default="0")),
        ("versions", sa.Column("context", sa.Integer(), nullable=False, server_default="1")),
    )


def upgrade() -> None:
    for table, column in _added():
        op.add_column(table, column)
    # Before this revision a task had one context vector, which every later round used.
    op.execute("UPDATE rounds SET context = 1 WHERE kind <> 'context'")
    if op.get_bind().dialect.name == "postgresql":
        op.add_column("contributions", sa.Column("change", sa.Integer(), nullable=False, server_default="0"))
        op.add_column("contributions", sa.Column("removed", sa.Integer(), nullable=True))
        op.drop_constraint("pk_contributions", "contributions", type_="primary")
        op.create_primary_key("pk_contributions", "contributions", ["task", "number", "client", "change"])
    else:
        _made_anew(later=True)


def _refuse_what_has_no_place() -> None:
    """Refuse to go below this revision if a client joined late, added demonstrations or withdrew.

    The older schema has no place for it: the aggregates would no longer be those of the ledger, and withdrawn clients would take part again.

    Raises:
        CommandError: there are such rows; the message says how many and what to do.
    """
    for table, condition, rows in (
        ("contributions", "change > 0", "additions to context vectors"),
        ("contributions", "removed IS NOT NULL", "withdrawn contributions"),
        ("memberships", "withdrawn_at IS NOT NULL", "withdrawn clients"),
        ("contexts", "version > 1", "revised context vectors"),
    ):
        count = op.get_bind().scalar(sa.text(f"SELECT COUNT(*) FROM {table} WHERE {condition}"))  # noqa: S608  # our own words
        if count:
            raise CommandError(
                f"the schema cannot go below revision 0004: the database has {count} {rows}, for which the older schema has no place; "
                "delete those tasks first, or restore a backup of the older release"
            )


def _made_anew(*, later: bool) -> None:
    """Replace the table: SQLite cannot change a primary key, so copy the rows into a new table."""
    more = [
        sa.Column("change", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("removed", sa.Integer(), nullable=True),
    ]
    key = ["task", "number", "client", "change"] if later else ["task", "number", "client"]
    op.create_table(
        "contributions_anew",
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
        *(more if later else []),
        sa.ForeignKeyConstraint(
            ["task", "number"], ["rounds.task", "rounds.number"], name="fk_contributions_rounds", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint(*key, name="pk_contributions"),
    )
    op.execute(f"INSERT INTO contributions_anew ({KEPT}) SELECT {KEPT} FROM contributions")  # noqa: S608  # our own words
    op.drop_table("contributions")
    op.rename_table("contributions_anew", "contributions")


def downgrade() -> None:
    _refuse_what_has_no_place()
    if op.get_bind().dialect.name == "postgresql":
        op.drop_constraint("pk_contributions", "contributions", type_="primary")
        op.drop_column("contributions", "removed")
        op.drop_column("contributions", "change")
        op.create_primary_key("pk_contributions", "contributions", ["task", "number", "client"])
    else:
        _made_anew(later=False)
    for table, column in reversed(_added()):
        op.drop_column(table, column.name)
