"""A round's contributions read from the store and summed up, the first time or again. Keeps nothing and decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ifed.states import RoundKind
from services.aggregator.domain import Round
from services.aggregator.ports import Store, Work
from services.aggregator.tally import Start, Summed, Tally


async def sum_up(store: Store, round_: Round, seen: Callable[[bytes], None] | None = None) -> Summed:
    """Add the contributions up as they are read, in client-id order; only one batch of them is in memory where the rule allows.

    Args:
        seen: told every body, in that order.
    """
    async with store.reading() as work:
        task = await work.tasks.get(round_.task)
        tally = Tally(round_, len(task.spec.labels), task.spec.policy, await _start(work, round_))
        async for weight, body in work.rounds.bodies(round_.task, round_.number):
            if seen is not None:
                seen(body)
            await asyncio.to_thread(tally.add, weight, body)
    return await asyncio.to_thread(tally.summed)


async def _start(work: Work, round_: Round) -> Start | None:
    """What a calibration round starts from; nothing in other rounds."""
    if round_.kind is not RoundKind.CALIBRATION or round_.version is None:
        return None
    head = await work.aggregates.coefficients(round_.task, round_.version)
    body = await work.aggregates.coefficients_body(round_.task, round_.version)
    return Start(body, await work.aggregates.moments(round_.task, round_.version), head.calibrated)
