"""The SQL of context vectors and versions of the coefficients, stored as the bytes that travel, and of sketches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import Row, Table, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ifed.errors import NothingYet, UnknownVersion
from ifed.messages.enums import HeadState, TaskState
from services.aggregator.domain.aggregates import Aggregate
from services.aggregator.storage.changes import ChangeTracker
from services.aggregator.storage.tables import contexts, sketches, tasks, versions

_COMMON = ("task", "version", "digest", "created_at", "round", "weight")
_CONTEXT = (*_COMMON, "changes")
_COEFFICIENTS = (*_COMMON, "calibrated", "context", "head", "solve")
_NEAREST = text(
    "SELECT sketches.task AS task, 1 - (CAST(sketches.numbers AS vector) <=> CAST(:numbers AS vector)) AS similarity "
    "FROM sketches JOIN tasks ON tasks.name = sketches.task "
    "WHERE sketches.key = :key AND sketches.task <> :task AND tasks.state = :state AND tasks.served IS NOT NULL "
    "ORDER BY similarity DESC, sketches.task LIMIT :limit"
)


class AggregateRepository:
    """Context vectors and versions of the coefficients. An `Aggregate` describes one; its body is read separately."""

    def __init__(self, connection: AsyncConnection, changes: ChangeTracker) -> None:
        self._connection, self._changes = connection, changes

    async def add_context(self, aggregate: Aggregate, body: bytes) -> None:
        """Store a new version of a context vector."""
        await self._add(contexts, _CONTEXT, aggregate, body=body)
        self._changes.context_added(aggregate)

    async def add_coefficients(self, aggregate: Aggregate, body: bytes, moments: bytes | None = None) -> None:
        """Store a new version of the coefficients, with the moments of the server optimiser after it."""
        await self._add(versions, _COEFFICIENTS, aggregate, body=body, moments=moments)

    async def _add(self, table: Table, names: Sequence[str], aggregate: Aggregate, **bodies: bytes | None) -> None:
        values = {name: str(value) if isinstance(value := getattr(aggregate, name), HeadState) else value for name in names}
        await self._connection.execute(insert(table).values(**values, **bodies))

    async def newest_version(self, task: str) -> int | None:
        """Return the highest version of the task's coefficients, withdrawn ones included; None when there is none."""
        newest: int | None = await self._connection.scalar(select(func.max(versions.c.version)).where(versions.c.task == task))
        return newest

    async def moments(self, task: str, version: int) -> bytes | None:
        """Return the moments of the server optimiser after that version; None when it keeps none."""
        statement = select(versions.c.moments).where(versions.c.task == task, versions.c.version == version)
        body = await self._connection.scalar(statement)
        return None if body is None else bytes(body)

    async def withdraw_after(self, task: str, version: int, at: datetime) -> None:
        """Mark the versions after `version` as withdrawn by a rollback, and `version` itself as current."""
        of_task = update(versions).where(versions.c.task == task)
        later = versions.c.version > version, versions.c.withdrawn_at.is_(None)
        await self._connection.execute(of_task.where(*later).values(withdrawn_at=at))
        await self._connection.execute(of_task.where(versions.c.version == version).values(withdrawn_at=None))

    async def context(self, task: str, version: int | None = None) -> Aggregate:
        """Return that version of the context vector, or the newest one.

        Raises:
            UnknownVersion: the task has no such version.
            NothingYet: no version was named and there is none.
        """
        statement = select(*_columns(contexts, _CONTEXT)).where(contexts.c.task == task)
        if version is not None:
            statement = statement.where(contexts.c.version == version)
        row = (await self._connection.execute(statement.order_by(contexts.c.version.desc()).limit(1))).one_or_none()
        if row is None and version is not None:
            raise UnknownVersion(f"task {task!r} has no context vector {version}")
        if row is None:
            raise NothingYet(f"task {task!r} has no context vector before its first round closes")
        return _aggregate(row, _CONTEXT)

    async def contexts(self, task: str, after: int, limit: int) -> list[Aggregate]:
        """Return up to `limit` versions of the context vector in order, those after `after`."""
        statement = select(*_columns(contexts, _CONTEXT)).where(contexts.c.task == task, contexts.c.version > after)
        rows = await self._connection.execute(statement.order_by(contexts.c.version).limit(limit))
        return [_aggregate(row, _CONTEXT) for row in rows]

    async def context_body(self, task: str, version: int) -> bytes:
        """Return the body of that version of the context vector.

        Raises:
            UnknownVersion: the task has no such version.
        """
        return await self._body(contexts, task, version)

    async def coefficients(self, task: str, version: int) -> Aggregate:
        """Return that version of the coefficients.

        Raises:
            UnknownVersion: the task has no such version.
        """
        statement = select(*_columns(versions, _COEFFICIENTS)).where(versions.c.task == task, versions.c.version == version)
        row = (await self._connection.execute(statement)).one_or_none()
        if row is None:
            raise _unknown_version(task, version)
        return _aggregate(row, _COEFFICIENTS)

    async def coefficients_body(self, task: str, version: int) -> bytes:
        """Return the body of that version of the coefficients.

        Raises:
            UnknownVersion: the task has no such version.
        """
        return await self._body(versions, task, version)

    async def _body(self, table: Table, task: str, version: int) -> bytes:
        statement = select(table.c.body).where(table.c.task == task, table.c.version == version)
        if (body := await self._connection.scalar(statement)) is None:
            raise _unknown_version(task, version)
        return bytes(body)


def _columns(table: Table, names: Sequence[str]) -> list[Any]:
    return [table.c[name] for name in names]


def _aggregate(row: Row[Any], names: Sequence[str]) -> Aggregate:
    values = {name: getattr(row, name) for name in names}
    if "head" in values:
        values["head"] = HeadState(values["head"])
    return Aggregate(**values)


def _unknown_version(task: str, version: int) -> UnknownVersion:
    return UnknownVersion(f"task {task!r} has no version {version}")


class SketchRepository:
    """Sketches of context vectors by task, and the search for similar ones."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def put(self, task: str, key: str, numbers: Sequence[float]) -> None:
        """Store the sketch of a task, or replace it.

        Args:
            key: what two tasks must share to be compared.
            numbers: of unit length.
        """
        values = {"key": key, "numbers": json.dumps(list(numbers))}
        updated = await self._connection.execute(update(sketches).where(sketches.c.task == task).values(**values))
        if updated.rowcount == 0:
            await self._connection.execute(insert(sketches).values(task=task, **values))

    async def find(self, task: str) -> tuple[str, list[float]] | None:
        """Return the key and the sketch of a task; None when it has none."""
        row = (await self._connection.execute(select(sketches).where(sketches.c.task == task))).one_or_none()
        return None if row is None else (row.key, json.loads(row.numbers))

    async def nearest(self, task: str, key: str, numbers: Sequence[float], limit: int) -> list[tuple[str, float]]:
        """Return other finished tasks of the same key that serve a version, with their cosine to `numbers`, the most similar first."""
        if await self.has_pgvector():
            parameters = {
                "numbers": json.dumps(list(numbers)),
                "key": key,
                "task": task,
                "state": TaskState.FINISHED.value,
                "limit": limit,
            }
            return [(row.task, float(row.similarity)) for row in await self._connection.execute(_NEAREST, parameters)]
        statement = select(sketches.c.task, sketches.c.numbers).join(tasks, tasks.c.name == sketches.c.task)
        comparable = sketches.c.key == key, sketches.c.task != task
        serving = tasks.c.state == TaskState.FINISHED.value, tasks.c.served.is_not(None)
        rows = (await self._connection.execute(statement.where(*comparable, *serving))).all()
        similarities = [(str(row.task), float(np.dot(json.loads(row.numbers), numbers))) for row in rows]
        return sorted(similarities, key=lambda item: (-item[1], item[0]))[:limit]

    async def has_pgvector(self) -> bool:
        """Return whether the database can compare vectors itself."""
        if self._connection.dialect.name != "postgresql":
            return False
        statement = text("SELECT EXISTS (SELECT 1 FROM pg_extension WHERE extname = 'vector')")
        return bool(await self._connection.scalar(statement))
