"""The SQL of tasks and of the memberships of clients in them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Row, bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ifed.errors import AlreadyExists, UnknownTask
from ifed.messages.enums import HeadState, TaskState
from ifed.messages.tasks import TaskSpec
from services.aggregator.domain.task import Membership, Task
from services.aggregator.storage.changes import ChangeTracker
from services.aggregator.storage.constraints import translate_integrity_errors
from services.aggregator.storage.leases import claim_one, set_lease
from services.aggregator.storage.rows import readable_page
from services.aggregator.storage.tables import memberships, tasks

# Every poll of a client runs this statement, so it is built once.
_MEMBERSHIP = select(memberships).where(memberships.c.task == bindparam("task"), memberships.c.client == bindparam("client"))


class TaskRepository:
    """Tasks by name."""

    def __init__(self, connection: AsyncConnection, changes: ChangeTracker) -> None:
        self._connection, self._changes = connection, changes

    async def add(self, task: Task) -> None:
        """Store a new task.

        Raises:
            AlreadyExists: the name is taken.
        """
        async with translate_integrity_errors({"pk_tasks": AlreadyExists(f"a task named {task.name!r} exists already")}):
            await self._connection.execute(insert(tasks).values(name=task.name, created_at=task.created_at, **_task_values(task)))
        self._changes.task_saved(task)

    async def get(self, name: str, *, for_update: bool = False) -> Task:
        """Return the task, locked until the transaction ends when `for_update` is set.

        Raises:
            UnknownTask: there is no task of this name.
        """
        statement = select(tasks).where(tasks.c.name == name)
        row = (await self._connection.execute(statement.with_for_update() if for_update else statement)).one_or_none()
        if row is None:
            raise UnknownTask(f"there is no task named {name!r}")
        return self._changes.task_loaded(_task(row))

    async def save(self, task: Task) -> None:
        """Write everything of the task but its name and the time of its creation."""
        await self._connection.execute(update(tasks).where(tasks.c.name == task.name).values(**_task_values(task)))
        self._changes.task_saved(task)

    async def delete(self, name: str) -> None:
        """Remove the task with its rounds, contributions and aggregates."""
        await self._connection.execute(delete(tasks).where(tasks.c.name == name))
        self._changes.task_deleted(name)

    async def page(self, after: str | None, limit: int) -> list[Task]:
        """Return up to `limit` tasks by name, those after `after`; one that cannot be read is left out."""
        return await readable_page(self._connection, select(tasks), tasks.c.name, after or "", limit, _task)

    async def claim_context(self, now: datetime, until: datetime) -> Task | None:
        """Claim one task whose context vector lacks additions or withdrawals, until `until`; None when there is none."""
        outdated = tasks.c.context_settled < tasks.c.context_changes, tasks.c.version.is_not(None)
        row = await claim_one(self._connection, tasks.c.context_claimed_until, *outdated, now=now, until=until)
        return None if row is None else _task(row)

    async def release_context(self, name: str) -> None:
        """End the claim."""
        await set_lease(self._connection, tasks.c.context_claimed_until, tasks.c.name == name, until=None)


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
        "head": task.head.value,
    }


def _task(row: Row[Any]) -> Task:
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
        head=HeadState(row.head),
    )


class MembershipRepository:
    """Which client joined which task."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def put(self, membership: Membership) -> None:
        """Store a membership; of one that exists, keep `joined_at` and replace everything else."""
        values = {
            "label_counts": dict(membership.label_counts),
            "holdout": membership.holdout,
            "withdrawn_at": membership.withdrawn_at,
        }
        same = memberships.c.task == membership.task, memberships.c.client == membership.client
        updated = await self._connection.execute(update(memberships).where(*same).values(**values))
        if updated.rowcount == 0:
            await self._connection.execute(
                insert(memberships).values(task=membership.task, client=membership.client, joined_at=membership.joined_at, **values)
            )

    async def find(self, task: str, client: str) -> Membership | None:
        """Return the membership, also that of a client which has withdrawn; None when the client has not joined."""
        row = (await self._connection.execute(_MEMBERSHIP, {"task": task, "client": client})).one_or_none()
        return None if row is None else _membership(row)

    async def of_task(self, task: str) -> list[Membership]:
        """Return the memberships of a task by client name, without those that have withdrawn."""
        current = select(memberships).where(memberships.c.task == task, memberships.c.withdrawn_at.is_(None))
        return [_membership(row) for row in await self._connection.execute(current.order_by(memberships.c.client))]

    async def withdrawn(self, task: str) -> list[Membership]:
        """Return the memberships of a task that have withdrawn, by client name."""
        gone = select(memberships).where(memberships.c.task == task, memberships.c.withdrawn_at.is_not(None))
        return [_membership(row) for row in await self._connection.execute(gone.order_by(memberships.c.client))]

    async def tasks_of(self, client: str) -> list[str]:
        """Return the names of the tasks that the client joined, in order."""
        statement = select(memberships.c.task).where(memberships.c.client == client).order_by(memberships.c.task)
        return list((await self._connection.scalars(statement)).all())

    async def remove(self, task: str, client: str | None = None) -> None:
        """Remove the membership of a client, or all memberships of the task."""
        matching = memberships.c.task == task if client is None else (memberships.c.task == task) & (memberships.c.client == client)
        await self._connection.execute(delete(memberships).where(matching))


def _membership(row: Row[Any]) -> Membership:
    return Membership(row.task, row.client, row.joined_at, row.label_counts, row.holdout, row.withdrawn_at)
