"""The background worker: closes rounds and revises context vectors."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from ifed.errors import Conflict, Malformed, NotFound
from ifed.messages.bodies import HeadQuery, head_tensors, read_coefficients, read_standardization
from ifed.messages.enums import HeadQuestion, HeadState, RoundKind, RoundState
from ifed.tensors.values import TensorBody, digest_of
from services.aggregator.aggregation.accumulators import (
    AggregationResult,
    ContextAccumulator,
    RoundAccumulator,
    StartingVersion,
    first_coefficients,
)
from services.aggregator.aggregation.head_accumulator import CombinedAnswers, next_query, revised_head, solved_version
from services.aggregator.application.dependencies import Dependencies
from services.aggregator.application.lifecycle import (
    CONTEXT_UNAVAILABLE,
    may_serve,
    open_next_round,
    other_reason,
    promote,
)
from services.aggregator.application.similarity import store_sketch, warm_start
from services.aggregator.domain.aggregates import Aggregate, ContextPart, HeadAnswers, HeadRevision
from services.aggregator.domain.round import Round
from services.aggregator.domain.task import Task
from services.aggregator.storage.database import Database, UnitOfWork

log = structlog.get_logger(__name__)


class Job(ABC):
    """A piece of aggregation that this replica has claimed: compute a result, then store it or give up, in one transaction.

    A replica that was too slow finds its claim settled by another one and changes nothing.
    """

    def __init__(self, dependencies: Dependencies, task: str) -> None:
        self._dependencies, self.task = dependencies, task

    @abstractmethod
    async def aggregate(self) -> AggregationResult:
        """Compute the result from the stored contributions."""

    @abstractmethod
    async def commit(self, result: AggregationResult) -> Sequence[Round]:
        """Store the result; return the rounds that changed state."""

    @abstractmethod
    async def give_up(self, reason: str) -> Sequence[Round]:
        """Store that there is no result; return the rounds that changed state."""


class AggregationWorker:
    """Background work of every replica. A claim in the database gives each job to one replica at a time; an expired one to another."""

    def __init__(self, dependencies: Dependencies, *, claim_seconds: float) -> None:
        self._dependencies, self._claim_time = dependencies, timedelta(seconds=claim_seconds)

    async def run_due(self) -> None:
        """Apply the deadlines that have passed, close every round that is ready, then revise every outdated context vector."""
        async with self._dependencies.database.read_only() as work:
            overdue = await work.rounds.due(self._dependencies.clock())
        for task, number in overdue:
            await self._expire(task, number)
        for claim in (self.claim_round, self.claim_context):
            while (job := await claim()) is not None:
                await self.run(job)

    async def claim_round(self) -> Job | None:
        """Claim a round that is complete; None when there is none."""
        now = self._dependencies.clock()
        async with self._dependencies.database.unit_of_work() as work:
            round_ = await work.rounds.claim(now, now + self._claim_time)
            await work.commit()
        return None if round_ is None else RoundClosing(self._dependencies, round_)

    async def claim_context(self) -> Job | None:
        """Claim a context vector that lacks additions or withdrawals; None when there is none."""
        now = self._dependencies.clock()
        async with self._dependencies.database.unit_of_work() as work:
            task = await work.tasks.claim_context(now, now + self._claim_time)
            await work.commit()
        return None if task is None else ContextRevision(self._dependencies, task)

    async def run(self, job: Job) -> None:
        """Aggregate and commit, or give up on contributions that cannot be aggregated.

        Raises:
            Unavailable: the database was lost on the way; the job is as it was before its claim.
        """
        began, failure = time.monotonic(), None
        try:
            changed = await job.commit(await job.aggregate())
        except NotFound:
            return  # the task was deleted meanwhile
        except (Malformed, Conflict) as refusal:
            failure = refusal.detail
            changed = await job.give_up(failure)
        seconds = time.monotonic() - began
        self._dependencies.metrics.aggregation_seconds.labels(job.task).observe(seconds)
        rounds = [f"{round_.number} {round_.state}" for round_ in changed]
        await log.ainfo("aggregated", task=job.task, job=type(job).__name__, rounds=rounds, failure=failure, seconds=seconds)
        await self._dependencies.publish(job.task, *changed)

    async def _expire(self, name: str, number: int) -> None:
        now = self._dependencies.clock()
        async with self._dependencies.database.unit_of_work() as work:
            if (locked := await _lock(work, name, number)) is None:
                return
            task, round_ = locked
            if not round_.overdue(now):
                return  # another replica was first, or an admin extended it
            round_.expire(now, await work.rounds.missing(name, number))
            await work.rounds.save(round_)
            opened = await _retry_or_fail(work, task, round_, now) if round_.state is RoundState.FAILED else None
            await work.commit()
        await log.ainfo("deadline passed", task=name, round=number, state=round_.state.value, contributed=round_.contributed)
        await self._dependencies.publish(name, round_, opened)


class RoundClosing(Job):
    """The end of a round: its aggregate becomes the newest version, and the next round opens."""

    def __init__(self, dependencies: Dependencies, claimed: Round) -> None:
        super().__init__(dependencies, claimed.task)
        self._number, self._claimed = claimed.number, claimed

    async def aggregate(self) -> AggregationResult:
        return await aggregate_round(self._dependencies.database, self._claimed)

    async def commit(self, result: AggregationResult) -> Sequence[Round]:
        now = self._dependencies.clock()
        async with self._dependencies.database.unit_of_work() as work:
            locked = await _lock(work, self.task, self._number)
            if locked is None or locked[1].state is not RoundState.AGGREGATING:
                return []
            task, round_ = locked
            produced = await _store_aggregate(work, task, round_, result, now)
            round_.close(now, produced=produced, evaluation=result.evaluation)
            await work.rounds.save(round_)
            if result.next_question is not None:
                await work.heads.put_next(task.name, round_.number, *result.next_question)
            if await work.heads.outdated(task.name, task.context_changes):  # somebody withdrew after the last answer
                task.context_settled = min(task.context_settled, task.context_changes - 1)
            await promote(work, task)
            opened = await open_next_round(work, task, now)
            await work.commit()
        return [round_] if opened is None else [round_, opened]

    async def give_up(self, reason: str) -> Sequence[Round]:
        now = self._dependencies.clock()
        async with self._dependencies.database.unit_of_work() as work:
            locked = await _lock(work, self.task, self._number)
            if locked is None or locked[1].state is not RoundState.AGGREGATING:
                return []
            task, round_ = locked
            round_.fail(f"it could not be aggregated: {reason}", now)
            await work.rounds.save(round_)
            opened = await _retry_or_fail(work, task, round_, now)
            await work.commit()
        return [round_] if opened is None else [round_, opened]


class ContextRevision(Job):
    """A new version of a context vector, after additions and withdrawals, and new label heads without those who withdrew."""

    def __init__(self, dependencies: Dependencies, claimed: Task) -> None:
        super().__init__(dependencies, claimed.name)
        self._changes = claimed.context_changes
        self._heads: list[tuple[HeadRevision, bytes]] = []

    async def aggregate(self) -> AggregationResult:
        async with self._dependencies.database.read_only() as work:
            number = (await work.aggregates.context(self.task)).round
            outdated = await work.heads.outdated(self.task, self._changes)
        now = self._dependencies.clock()
        self._heads = [
            await revise_head(self._dependencies.database, self.task, version, self._changes, now) for version in outdated
        ]
        return await aggregate_context(self._dependencies.database, self.task, number, self._changes)

    async def commit(self, result: AggregationResult) -> Sequence[Round]:
        assert result.body is not None
        assert result.sketch is not None
        now = self._dependencies.clock()
        async with self._dependencies.database.unit_of_work() as work:
            if (task := await self._lock_outdated(work)) is None:
                return []
            was_unavailable = not await may_serve(work, task)
            newest = await work.aggregates.context(task.name)
            if newest.changes < result.changes:  # not when a head alone has to be made anew
                await work.aggregates.add_context(
                    Aggregate(
                        task=task.name,
                        version=newest.version + 1,
                        digest=digest_of(result.body),
                        created_at=now,
                        round=newest.round,
                        weight=result.weight,
                        changes=result.changes,
                    ),
                    result.body,
                )
                await store_sketch(work, task, result.sketch)
            for revision, body in self._heads:
                await work.heads.add_revision(revision, body)
            if was_unavailable:
                task.reason = other_reason(task.reason)
                await promote(work, task)
            # A round may have closed meanwhile whose head has withdrawn answers; it comes next.
            made_anew = not await work.heads.outdated(task.name, self._changes)
            await self._settle(work, task, self._changes if made_anew else self._changes - 1)
        return []

    async def give_up(self, reason: str) -> Sequence[Round]:
        """Serve nothing: the newest context vector or label head contains what somebody has withdrawn, and no other one can be made."""
        async with self._dependencies.database.unit_of_work() as work:
            if (task := await self._lock_outdated(work)) is None:
                return []
            earlier, unavailable = other_reason(task.reason), f"{CONTEXT_UNAVAILABLE}: {reason}"
            task.hold(unavailable)
            task.served, task.reason = None, unavailable if earlier is None else f"{earlier}; {unavailable}"
            await self._settle(work, task, self._changes)
        return []

    async def _lock_outdated(self, work: UnitOfWork) -> Task | None:
        task = await work.tasks.get(self.task, for_update=True)
        return None if task.context_settled >= self._changes else task

    async def _settle(self, work: UnitOfWork, task: Task, changes: int) -> None:
        task.context_settled = changes
        await work.tasks.save(task)
        await work.tasks.release_context(task.name)
        await work.commit()


async def aggregate_round(database: Database, round_: Round, on_body: Callable[[bytes], None] | None = None) -> AggregationResult:
    """Aggregate the contributions to a round, in the order of client names; only a batch is in memory where the rule allows.

    Args:
        on_body: called with each body of a calibration or evaluation round, in that order.

    Raises:
        WrongState: there are too few contributions for the rule, or none that carries weight.
        Malformed: a stored contribution cannot be read.
    """
    if round_.kind is RoundKind.CONTEXT:
        return await aggregate_context(database, round_.task, round_.number)
    if round_.kind is RoundKind.HEAD:
        return await aggregate_head(database, round_, on_body)
    async with database.read_only() as work:
        task = await work.tasks.get(round_.task)
        accumulator = RoundAccumulator(round_, len(task.spec.labels), task.spec.policy, await _start(work, round_))
        async for _, weight, body in work.rounds.bodies(round_.task, round_.number):
            if on_body is not None:
                on_body(body)
            await asyncio.to_thread(accumulator.add, weight, body)
    return await asyncio.to_thread(accumulator.summed)


async def aggregate_head(database: Database, round_: Round, on_body: Callable[[bytes], None] | None = None) -> AggregationResult:
    """Combine the answers to a head round with those to the earlier rounds of its solution, and return what to ask next, or the new version.

    Only the answers of the clients that answered this round count, so that one that dropped out on the way leaves nothing in the
    solution. The directions asked for before serve the others all the same: only candidates that contain its answers are made anew.

    Args:
        on_body: called with each body of this round, in the order of client names.

    Raises:
        WrongState: there are too few answers for the rule, or none that carries weight.
        Malformed: a stored answer cannot be read.
    """
    assert round_.solve is not None, "a head round belongs to a solution"
    assert round_.version is not None, "a head round starts from a version"
    async with database.read_only() as work:
        task = await work.tasks.get(round_.task)
        rounds = await work.heads.of_solve(round_.task, round_.solve, round_.number)
        counted = set(rounds[-1].clients)
        combined = [
            await _combine(work, task, answers, counted, on_body if answers.number == round_.number else None) for answers in rounds
        ]
        body = await work.aggregates.coefficients_body(round_.task, round_.version)
        context = TensorBody.from_bytes(await work.aggregates.context_body(round_.task, round_.context or 1))
    examples = combined[0].examples
    client_left = len(rounds) > 1 and not set(rounds[-2].clients) <= counted  # the candidates contain its answers
    if round_.question is not HeadQuestion.LIKELIHOOD or client_left:
        answered = [answers for answers in combined if answers.question is not HeadQuestion.LIKELIHOOD]
        question, query = await asyncio.to_thread(next_query, answered, task.spec.policy)
        return AggregationResult(None, examples, None, next_question=(question, query.to_bytes()))
    standardization = read_standardization(context)
    if standardization is None:
        raise Malformed(
            "the context vector carries no statistics of the final state; run its round again with agents of this release"
        )
    metadata = {"task": round_.task, "round": round_.number, "examples": examples}
    coefficients = read_coefficients(TensorBody.from_bytes(body))
    return AggregationResult(solved_version(combined[-1], coefficients, standardization, metadata), examples, None)


async def revise_head(database: Database, task_name: str, version: int, changes: int, now: datetime) -> tuple[HeadRevision, bytes]:
    """Solve the head of a version anew from the stored answers of those who have not withdrawn; return it with its body.

    Nobody is asked. λ, the temperature and the labels' shares stay: the others' likelihoods are of candidates that contain the answers
    that were withdrawn.

    Args:
        version: the version that the last round of the solution made.
        changes: the number of additions and withdrawals to reflect.

    Raises:
        WrongState: there are no other answers, or too few for the rule.
        Malformed: a stored answer cannot be read.
    """
    async with database.read_only() as work:
        task = await work.tasks.get(task_name)
        aggregate = await work.aggregates.coefficients(task_name, version)
        last = await work.rounds.get(task_name, aggregate.round)
        assert last.solve is not None, "a head is made by the last round of a solution"
        rounds = await work.heads.of_solve(task_name, last.solve, last.number)
        counted = set(rounds[-1].clients) - set(await work.heads.withdrawn(task_name, last.number, changes))
        combined = [
            await _combine(work, task, answers, counted) for answers in rounds if answers.question is not HeadQuestion.LIKELIHOOD
        ]
        chosen = TensorBody.from_bytes(await work.aggregates.coefficients_body(task_name, version)).metadata
        standardization = read_standardization(
            TensorBody.from_bytes(await work.aggregates.context_body(task_name, last.context or 1))
        )
    assert standardization is not None, "a head was made with it"
    ridge, temperature = float(chosen["ridge"]), float(chosen["temperature"])
    head = await asyncio.to_thread(revised_head, combined, standardization, ridge=ridge, temperature=temperature)
    examples = combined[0].examples
    metadata = {"task": task_name, "round": last.number, "examples": examples, "ridge": ridge, "temperature": temperature}
    body = TensorBody(head_tensors(head), metadata).to_bytes()
    return HeadRevision(task_name, last.solve, changes, now, examples, digest_of(body)), body


async def _combine(
    work: UnitOfWork, task: Task, answers: HeadAnswers, counted: set[str], on_body: Callable[[bytes], None] | None = None
) -> CombinedAnswers:
    """Combine the answers of some clients to a head round; `on_body` is called with each body of it, in the order of client names."""
    combined = CombinedAnswers(answers.question, HeadQuery.from_bytes(answers.query), task.spec.policy)
    async for client, weight, body in work.rounds.bodies(task.name, answers.number):
        if on_body is not None:
            on_body(body)
        if client in counted:
            await asyncio.to_thread(combined.add, weight, body)
    return combined


async def aggregate_context(
    database: Database,
    task_name: str,
    number: int,
    changes: int | None = None,
    on_part: Callable[[ContextPart], None] | None = None,
) -> AggregationResult:
    """Aggregate the parts of a context vector, by client name and then in the order they arrived.

    Args:
        number: the context round, whose contributions are the first parts.
        changes: the number of additions and withdrawals to reflect; None for all of them.
        on_part: called with each part, in that order.

    Raises:
        WrongState: there are no parts, or fewer clients than the rule needs.
        Malformed: a stored part cannot be read.
    """
    async with database.read_only() as work:
        task = await work.tasks.get(task_name)
        reflected = task.context_changes if changes is None else changes
        accumulator = ContextAccumulator(task_name, number, task.spec.policy)
        async for part in work.parts.bodies(task_name, number, reflected):
            if on_part is not None:
                on_part(part)
            await asyncio.to_thread(accumulator.add, part.client, part.weight, part.body)
    return replace(await asyncio.to_thread(accumulator.summed), changes=reflected)


async def _start(work: UnitOfWork, round_: Round) -> StartingVersion | None:
    """Return what a calibration round starts from; None for other rounds."""
    if round_.kind is not RoundKind.CALIBRATION or round_.version is None:
        return None
    start = await work.aggregates.coefficients(round_.task, round_.version)
    body = await work.aggregates.coefficients_body(round_.task, round_.version)
    return StartingVersion(body, await work.aggregates.moments(round_.task, round_.version), start.calibrated)


async def _lock(work: UnitOfWork, task: str, number: int) -> tuple[Task, Round] | None:
    """Lock a task and its round, in this order everywhere; return None when they were deleted meanwhile."""
    try:
        return await work.tasks.get(task, for_update=True), await work.rounds.get(task, number, for_update=True)
    except NotFound:
        return None


async def _retry_or_fail(work: UnitOfWork, task: Task, round_: Round, now: datetime) -> Round | None:
    """Open a failed round again while the policy has retries left; else let the task fail with it."""
    if round_.attempt > task.spec.policy.retries:
        task.fail(f"round {round_.number} ({round_.kind}) failed: {round_.reason}")
    return await open_next_round(work, task, now)


async def _store_aggregate(work: UnitOfWork, task: Task, round_: Round, result: AggregationResult, now: datetime) -> int | None:
    """Store the aggregate of a round; return the version it made, which is now the task's newest, or None for an evaluation."""
    if result.body is None:
        return None
    solve = round_.solve
    if round_.kind is RoundKind.CALIBRATION and task.has_head and round_.version is not None:
        solve = (await work.aggregates.coefficients(task.name, round_.version)).solve  # its head is carried

    def aggregate(version: int, body: bytes, calibrated: int = 0, head: HeadState = HeadState.NONE) -> Aggregate:
        digest, context = digest_of(body), round_.context or 1
        return Aggregate(
            task.name, version, digest, now, round_.number, result.weight, calibrated, context, result.changes, head, solve
        )

    if round_.kind is RoundKind.CONTEXT:
        assert result.sketch is not None, "a context round gives a sketch"
        await work.aggregates.add_context(aggregate(1, result.body), result.body)
        await store_sketch(work, task, result.sketch)
        first = await warm_start(work, task, round_) or first_coefficients(task, round_)
        await work.aggregates.add_coefficients(aggregate(0, first), first)
        task.version, task.calibrated, task.context_settled, task.head = 0, 0, result.changes, HeadState.NONE
        return 0
    if round_.kind is RoundKind.HEAD:
        calibrated, head = task.calibrated, HeadState.SOLVED
    else:
        calibrated, head = task.calibrated + 1, HeadState.CARRIED if task.has_head else HeadState.NONE
    # The numbers of versions that a rollback withdrew are not used again.
    version = (await work.aggregates.newest_version(task.name) or 0) + 1
    await work.aggregates.add_coefficients(aggregate(version, result.body, calibrated, head), result.body, result.moments)
    task.version, task.calibrated, task.head = version, calibrated, head
    return version
