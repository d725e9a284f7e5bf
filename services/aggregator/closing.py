"""Ends rounds: fires deadlines, sums up what was gathered, opens what comes next. Any replica may; exactly one result is kept."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

import structlog

from ifed.errors import Conflict, Malformed, NotFound
from ifed.states import RoundKind, RoundState
from ifed.tensors import digest_of
from services.aggregator.backstage import Backstage
from services.aggregator.domain import Round
from services.aggregator.matching import keep_sketch, warm_start
from services.aggregator.opening import open_next
from services.aggregator.ports import Work
from services.aggregator.promoting import promote
from services.aggregator.records import Aggregate, FederatedTask
from services.aggregator.summing import sum_up
from services.aggregator.tally import Summed, first_coefficients

log = structlog.get_logger(__name__)


class Closing:
    """The background work. Every replica runs it; the database decides who was first."""

    def __init__(self, backstage: Backstage, *, claim_seconds: float) -> None:
        self._backstage, self._claim_seconds = backstage, claim_seconds

    async def run_due(self) -> None:
        """Fire the deadlines that have passed and close every round that is ready, until nothing is left to do."""
        async with self._backstage.store.reading() as work:
            due = await work.rounds.due(self._backstage.clock())
        for task, number in due:
            await self._expire(task, number)
        while (round_ := await self._claim()) is not None:
            await self._aggregate(round_)

    async def _expire(self, name: str, number: int) -> None:
        now = self._backstage.clock()
        async with self._backstage.store.work() as work:
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
        await self._backstage.tell(name, round_, opened)

    async def _claim(self) -> Round | None:
        now = self._backstage.clock()
        async with self._backstage.store.work() as work:
            round_ = await work.rounds.claim(now, now + timedelta(seconds=self._claim_seconds))
            await work.commit()
        return round_

    async def _aggregate(self, round_: Round) -> None:
        """Sum a claimed round up and keep the result. A database that is lost on the way leaves the round as it was."""
        began = time.monotonic()
        try:
            changed = await self._conclude(round_, await sum_up(self._backstage.store, round_))
        except NotFound:
            return  # the task was deleted meanwhile
        except (Malformed, Conflict) as refusal:
            changed = await self._give_up(round_, f"it could not be aggregated: {refusal.detail}")
        seconds = time.monotonic() - began
        self._backstage.metrics.aggregation_seconds.labels(round_.task).observe(seconds)
        for one in changed:
            await log.ainfo("round", task=one.task, round=one.number, kind=one.kind.value, state=one.state.value, seconds=seconds)
        await self._backstage.tell(round_.task, *changed)

    async def _conclude(self, claimed: Round, summed: Summed) -> list[Round]:
        """Keep the result and open the next round; the rounds that changed, none when another replica was first."""
        now = self._backstage.clock()
        async with self._backstage.store.work() as work:
            locked = await _locked(work, claimed.task, claimed.number)
            if locked is None or locked[1].state is not RoundState.AGGREGATING:
                return []
            task, round_ = locked
            produced = await _keep(work, task, round_, summed, now)
            round_.close(now, produced=produced, evaluation=summed.evaluation)
            await work.rounds.save(round_)
            await promote(work, task)
            opened = await open_next(work, task, now)
            await work.commit()
        return [round_] if opened is None else [round_, opened]

    async def _give_up(self, claimed: Round, reason: str) -> list[Round]:
        async with self._backstage.store.work() as work:
            locked = await _locked(work, claimed.task, claimed.number)
            if locked is None or locked[1].state is not RoundState.AGGREGATING:
                return []
            task, round_ = locked
            round_.fail(reason, self._backstage.clock())
            await work.rounds.save(round_)
            opened = await self._after_failure(work, task, round_)
            await work.commit()
        return [round_] if opened is None else [round_, opened]

    async def _after_failure(self, work: Work, task: FederatedTask, round_: Round) -> Round | None:
        """Open the round again while the policy has retries left; else the task fails with it."""
        if round_.attempt > task.spec.policy.retries:
            task.fail(f"round {round_.number} ({round_.kind}) failed: {round_.reason}")
        return await open_next(work, task, self._backstage.clock())


async def _locked(work: Work, task: str, number: int) -> tuple[FederatedTask, Round] | None:
    """Task and round, locked in this order everywhere; None when they were deleted meanwhile."""
    try:
        return await work.tasks.get(task, for_update=True), await work.rounds.get(task, number, for_update=True)
    except NotFound:
        return None


async def _keep(work: Work, task: FederatedTask, round_: Round, summed: Summed, now: datetime) -> int | None:
    """Store the aggregate of a round; the number of the version it made, which is now the task's newest, if it made one."""
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
