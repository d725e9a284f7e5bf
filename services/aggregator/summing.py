"""A round's contributions read from the store and summed up, the first time or again. Keeps nothing and decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from ifed.states import RoundKind
from services.aggregator.domain import Round
from services.aggregator.ports import Store, Work
from services.aggregator.records import Part
from services.aggregator.tally import ContextTally, Start, Summed, Tally


async def sum_up(store: Store, round_: Round, seen: Callable[[bytes], None] | None = None) -> Summed:
    """Add the contributions up as they are read, in client-id order; only one batch of them is in memory where the rule allows.

    Args:
        seen: told every body of a calibration or evaluation round, in that order.
    """
    if round_.kind is RoundKind.CONTEXT:
        return await sum_context(store, round_.task, round_.number)
    async with store.reading() as work:
        task = await work.tasks.get(round_.task)
        tally = Tally(round_, len(task.spec.labels), task.spec.policy, await _start(work, round_))
        async for weight, body in work.rounds.bodies(round_.task, round_.number):
            if seen is not None:
                seen(body)
            await asyncio.to_thread(tally.add, weight, body)
    return await asyncio.to_thread(tally.summed)


async def sum_context(
    store: Store, task: str, number: int, changes: int | None = None, seen: Callable[[Part], None] | None = None
) -> Summed:
    """Add the parts of a context vector up as they are read, by client and then in the order they came.

    Args:
        number: the context round, whose contributions are the first parts.
        changes: leave out what came or went after so many additions and withdrawals; None takes what counts now.
        seen: told every part, in that order.

    Raises:
        WrongState: nothing is left, or fewer clients than the rule needs.
    """
    async with store.reading() as work:
        kept = await work.tasks.get(task)
        upto = kept.context_changes if changes is None else changes
        tally = ContextTally(task, number, kept.spec.policy)
        async for part in work.parts.bodies(task, number, upto):
            if seen is not None:
                seen(part)
            await asyncio.to_thread(tally.add, part.client, part.weight, part.body)
    return replace(await asyncio.to_thread(tally.summed), changes=upto)


async def _start(work: Work, round_: Round) -> Start | None:
    """What a calibration round starts from; nothing in other rounds."""
    if round_.kind is not RoundKind.CALIBRATION or round_.version is None:
        return None
    head = await work.aggregates.coefficients(round_.task, round_.version)
    body = await work.aggregates.coefficients_body(round_.task, round_.version)
    return Start(body, await work.aggregates.moments(round_.task, round_.version), head.calibrated)
