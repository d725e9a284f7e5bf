"""Tasks keep the method that they were made with, under defaults that have changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# What a task meant that does not say it.
FORMER = {"head": "words", "injection": "all_tokens"}
FORMER_POLICY = {"rounds": 6, "cycle": None, "local_steps": 8, "batch_size": 8, "learning_rate": 0.04, "update_dtype": "float32"}

tasks = sa.table("tasks", sa.column("name", sa.String), sa.column("spec", sa.JSON))


def upgrade() -> None:
    _rewrite(lambda spec: FORMER | spec | {"policy": FORMER_POLICY | spec.get("policy", {})})


def downgrade() -> None:
    _rewrite(lambda spec: spec | {"policy": {name: value for name, value in spec["policy"].items() if name != "cycle"}})


def _rewrite(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    connection = op.get_bind()
    for row in connection.execute(sa.select(tasks.c.name, tasks.c.spec)).all():
        connection.execute(sa.update(tasks).where(tasks.c.name == row.name).values(spec=change(row.spec)))
