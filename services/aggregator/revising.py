"""Makes the next version of a context vector of the parts that came and went since the last. Any replica may; one result is kept.

The vector is summed up anew from the ledger, by client and in float64, and not by adding to and subtracting from a sum that is kept:
a running sum of floating-point numbers would remember in its last bits what it has been through. So the bytes are those of a task whose
remaining clients had all been there from the start, and every rule works, also those that have no running sum. Changes that arrive
while one version is summed up wait, and are all in the next.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta

import structlog

from ifed.errors import Conflict, Malformed, NotFound
from ifed.tensors import digest_of
from services.aggregator.backstage import Backstage
from services.aggregator.matching import keep_sketch
from services.aggregator.ports import Work
from services.aggregator.promoting import VOID, besides_void, may_serve, promote
from services.aggregator.records import Aggregate, FederatedTask
from services.aggregator.summing import sum_context
from services.aggregator.tally import Summed

log = structlog.get_logger(__name__)


class Revising:
    """Background work, as `closing` is."""

    def __init__(self, backstage: Backstage, *, claim_seconds: float) -> None:
        self._backstage, self._claim_seconds = backstage, claim_seconds

    async def run_due(self) -> None:
        """Bring every context vector up to its ledger, until none is behind."""
        while (task := await self._claim()) is not None:
            await self._revise(task)

    async def _claim(self) -> FederatedTask | None:
        now = self._backstage.clock()
        async with self._backstage.store.work() as work:
            task = await work.tasks.claim_context(now, now + timedelta(seconds=self._claim_seconds))
            await work.commit()
        return task

    async def _revise(self, claimed: FederatedTask) -> None:
        began, version = time.monotonic(), None
        try:
            async with self._backstage.store.reading() as work:
                number = (await work.aggregates.context(claimed.name)).round
            summed = await sum_context(self._backstage.store, claimed.name, number, claimed.context_changes)
            version = await self._conclude(claimed, number, summed)
        except NotFound:
            return  # the task was deleted meanwhile
        except (Malformed, Conflict) as refusal:
            await self._give_up(claimed, refusal.detail)
        seconds = time.monotonic() - began
        self._backstage.metrics.aggregation_seconds.labels(claimed.name).observe(seconds)
        await log.ainfo("context", task=claimed.name, version=version, changes=claimed.context_changes, seconds=seconds)
        await self._backstage.tell(claimed.name)

    async def _conclude(self, claimed: FederatedTask, number: int, summed: Summed) -> int | None:
        """Keep the new version; None when another replica was first."""
        assert summed.body is not None
        assert summed.sketch is not None
        now = self._backstage.clock()
        async with self._backstage.store.work() as work:
            task = await _behind(work, claimed)
            if task is None:
                return None
            void = not await may_serve(work, task)  # since the last version could not be made
            version = (await work.aggregates.context(task.name)).version + 1
            await work.aggregates.add_context(_head(task, version, number, summed, now), summed.body)
            await keep_sketch(work, task, summed.sketch)
            if void:
                task.reason = besides_void(task.reason)
                await promote(work, task)
            await _settle(work, task, claimed.context_changes)
        return version

    async def _give_up(self, claimed: FederatedTask, reason: str) -> None:
        """Nothing is left to sum up, or too little for the rule: what holds a withdrawn part must not be served on, so nothing is."""
        async with self._backstage.store.work() as work:
            task = await _behind(work, claimed)
            if task is None:
                return
            earlier, said = besides_void(task.reason), f"{VOID}: {reason}"
            task.hold(said)
            task.served, task.reason = None, said if earlier is None else f"{earlier}; {said}"
            await _settle(work, task, claimed.context_changes)


async def _behind(work: Work, claimed: FederatedTask) -> FederatedTask | None:
    """The task, locked, unless another replica has settled what was claimed."""
    task = await work.tasks.get(claimed.name, for_update=True)
    return None if task.context_settled >= claimed.context_changes else task


async def _settle(work: Work, task: FederatedTask, changes: int) -> None:
    task.context_settled = changes
    await work.tasks.save(task)
    await work.tasks.release_context(task.name)
    await work.commit()


def _head(task: FederatedTask, version: int, number: int, summed: Summed, now: datetime) -> Aggregate:
    assert summed.body is not None
    return Aggregate(task.name, version, digest_of(summed.body), now, number, summed.weight, changes=summed.changes)
