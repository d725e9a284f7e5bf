"""Tasks in SQL. Makes no decision."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, delete, insert, select, update
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


def _values(task: FederatedTask) -> dict[str, Any]:
    return {
        "spec": task.spec.model_dump(mode="json"),
        "state": task.state.value,
        "version": task.version,
        "served": task.served,
        "reason": task.reason,
        "calibrated": task.calibrated,
        "warm_start": task.warm_start,
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
    )
