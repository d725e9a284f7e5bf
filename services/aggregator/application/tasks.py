"""Tasks: create, change and delete them; start, pause, resume and roll them back."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from pydantic import ValidationError

from ifed.errors import Malformed, NotFound
from ifed.messages.enums import TaskState
from ifed.messages.rounds import Page, Start, TaskChanges, TaskInfo
from ifed.messages.tasks import TaskSpec
from ifed.messages.validation import describe_errors
from services.aggregator.application import messages
from services.aggregator.application.dependencies import Dependencies
from services.aggregator.application.lifecycle import may_serve, open_next_round
from services.aggregator.application.rounds import round_info
from services.aggregator.domain.schedule import NEAREST
from services.aggregator.domain.task import Task
from services.aggregator.storage.database import UnitOfWork

log = structlog.get_logger(__name__)
# Clients counted their examples by label, run the model, and were probed with the template.
JOINED_WITH = ("labels", "model", "template", "chat", "head")
SERVED_WITH = {"abstain_below"}  # no round depends on it, and it is chosen by what the rounds say


class TaskService:
    """Everything an admin does to a task."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def create(self, spec: TaskSpec) -> TaskInfo:
        """Create a task as a draft.

        Raises:
            AlreadyExists: the name is taken.
        """
        async with self._dependencies.database.unit_of_work() as work:
            await work.tasks.add(Task(spec, self._dependencies.clock()))
            await work.commit()
        await log.ainfo("task created", task=spec.name)
        return await self.get(spec.name)

    async def get(self, name: str) -> TaskInfo:
        """Return a task.

        Raises:
            UnknownTask: there is no task of this name.
        """
        async with self._dependencies.database.read_only() as work:
            return await _task_info(work, await work.tasks.get(name), labels=True)

    async def page(self, after: str | None, limit: int) -> Page[TaskInfo]:
        """Return up to `limit` tasks by name, those after `after`."""
        async with self._dependencies.database.read_only() as work:
            tasks = await work.tasks.page(after, limit + 1)
            infos = [info for task in tasks[:limit] if (info := await _readable_info(work, task)) is not None]
        return Page(items=infos, next=tasks[limit - 1].name if len(tasks) > limit else None)

    async def change(self, name: str, changes: TaskChanges) -> TaskInfo:
        """Change a draft, or in any state the probability below which texts get no label.

        When its labels, model or template change, clients that joined must join again.

        Raises:
            WrongState: the task is not a draft, and something else is to change.
            Malformed: the changed task would be invalid.
        """
        async with self._dependencies.database.unit_of_work() as work:
            task = await work.tasks.get(name, for_update=True)
            if changes.model_fields_set - SERVED_WITH:
                task.must_be_draft("be changed")
            task.spec, members_stay = changed(task.spec, changes)
            if not members_stay:
                await work.memberships.remove(name)
            await work.tasks.save(task)
            await work.commit()
        await log.ainfo("task changed", task=name, fields=sorted(changes.model_fields_set))
        await self._dependencies.publish(name)
        return await self.get(name)

    async def delete(self, name: str) -> None:
        """Delete a task that is not running, with its rounds, contributions and aggregates.

        Raises:
            WrongState: the task is running.
        """
        async with self._dependencies.database.unit_of_work() as work:
            task = await work.tasks.get(name, for_update=True)
            task.must_not_be("be deleted", TaskState.RUNNING)
            await work.tasks.delete(name)
            await work.commit()
        await log.ainfo("task deleted", task=name)
        await self._dependencies.publish(name)

    async def start(self, name: str, options: Start | None = None) -> TaskInfo:
        """Run a draft, or retry the failed round of a failed task as a new round.

        A warm start takes effect when the context round closes; until then another start may change it.

        Raises:
            WrongState: the task is neither a draft nor failed.
        """
        source = None
        if options is not None:
            source = options.warm_start_from or (NEAREST if options.warm_start else None)

        def start(task: Task) -> None:
            task.start()
            if task.version is None:
                task.warm_start = source

        return await self._change_state(name, start)

    async def pause(self, name: str) -> TaskInfo:
        """Give out no more work and open no more rounds; an open round accepts contributions until its deadline.

        Raises:
            WrongState: the task is not running.
        """
        return await self._change_state(name, Task.pause)

    async def resume(self, name: str) -> TaskInfo:
        """Run again after a pause.

        Raises:
            WrongState: the task is not paused.
        """
        return await self._change_state(name, Task.resume)

    async def _change_state(self, name: str, change: Callable[[Task], None]) -> TaskInfo:
        async with self._dependencies.database.unit_of_work() as work:
            task = await work.tasks.get(name, for_update=True)
            change(task)
            opened = await open_next_round(work, task, self._dependencies.clock())
            await work.commit()
        await log.ainfo("task state changed", task=name, state=task.state.value)
        await self._dependencies.publish(name, opened)
        return await self.get(name)

    async def rollback(self, name: str, version: int) -> TaskInfo:
        """Serve an earlier version at once and continue from it; later versions can still be read.

        A live round starts from a version that is no longer current, so it is cancelled, and a running task pauses.

        Raises:
            UnknownVersion: the task has no such version.
            WrongState: a round is being aggregated now; try again.
        """
        now = self._dependencies.clock()
        async with self._dependencies.database.unit_of_work() as work:
            task = await work.tasks.get(name, for_update=True)
            earlier = await work.aggregates.coefficients(name, version)
            newest = await work.rounds.newest(name, for_update=True)
            cancelled = newest if newest is not None and newest.live else None
            if cancelled is not None:
                cancelled.cancel(now)
                await work.rounds.save(cancelled)
            await work.aggregates.withdraw_after(name, version, now)
            task.roll_back(version, earlier.calibrated, earlier.head)
            if not await may_serve(work, task):
                task.served = None
            await work.tasks.save(task)
            await work.commit()
        await log.ainfo("task rolled back", task=name, version=version)
        await self._dependencies.publish(name, cancelled)
        return await self.get(name)


async def _readable_info(work: UnitOfWork, task: Task) -> TaskInfo | None:
    """Return a task as admins see it; None, with a record in the log, for one of which no message can be made."""
    try:
        return await _task_info(work, task)
    except (ValueError, ArithmeticError, NotFound):
        await log.aexception("a task cannot be shown and is left out of the list", task=task.name)
        return None


async def _task_info(work: UnitOfWork, task: Task, *, labels: bool = False) -> TaskInfo:
    newest = await work.rounds.newest(task.name)
    context = None if task.version is None else (await work.aggregates.context(task.name)).version
    return messages.task_info(
        task,
        await work.memberships.of_task(task.name),
        await work.memberships.withdrawn(task.name),
        None if newest is None else await round_info(work, newest, task.spec.labels if labels else ()),
        await work.rounds.evaluations(task.name, labels=labels),
        context,
    )


def changed(spec: TaskSpec, changes: TaskChanges) -> tuple[TaskSpec, bool]:
    """Return the changed task, and whether the clients that joined it may stay.

    A change of a field in `JOINED_WITH` also clears the probe that the first client set, and another model the identity.

    Raises:
        Malformed: the changed task would be invalid.
    """
    new = changes.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    fields = spec.model_dump(mode="json") | new
    if "model" in new and new["model"] != spec.model:
        fields["identity"] = None
    if any(name in new and new[name] != getattr(spec, name) for name in JOINED_WITH):
        fields["probe"] = None
    try:
        after = TaskSpec.model_validate(fields)
    except ValidationError as reason:
        raise Malformed(describe_errors(reason.errors())) from reason
    return after, all(getattr(after, name) == getattr(spec, name) for name in JOINED_WITH)
