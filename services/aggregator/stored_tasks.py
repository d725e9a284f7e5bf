"""Tasks in SQL. Makes no decision."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ifed.errors import AlreadyExists, UnknownTask
from ifed.states import TaskState
from ifed.tasks import TaskSpec
from services.aggregator.constraints import refusing
from services.aggregator.records import FederatedTask
from services.aggregator.tables import tasks


class StoredTasks:
    """The repository of tasks, in one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, task: FederatedTask) -> None:
        async with refusing({"pk_tasks": AlreadyExists(f"a task named {task.name!r} exists already")}):
            await self._connection.execute(insert(tasks).values(name=task.name, created_at=task.created_at, **_values(task)))

    async def get(self, name: str, *, for_update: bool = False) -> FederatedTask:
        statement = select(tasks).where(tasks.c.name == name)
        row = (await self._connection.execute(statement.with_for_update() if for_update else statement)).one_or_none()
        if row is None:
            raise UnknownTask(f"there is no task named {name!r}")
        return _task(row)

    async def save(self, task: FederatedTask) -> None:
        await self._connection.execute(update(tasks).where(tasks.c.name == task.name).values(**_values(task)))

    async def delete(self, name: str) -> None:
        await self._connection.execute(delete(tasks).where(tasks.c.name == name))

    async def page(self, after: str | None, limit: int) -> list[FederatedTask]:
        statement = select(tasks).where(tasks.c.name > (after or "")).order_by(tasks.c.name).limit(limit)
        return [_task(row) for row in await self._connection.execute(statement)]

    async def claim_context(self, now: datetime, until: datetime) -> FederatedTask | None:
        free = or_(tasks.c.context_claimed_until.is_(None), tasks.c.context_claimed_until <= now)
        behind = tasks.c.context_settled < tasks.c.context_changes, tasks.c.version.is_not(None), free
        row = (
            await self._connection.execute(select(tasks).where(*behind).limit(1).with_for_update(skip_locked=True))
        ).one_or_none()
        if row is None:
            return None
        await self._connection.execute(update(tasks).where(tasks.c.name == row.name).values(context_claimed_until=until))
        return _task(row)

    async def release_context(self, name: str) -> None:
        await self._connection.execute(update(tasks).where(tasks.c.name == name).values(context_claimed_until=None))


def _values(task: FederatedTask) -> dict[str, Any]:
    return {
        "spec": task.spec.model_dump(mode="json"),
        "state": task.state.value,
        "version": task.version,
        "served": task.served,
        "reason": task.reason,
        "calibrated": task.calibrated,
        "warm_start": task.warm_start,
        "context_changes": task.context_changes,
        "context_settled": task.context_settled,
    }


def _task(row: Row[Any]) -> FederatedTask:
    return FederatedTask(
        spec=TaskSpec.model_validate(row.spec),
        created_at=row.created_at,
        state=TaskState(row.state),
        version=row.version,
        served=row.served,
        reason=row.reason,
        calibrated=row.calibrated,
        warm_start=row.warm_start,
        context_changes=row.context_changes,
        context_settled=row.context_settled,
    )
