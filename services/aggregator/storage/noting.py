"""A store that writes down what happens to tasks, rounds and context vectors, in the transaction that makes it true. Adds nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import Any, cast

from ifed.messages.enums import RoundState, TaskState
from services.aggregator.domain.aggregates import Aggregate
from services.aggregator.domain.events import DomainEvent, of_context, of_deletion, of_round, of_task
from services.aggregator.domain.round import Round
from services.aggregator.domain.task import Task
from services.aggregator.storage.ports import Aggregates, Rounds, Store, Tasks, Work

Clock = Callable[[], datetime]
Told = Callable[[Sequence[DomainEvent]], Awaitable[None]]


class NotingTasks:
    """Tasks, and what became of them since they were read."""

    def __init__(self, tasks: Tasks, clock: Clock) -> None:
        self._tasks, self._clock = tasks, clock
        self._before: dict[str, tuple[TaskState, int | None]] = {}
        self.happened: list[DomainEvent] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tasks, name)

    async def add(self, task: Task) -> None:
        await self._tasks.add(task)
        self._note(task)

    async def get(self, name: str, *, for_update: bool = False) -> Task:
        task = await self._tasks.get(name, for_update=for_update)
        self._before[name] = task.state, task.served
        return task

    async def save(self, task: Task) -> None:
        await self._tasks.save(task)
        self._note(task)

    async def delete(self, name: str) -> None:
        await self._tasks.delete(name)
        self.happened += of_deletion(name, self._clock())

    def _note(self, task: Task) -> None:
        self.happened += of_task(self._before.get(task.name), task, self._clock())
        self._before[task.name] = task.state, task.served


class NotingRounds:
    """Rounds, and what became of them since they were read."""

    def __init__(self, rounds: Rounds, clock: Clock) -> None:
        self._rounds, self._clock = rounds, clock
        self._before: dict[tuple[str, int], RoundState] = {}
        self.happened: list[DomainEvent] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rounds, name)

    async def add(self, round_: Round, clients: Sequence[str]) -> None:
        await self._rounds.add(round_, clients)
        self._note(round_)

    async def get(self, task: str, number: int, *, for_update: bool = False) -> Round:
        return self._seen(await self._rounds.get(task, number, for_update=for_update))

    async def newest(self, task: str, *, for_update: bool = False) -> Round | None:
        round_ = await self._rounds.newest(task, for_update=for_update)
        return None if round_ is None else self._seen(round_)

    async def save(self, round_: Round) -> None:
        await self._rounds.save(round_)
        self._note(round_)

    def _seen(self, round_: Round) -> Round:
        # A caller may hold the round from before and change it, then read it again: what was seen first is what was there.
        self._before.setdefault((round_.task, round_.number), round_.state)
        return round_

    def _note(self, round_: Round) -> None:
        key = round_.task, round_.number
        self.happened += of_round(self._before.get(key), round_, self._clock())
        self._before[key] = round_.state


class NotingAggregates:
    """Aggregates, and the context vectors that became others."""

    def __init__(self, aggregates: Aggregates, clock: Clock) -> None:
        self._aggregates, self._clock = aggregates, clock
        self.happened: list[DomainEvent] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._aggregates, name)

    async def add_context(self, aggregate: Aggregate, body: bytes) -> None:
        await self._aggregates.add_context(aggregate, body)
        self.happened += of_context(aggregate, self._clock())


class NotingWork:
    """One transaction that ends with writing down what happened in it, and for which webhooks."""

    def __init__(self, work: Work, clock: Clock) -> None:
        self._work, self._clock = work, clock
        self.tasks, self.rounds = NotingTasks(work.tasks, clock), NotingRounds(work.rounds, clock)
        self.aggregates = NotingAggregates(work.aggregates, clock)
        self.kept: list[DomainEvent] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)

    async def commit(self) -> None:
        # Rounds before tasks: a task fails or finishes, and an adapter is promoted, because of a round. What opened is told last.
        opened = [one for one in self.rounds.happened if one.kind.endswith(".opened")]
        ended = [one for one in self.rounds.happened if one not in opened]
        happened = [*ended, *self.aggregates.happened, *self.tasks.happened, *opened]
        kept = await self._keep(happened) if happened else []
        await self._work.commit()
        self.kept += kept
        self.rounds.happened, self.aggregates.happened, self.tasks.happened = [], [], []

    async def _keep(self, happened: Sequence[DomainEvent]) -> list[DomainEvent]:
        kept = await self._work.events.add(happened)
        receivers = await self._work.webhooks.all(lasting=True)
        wanted = [(webhook.name, one) for webhook in receivers for one in kept if webhook.wants(one)]
        await self._work.webhooks.queue(wanted, self._clock())
        return kept


class NotingStore:
    """The store of an aggregator.

    Args:
        store: where everything is kept.
        clock: the time that an event carries.
        told: called with what happened once it is committed, when the connection is free again.
    """

    def __init__(self, store: Store, clock: Clock, told: Told) -> None:
        self._store, self._clock, self._told = store, clock, told

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @asynccontextmanager
    async def unit_of_work(self) -> AsyncIterator[Work]:
        async with self._store.unit_of_work() as work:
            noting = NotingWork(work, self._clock)
            yield cast(Work, noting)
        if noting.kept:
            await self._told(noting.kept)

    def read_only(self) -> AbstractAsyncContextManager[Work]:
        return self._store.read_only()

    async def state(self) -> str:
        return await self._store.state()

    async def close(self) -> None:
        await self._store.close()
