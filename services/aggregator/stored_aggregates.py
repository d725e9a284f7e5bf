"""Context vectors and versions of the coefficients, in SQL, as the bytes that travel. Makes no decision."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Table, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ifed.errors import NothingYet, UnknownVersion
from services.aggregator.records import Aggregate
from services.aggregator.tables import contexts, versions

HEAD = ("task", "version", "digest", "created_at", "round", "weight")


class StoredAggregates:
    """The repository of aggregates, in one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add_context(self, aggregate: Aggregate, body: bytes) -> None:
        await self._add(contexts, aggregate, body)

    async def add_coefficients(self, aggregate: Aggregate, body: bytes, moments: bytes | None = None) -> None:
        await self._add(versions, aggregate, body, calibrated=aggregate.calibrated, moments=moments)

    async def _add(self, table: Table, aggregate: Aggregate, body: bytes, **more: Any) -> None:
        head = {name: getattr(aggregate, name) for name in HEAD}
        await self._connection.execute(insert(table).values(**head, body=body, **more))

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

    async def context(self, task: str) -> Aggregate:
        statement = select(*_head(contexts)).where(contexts.c.task == task).order_by(contexts.c.version.desc()).limit(1)
        row = (await self._connection.execute(statement)).one_or_none()
        if row is None:
            raise NothingYet(f"task {task!r} has no context vector before its first round closes")
        return _aggregate(row)

    async def context_body(self, task: str, version: int) -> bytes:
        return await self._body(contexts, task, version)

    async def coefficients(self, task: str, version: int) -> Aggregate:
        columns: list[Any] = [*_head(versions), versions.c.calibrated]
        statement = select(*columns)
        mine = statement.where(versions.c.task == task, versions.c.version == version)
        row = (await self._connection.execute(mine)).one_or_none()
        if row is None:
            raise _unknown(task, version)
        return replace(_aggregate(row), calibrated=row.calibrated)

    async def coefficients_body(self, task: str, version: int) -> bytes:
        return await self._body(versions, task, version)

    async def _body(self, table: Table, task: str, version: int) -> bytes:
        statement = select(table.c.body).where(table.c.task == task, table.c.version == version)
        if (body := await self._connection.scalar(statement)) is None:
            raise _unknown(task, version)
        return bytes(body)


def _head(table: Table) -> list[Any]:
    return [table.c[name] for name in HEAD]


def _aggregate(row: Row[Any]) -> Aggregate:
    return Aggregate(*(getattr(row, name) for name in HEAD))


def _unknown(task: str, version: int) -> UnknownVersion:
    return UnknownVersion(f"task {task!r} has no version {version}")
