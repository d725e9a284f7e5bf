"""Context vectors and versions of the coefficients, in SQL, as the bytes that travel. Makes no decision."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import Row, Table, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ifed.errors import NothingYet, UnknownVersion
from ifed.messages.enums import TaskState
from services.aggregator.domain.aggregates import Aggregate
from services.aggregator.storage.tables import contexts, sketches, tasks, versions

HEAD = ("task", "version", "digest", "created_at", "round", "weight")
CONTEXT, COEFFICIENTS = (*HEAD, "changes"), (*HEAD, "calibrated", "context")


class AggregateRepository:
    """The repository of aggregates, in one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add_context(self, aggregate: Aggregate, body: bytes) -> None:
        await self._add(contexts, CONTEXT, aggregate, body=body)

    async def add_coefficients(self, aggregate: Aggregate, body: bytes, moments: bytes | None = None) -> None:
        await self._add(versions, COEFFICIENTS, aggregate, body=body, moments=moments)

    async def _add(self, table: Table, names: Sequence[str], aggregate: Aggregate, **more: Any) -> None:
        head = {name: getattr(aggregate, name) for name in names}
        await self._connection.execute(insert(table).values(**head, **more))

    async def newest_version(self, task: str) -> int | None:
        newest: int | None = await self._connection.scalar(select(func.max(versions.c.version)).where(versions.c.task == task))
        return newest

    async def moments(self, task: str, version: int) -> bytes | None:
        statement = select(versions.c.moments).where(versions.c.task == task, versions.c.version == version)
        body = await self._connection.scalar(statement)
        return None if body is None else bytes(body)

    async def withdraw_after(self, task: str, version: int, at: datetime) -> None:
        mine = update(versions).where(versions.c.task == task)
        later = versions.c.version > version, versions.c.withdrawn_at.is_(None)
        await self._connection.execute(mine.where(*later).values(withdrawn_at=at))
        await self._connection.execute(mine.where(versions.c.version == version).values(withdrawn_at=None))

    async def context(self, task: str, version: int | None = None) -> Aggregate:
        wanted = select(*_head(contexts, CONTEXT)).where(contexts.c.task == task)
        if version is not None:
            wanted = wanted.where(contexts.c.version == version)
        row = (await self._connection.execute(wanted.order_by(contexts.c.version.desc()).limit(1))).one_or_none()
        if row is None and version is not None:
            raise UnknownVersion(f"task {task!r} has no context vector {version}")
        if row is None:
            raise NothingYet(f"task {task!r} has no context vector before its first round closes")
        return _aggregate(row, CONTEXT)

    async def contexts(self, task: str, after: int, limit: int) -> list[Aggregate]:
        mine = select(*_head(contexts, CONTEXT)).where(contexts.c.task == task, contexts.c.version > after)
        found = await self._connection.execute(mine.order_by(contexts.c.version).limit(limit))
        return [_aggregate(row, CONTEXT) for row in found]

    async def context_body(self, task: str, version: int) -> bytes:
        return await self._body(contexts, task, version)

    async def coefficients(self, task: str, version: int) -> Aggregate:
        mine = select(*_head(versions, COEFFICIENTS)).where(versions.c.task == task, versions.c.version == version)
        row = (await self._connection.execute(mine)).one_or_none()
        if row is None:
            raise _unknown(task, version)
        return _aggregate(row, COEFFICIENTS)

    async def coefficients_body(self, task: str, version: int) -> bytes:
        return await self._body(versions, task, version)

    async def _body(self, table: Table, task: str, version: int) -> bytes:
        statement = select(table.c.body).where(table.c.task == task, table.c.version == version)
        if (body := await self._connection.scalar(statement)) is None:
            raise _unknown(task, version)
        return bytes(body)


def _head(table: Table, names: Sequence[str]) -> list[Any]:
    return [table.c[name] for name in names]


def _aggregate(row: Row[Any], names: Sequence[str]) -> Aggregate:
    return Aggregate(**{name: getattr(row, name) for name in names})


def _unknown(task: str, version: int) -> UnknownVersion:
    return UnknownVersion(f"task {task!r} has no version {version}")


NEAREST = text(
    "SELECT sketches.task AS task, 1 - (CAST(sketches.numbers AS vector) <=> CAST(:wanted AS vector)) AS similarity "
    "FROM sketches JOIN tasks ON tasks.name = sketches.task "
    "WHERE sketches.key = :key AND sketches.task <> :task AND tasks.state = :state AND tasks.served IS NOT NULL "
    "ORDER BY similarity DESC, sketches.task LIMIT :limit"
)


class SketchRepository:
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
