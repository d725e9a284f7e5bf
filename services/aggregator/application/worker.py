"""A round's contributions read from the store and summed up, the first time or again. Keeps nothing and decides nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from ifed.errors import Conflict, Malformed, NotFound
from ifed.messages.enums import RoundKind, RoundState
from ifed.tensors.values import digest_of
from services.aggregator.aggregation.accumulators import (
    AggregationResult,
    ContextAccumulator,
    RoundAccumulator,
    Start,
    first_coefficients,
)
from services.aggregator.application.dependencies import Dependencies
from services.aggregator.application.lifecycle import VOID, besides_void, may_serve, open_next_round, promote
from services.aggregator.application.similarity import keep_sketch, warm_start
from services.aggregator.domain.aggregates import Aggregate, ContextPart
from services.aggregator.domain.round import Round
from services.aggregator.domain.task import Task
from services.aggregator.storage.database import Database, UnitOfWork


async def sum_up(database: Database, round_: Round, seen: Callable[[bytes], None] | None = None) -> AggregationResult:
    """Add the contributions up as they are read, in client-id order; only one batch of them is in memory where the rule allows.

    Args:
        seen: told every body of a calibration or evaluation round, in that order.
    """
    if round_.kind is RoundKind.CONTEXT:
        return await sum_context(database, round_.task, round_.number)
    async with database.read_only() as work:
        task = await work.tasks.get(round_.task)
        tally = RoundAccumulator(round_, len(task.spec.labels), task.spec.policy, await _start(work, round_))
        async for weight, body in work.rounds.bodies(round_.task, round_.number):
            if seen is not None:
                seen(body)
            await asyncio.to_thread(tally.add, weight, body)
    return await asyncio.to_thread(tally.summed)


async def sum_context(
    database: Database, task: str, number: int, changes: int | None = None, seen: Callable[[ContextPart], None] | None = None
) -> AggregationResult:
    """Add the parts of a context vector up as they are read, by client and then in the order they came.

    Args:
        number: the context round, whose contributions are the first parts.
        changes: leave out what came or went after so many additions and withdrawals; None takes what counts now.
        seen: told every part, in that order.

    Raises:
        WrongState: nothing is left, or fewer clients than the rule needs.
    """
    async with database.read_only() as work:
        kept = await work.tasks.get(task)
        upto = kept.context_changes if changes is None else changes
        tally = ContextAccumulator(task, number, kept.spec.policy)
        async for part in work.parts.bodies(task, number, upto):
            if seen is not None:
                seen(part)
            await asyncio.to_thread(tally.add, part.client, part.weight, part.body)
    return replace(await asyncio.to_thread(tally.summed), changes=upto)


async def _start(work: UnitOfWork, round_: Round) -> Start | None:
    """What a calibration round starts from; nothing in other rounds."""
    if round_.kind is not RoundKind.CALIBRATION or round_.version is None:
        return None
    head = await work.aggregates.coefficients(round_.task, round_.version)
    body = await work.aggregates.coefficients_body(round_.task, round_.version)
    return Start(body, await work.aggregates.moments(round_.task, round_.version), head.calibrated)


log = structlog.get_logger(__name__)


class Closing:
    """The background work. Every replica runs it; the database decides who was first."""

    def __init__(self, dependencies: Dependencies, *, claim_seconds: float) -> None:
        self._dependencies, self._claim_seconds = dependencies, claim_seconds

    async def run_due(self) -> None:
        """Fire the deadlines that have passed and close every round that is ready, until nothing is left to do."""
        async with self._dependencies.database.read_only() as work:
            due = await work.rounds.due(self._dependencies.clock())
        for task, number in due:
            await self._expire(task, number)
        while (round_ := await self._claim()) is not None:
            await self._aggregate(round_)

    async def _expire(self, name: str, number: int) -> None:
        now = self._dependencies.clock()
        async with self._dependencies.database.unit_of_work() as work:
            if (locked := await _locked(work, name, number)) is None:
                return
            task, round_ = locked
            if not round_.overdue(now):
                return  # another replica was first, or an admin extended it
            round_.expire(now, await work.rounds.missing(name, number))
            await work.rounds.save(round_)
            opened = await self._after_failure(work, task, round_) if round_.state is RoundState.FAILED else None
            await work.commit()
        await log.ainfo("deadline", task=name, round=number, state=round_.state.value, contributed=round_.contributed)
        await self._dependencies.publish(name, round_, opened)

    async def _claim(self) -> Round | None:
        now = self._dependencies.clock()
        async with self._dependencies.database.unit_of_work() as work:
            round_ = await work.rounds.claim(now, now + timedelta(seconds=self._claim_seconds))
            await work.commit()
        return round_

    async def _aggregate(self, round_: Round) -> None:
        """Sum a claimed round up and keep the result. A database that is lost on the way leaves the round as it was."""
        began = time.monotonic()
        try:
            changed = await self._conclude(round_, await sum_up(self._dependencies.database, round_))
        except NotFound:
            return  # the task was deleted meanwhile
        except (Malformed, Conflict) as refusal:
            changed = await self._give_up(round_, f"it could not be aggregated: {refusal.detail}")
        seconds = time.monotonic() - began
        self._dependencies.metrics.aggregation_seconds.labels(round_.task).observe(seconds)
        for one in changed:
            await log.ainfo("round", task=one.task, round=one.number, kind=one.kind.value, state=one.state.value, seconds=seconds)
        await self._dependencies.publish(round_.task, *changed)

    async def _conclude(self, claimed: Round, summed: AggregationResult) -> list[Round]:
        """Keep the result and open the next round; the rounds that changed, none when another replica was first."""
        now = self._dependencies.clock()
        async with self._dependencies.database.unit_of_work() as work:
            locked = await _locked(work, claimed.task, claimed.number)
            if locked is None or locked[1].state is not RoundState.AGGREGATING:
                return []
            task, round_ = locked
            produced = await _keep(work, task, round_, summed, now)
            round_.close(now, produced=produced, evaluation=summed.evaluation)
            await work.rounds.save(round_)
            await promote(work, task)
            opened = await open_next_round(work, task, now)
            await work.commit()
        return [round_] if opened is None else [round_, opened]

    async def _give_up(self, claimed: Round, reason: str) -> list[Round]:
        async with self._dependencies.database.unit_of_work() as work:
            locked = await _locked(work, claimed.task, claimed.number)
            if locked is None or locked[1].state is not RoundState.AGGREGATING:
                return []
            task, round_ = locked
            round_.fail(reason, self._dependencies.clock())
            await work.rounds.save(round_)
            opened = await self._after_failure(work, task, round_)
            await work.commit()
        return [round_] if opened is None else [round_, opened]

    async def _after_failure(self, work: UnitOfWork, task: Task, round_: Round) -> Round | None:
        """Open the round again while the policy has retries left; else the task fails with it."""
        if round_.attempt > task.spec.policy.retries:
            task.fail(f"round {round_.number} ({round_.kind}) failed: {round_.reason}")
        return await open_next_round(work, task, self._dependencies.clock())


async def _locked(work: UnitOfWork, task: str, number: int) -> tuple[Task, Round] | None:
    """Task and round, locked in this order everywhere; None when they were deleted meanwhile."""
    try:
        return await work.tasks.get(task, for_update=True), await work.rounds.get(task, number, for_update=True)
    except NotFound:
        return None


async def _keep(work: UnitOfWork, task: Task, round_: Round, summed: AggregationResult, now: datetime) -> int | None:
    """Database the aggregate of a round; the number of the version it made, which is now the task's newest, if it made one."""
    if summed.body is None:
        return None

    def head(version: int, body: bytes, calibrated: int = 0) -> Aggregate:
        digest, context = digest_of(body), round_.context or 1
        return Aggregate(task.name, version, digest, now, round_.number, summed.weight, calibrated, context, summed.changes)

    if round_.kind is RoundKind.CONTEXT:
        assert summed.sketch is not None, "a context round gives a sketch"
        await work.aggregates.add_context(head(1, summed.body), summed.body)
        await keep_sketch(work, task, summed.sketch)
        first = await warm_start(work, task, round_) or first_coefficients(task, round_)
        await work.aggregates.add_coefficients(head(0, first), first)
        task.version, task.calibrated, task.context_settled = 0, 0, summed.changes
        return 0
    # After a rollback the numbers of the versions gone back from are not given again.
    version, calibrated = (await work.aggregates.newest_version(task.name) or 0) + 1, task.calibrated + 1
    await work.aggregates.add_coefficients(head(version, summed.body, calibrated), summed.body, summed.moments)
    task.version, task.calibrated = version, calibrated
    return version


class Revising:
    """Background work, as `closing` is."""

    def __init__(self, dependencies: Dependencies, *, claim_seconds: float) -> None:
        self._dependencies, self._claim_seconds = dependencies, claim_seconds

    async def run_due(self) -> None:
        """Bring every context vector up to its ledger, until none is behind."""
        while (task := await self._claim()) is not None:
            await self._revise(task)

    async def _claim(self) -> Task | None:
        now = self._dependencies.clock()
        async with self._dependencies.database.unit_of_work() as work:
            task = await work.tasks.claim_context(now, now + timedelta(seconds=self._claim_seconds))
            await work.commit()
        return task

    async def _revise(self, claimed: Task) -> None:
        began, version = time.monotonic(), None
        try:
            async with self._dependencies.database.read_only() as work:
                number = (await work.aggregates.context(claimed.name)).round
            summed = await sum_context(self._dependencies.database, claimed.name, number, claimed.context_changes)
            version = await self._conclude(claimed, number, summed)
        except NotFound:
            return  # the task was deleted meanwhile
        except (Malformed, Conflict) as refusal:
            await self._give_up(claimed, refusal.detail)
        seconds = time.monotonic() - began
        self._dependencies.metrics.aggregation_seconds.labels(claimed.name).observe(seconds)
        await log.ainfo("context", task=claimed.name, version=version, changes=claimed.context_changes, seconds=seconds)
        await self._dependencies.publish(claimed.name)

    async def _conclude(self, claimed: Task, number: int, summed: AggregationResult) -> int | None:
        """Keep the new version; None when another replica was first."""
        assert summed.body is not None
        assert summed.sketch is not None
        now = self._dependencies.clock()
        async with self._dependencies.database.unit_of_work() as work:
            task = await _behind(work, claimed)
            if task is None:
                return None
            void = not await may_serve(work, task)  # since the last version could not be made
            version = (await work.aggregates.context(task.name)).version + 1
            await work.aggregates.add_context(_context_head(task, version, number, summed, now), summed.body)
            await keep_sketch(work, task, summed.sketch)
            if void:
                task.reason = besides_void(task.reason)
                await promote(work, task)
            await _settle_context(work, task, claimed.context_changes)
        return version

    async def _give_up(self, claimed: Task, reason: str) -> None:
        """Nothing is left to sum up, or too little for the rule: what holds a withdrawn part must not be served on, so nothing is."""
        async with self._dependencies.database.unit_of_work() as work:
            task = await _behind(work, claimed)
            if task is None:
                return
            earlier, said = besides_void(task.reason), f"{VOID}: {reason}"
            task.hold(said)
            task.served, task.reason = None, said if earlier is None else f"{earlier}; {said}"
            await _settle_context(work, task, claimed.context_changes)


async def _behind(work: UnitOfWork, claimed: Task) -> Task | None:
    """The task, locked, unless another replica has settled what was claimed."""
    task = await work.tasks.get(claimed.name, for_update=True)
    return None if task.context_settled >= claimed.context_changes else task


async def _settle_context(work: UnitOfWork, task: Task, changes: int) -> None:
    task.context_settled = changes
    await work.tasks.save(task)
    await work.tasks.release_context(task.name)
    await work.commit()


def _context_head(task: Task, version: int, number: int, summed: AggregationResult, now: datetime) -> Aggregate:
    assert summed.body is not None
    return Aggregate(task.name, version, digest_of(summed.body), now, number, summed.weight, changes=summed.changes)
