"""Tasks in SQL. Makes no decision."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Row, bindparam, delete, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ifed.errors import AlreadyExists, UnknownTask
from ifed.messages.enums import TaskState
from ifed.messages.tasks import TaskSpec
from services.aggregator.domain.task import Membership, Task
from services.aggregator.storage.access import _of
from services.aggregator.storage.constraints import translate_integrity_errors
from services.aggregator.storage.tables import memberships, tasks


class TaskRepository:
    """The repository of tasks, in one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, task: Task) -> None:
        async with translate_integrity_errors({"pk_tasks": AlreadyExists(f"a task named {task.name!r} exists already")}):
            await self._connection.execute(insert(tasks).values(name=task.name, created_at=task.created_at, **_task_values(task)))

    async def get(self, name: str, *, for_update: bool = False) -> Task:
        statement = select(tasks).where(tasks.c.name == name)
        row = (await self._connection.execute(statement.with_for_update() if for_update else statement)).one_or_none()
        if row is None:
            raise UnknownTask(f"there is no task named {name!r}")
        return _task_of(row)

    async def save(self, task: Task) -> None:
        await self._connection.execute(update(tasks).where(tasks.c.name == task.name).values(**_task_values(task)))

    async def delete(self, name: str) -> None:
        await self._connection.execute(delete(tasks).where(tasks.c.name == name))

    async def page(self, after: str | None, limit: int) -> list[Task]:
        statement = select(tasks).where(tasks.c.name > (after or "")).order_by(tasks.c.name).limit(limit)
        return [_task_of(row) for row in await self._connection.execute(statement)]

    async def claim_context(self, now: datetime, until: datetime) -> Task | None:
        free = or_(tasks.c.context_claimed_until.is_(None), tasks.c.context_claimed_until <= now)
        behind = tasks.c.context_settled < tasks.c.context_changes, tasks.c.version.is_not(None), free
        row = (
            await self._connection.execute(select(tasks).where(*behind).limit(1).with_for_update(skip_locked=True))
        ).one_or_none()
        if row is None:
            return None
        await self._connection.execute(update(tasks).where(tasks.c.name == row.name).values(context_claimed_until=until))
        return _task_of(row)

    async def release_context(self, name: str) -> None:
        await self._connection.execute(update(tasks).where(tasks.c.name == name).values(context_claimed_until=None))


def _task_values(task: Task) -> dict[str, Any]:
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


def _task_of(row: Row[Any]) -> Task:
    return Task(
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


_MEMBER = select(memberships).where(memberships.c.task == bindparam("task"), memberships.c.client == bindparam("client"))


class MembershipRepository:
    """The repository of memberships, in one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def put(self, membership: Membership) -> None:
        counts = {
            "label_counts": dict(membership.label_counts),
            "holdout": membership.holdout,
            "withdrawn_at": membership.withdrawn_at,
        }
        changed = await self._connection.execute(
            update(memberships).where(*_of(membership.task, membership.client)).values(**counts)
        )
        if changed.rowcount == 0:
            await self._connection.execute(
                insert(memberships).values(task=membership.task, client=membership.client, joined_at=membership.joined_at, **counts)
            )

    async def find(self, task: str, client: str) -> Membership | None:
        row = (await self._connection.execute(_MEMBER, {"task": task, "client": client})).one_or_none()
        return None if row is None else _membership(row)

    async def of_task(self, task: str) -> list[Membership]:
        mine = select(memberships).where(memberships.c.task == task, memberships.c.withdrawn_at.is_(None))
        statement = mine.order_by(memberships.c.client)
        return [_membership(row) for row in await self._connection.execute(statement)]

    async def tasks_of(self, client: str) -> list[str]:
        statement = select(memberships.c.task).where(memberships.c.client == client).order_by(memberships.c.task)
        return list((await self._connection.scalars(statement)).all())

    async def remove(self, task: str, client: str | None = None) -> None:
        matching = memberships.c.task == task if client is None else (memberships.c.task == task) & (memberships.c.client == client)
        await self._connection.execute(delete(memberships).where(matching))


def _membership(row: Row[Any]) -> Membership:
    return Membership(row.task, row.client, row.joined_at, row.label_counts, row.holdout, row.withdrawn_at)
