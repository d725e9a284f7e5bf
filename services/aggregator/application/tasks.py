"""What admins do to tasks and rounds. Knows no HTTP and no SQL."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from pydantic import ValidationError

from ifed.errors import Malformed
from ifed.messages.enums import TaskState
from ifed.messages.rounds import Page, RoundInfo, Start, TaskChanges, TaskInfo
from ifed.messages.tasks import TaskSpec
from services.aggregator.application import messages
from services.aggregator.application.dependencies import Dependencies
from services.aggregator.application.lifecycle import open_next_round
from services.aggregator.domain.round import Round
from services.aggregator.domain.schedule import NEAREST
from services.aggregator.domain.task import Task
from services.aggregator.storage.database import UnitOfWork

log = structlog.get_logger(__name__)


class TaskService:
    """Defines tasks, runs them, and steps in when a round is stuck."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def create(self, spec: TaskSpec) -> TaskInfo:
        """A new task, as a draft; AlreadyExists."""
        async with self._dependencies.database.unit_of_work() as work:
            await work.tasks.add(Task(spec, self._dependencies.clock()))
            await work.commit()
        await log.ainfo("task created", task=spec.name)
        return await self.task(spec.name)

    async def task(self, name: str) -> TaskInfo:
        async with self._dependencies.database.read_only() as work:
            return await task_info(work, await work.tasks.get(name))

    async def tasks(self, after: str | None, limit: int) -> Page[TaskInfo]:
        """Tasks by name."""
        async with self._dependencies.database.read_only() as work:
            found = [await task_info(work, task) for task in await work.tasks.page(after, limit + 1)]
        return messages.page(found, limit, lambda task: task.spec.name)

    async def change(self, name: str, changes: TaskChanges) -> TaskInfo:
        """Change a draft. When its labels or its model change, clients that joined must join again; WrongState, Malformed."""
        async with self._dependencies.database.unit_of_work() as work:
            task = await work.tasks.get(name, for_update=True)
            task.must_be_draft("be changed")
            task.spec, members_stay = changed(task.spec, changes)
            if not members_stay:
                await work.memberships.remove(name)
            await work.tasks.save(task)
            await work.commit()
        await log.ainfo("task changed", task=name, fields=sorted(changes.model_fields_set))
        await self._dependencies.publish(name)
        return await self.task(name)

    async def delete(self, name: str) -> None:
        """Remove a task that does not run, with all that was gathered for it; WrongState."""
        async with self._dependencies.database.unit_of_work() as work:
            task = await work.tasks.get(name, for_update=True)
            task.must_not_be("be deleted", TaskState.RUNNING)
            await work.tasks.delete(name)
            await work.commit()
        await log.ainfo("task deleted", task=name)
        await self._dependencies.publish(name)

    async def start(self, name: str, how: Start | None = None) -> TaskInfo:
        """Run a draft, or try the failed round of a failed task again as a new round; WrongState.

        A warm start is taken when the context round closes; until then `how` may change with another start.
        """

        wanted = how or Start()

        def start(task: Task) -> None:
            task.start()
            if task.version is None:
                task.warm_start = wanted.warm_start_from or (NEAREST if wanted.warm_start else None)

        return await self._move(name, start)

    async def pause(self, name: str) -> TaskInfo:
        """Give out no more work and open no more rounds; an open round takes what comes until its deadline; WrongState."""
        return await self._move(name, Task.pause)

    async def resume(self, name: str) -> TaskInfo:
        """Go on after a pause; WrongState."""
        return await self._move(name, Task.resume)

    async def _move(self, name: str, move: Callable[[Task], None]) -> TaskInfo:
        async with self._dependencies.database.unit_of_work() as work:
            task = await work.tasks.get(name, for_update=True)
            move(task)
            opened = await open_next_round(work, task, self._dependencies.clock())
            await work.commit()
        await log.ainfo("task moved", task=name, state=task.state.value)
        await self._dependencies.publish(name, opened)
        return await self.task(name)

    async def rounds(self, name: str, after: int, limit: int) -> Page[RoundInfo]:
        """Rounds by number."""
        async with self._dependencies.database.read_only() as work:
            await work.tasks.get(name)
            found = await work.rounds.page(name, after, limit + 1)
            seats = await work.rounds.seats(name, [round_.number for round_ in found])
        infos = [messages.round_info(round_, seats[round_.number]) for round_ in found]
        return messages.page(infos, limit, lambda round_: str(round_.number))

    async def round(self, name: str, number: int) -> RoundInfo:
        async with self._dependencies.database.read_only() as work:
            await work.tasks.get(name)
            return await _round_info(work, await work.rounds.get(name, number))

    async def close(self, name: str, number: int) -> RoundInfo:
        """End an open round now with those who came, quorum or not; WrongState when nobody did."""
        return await self._step_in(name, number, lambda _task, round_: round_.close_now())

    async def extend(self, name: str, number: int, seconds: float) -> RoundInfo:
        """Give an open round more time; WrongState."""
        return await self._step_in(name, number, lambda _task, round_: round_.extend(seconds))

    async def cancel(self, name: str, number: int) -> RoundInfo:
        """Give an open round up. The task pauses; `resume` gathers anew in a new round; WrongState."""

        def cancel(task: Task, round_: Round) -> None:
            round_.cancel(self._dependencies.clock())
            task.hold(f"{round_} was cancelled; resume opens a new one")

        return await self._step_in(name, number, cancel)

    async def _step_in(self, name: str, number: int, step: Callable[[Task, Round], None]) -> RoundInfo:
        async with self._dependencies.database.unit_of_work() as work:
            task = await work.tasks.get(name, for_update=True)
            round_ = await work.rounds.get(name, number, for_update=True)
            before = round_.state
            step(task, round_)
            await work.rounds.save(round_)
            await work.tasks.save(task)
            await work.commit()
        await log.ainfo("round changed by an admin", task=name, round=number, state=round_.state.value)
        await self._dependencies.publish(name, round_ if round_.state is not before else None)
        return await self.round(name, number)


async def task_info(work: UnitOfWork, task: Task) -> TaskInfo:
    """A task with its members, its newest round and its evaluations."""
    newest = await work.rounds.newest(task.name)
    context = None if task.version is None else (await work.aggregates.context(task.name)).version
    return messages.task_info(
        task,
        await work.memberships.of_task(task.name),
        None if newest is None else await _round_info(work, newest),
        await work.rounds.evaluations(task.name),
        context,
    )


async def _round_info(work: UnitOfWork, round_: Round) -> RoundInfo:
    seats = await work.rounds.seats(round_.task, [round_.number])
    return messages.round_info(round_, seats[round_.number])


BINDING = ("labels", "model", "template", "chat")


def changed(spec: TaskSpec, changes: TaskChanges) -> tuple[TaskSpec, bool]:
    """The changed task, and whether those who joined it may stay.

    Members told their counts by label, run one model and showed what it does under the template, so a change of one of these sends them
    to join again; it also forgets the probe that the first of them set, and another model the identity.

    Raises:
        Malformed: the changed task would not be a valid one.
    """
    wanted = changes.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    fields = spec.model_dump(mode="json") | wanted
    if "model" in wanted and wanted["model"] != spec.model:
        fields["identity"] = None
    if any(name in wanted and wanted[name] != getattr(spec, name) for name in BINDING):
        fields["probe"] = None
    try:
        after = TaskSpec.model_validate(fields)
    except ValidationError as reason:
        raise Malformed("; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in reason.errors())) from reason
    return after, all(getattr(after, name) == getattr(spec, name) for name in BINDING)
