"""Sketches of context vectors and the search among them, in SQL: by pgvector where it is installed, else by numpy."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from sqlalchemy import insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ifed.states import TaskState
from services.aggregator.tables import sketches, tasks

NEAREST = text(
    "SELECT sketches.task AS task, 1 - (CAST(sketches.numbers AS vector) <=> CAST(:wanted AS vector)) AS similarity "
    "FROM sketches JOIN tasks ON tasks.name = sketches.task "
    "WHERE sketches.key = :key AND sketches.task <> :task AND tasks.state = :state AND tasks.served IS NOT NULL "
    "ORDER BY similarity DESC, sketches.task LIMIT :limit"
)


class StoredSketches:
    """The repository of sketches, in one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def put(self, task: str, key: str, numbers: Sequence[float]) -> None:
        said = {"key": key, "numbers": json.dumps(list(numbers))}
        changed = await self._connection.execute(update(sketches).where(sketches.c.task == task).values(**said))
        if changed.rowcount == 0:
            await self._connection.execute(insert(sketches).values(task=task, **said))

    async def find(self, task: str) -> tuple[str, list[float]] | None:
        row = (await self._connection.execute(select(sketches).where(sketches.c.task == task))).one_or_none()
        return None if row is None else (row.key, json.loads(row.numbers))

    async def nearest(self, task: str, key: str, numbers: Sequence[float], limit: int) -> list[tuple[str, float]]:
        if await self.has_pgvector():
            asked = {
                "wanted": json.dumps(list(numbers)),
                "key": key,
                "task": task,
                "state": TaskState.FINISHED.value,
                "limit": limit,
            }
            return [(row.task, float(row.similarity)) for row in await self._connection.execute(NEAREST, asked)]
        statement = select(sketches.c.task, sketches.c.numbers).join(tasks, tasks.c.name == sketches.c.task)
        wanted = sketches.c.key == key, sketches.c.task != task, tasks.c.state == TaskState.FINISHED.value
        rows = (await self._connection.execute(statement.where(*wanted, tasks.c.served.is_not(None)))).all()
        found = [(str(row.task), float(np.dot(json.loads(row.numbers), numbers))) for row in rows]
        return sorted(found, key=lambda one: (-one[1], one[0]))[:limit]

    async def has_pgvector(self) -> bool:
        """Whether the database compares vectors itself."""
        if self._connection.dialect.name != "postgresql":
            return False
        asked = text("SELECT EXISTS (SELECT 1 FROM pg_extension WHERE extname = 'vector')")
        return bool(await self._connection.scalar(asked))
