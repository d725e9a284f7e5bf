"""Periodic work: it runs when woken, survives errors and stops."""

from __future__ import annotations

import asyncio

import pytest

from ifed.errors import Unavailable
from services.aggregator.runtime.background import PeriodicTask

LONG = 5.0


async def test_work_runs_at_once_when_woken() -> None:
    ran = asyncio.Event()

    async def work() -> None:
        ran.set()

    task = PeriodicTask(seconds=LONG)
    task.start(work)
    await asyncio.wait_for(ran.wait(), 1)
    ran.clear()
    task.wake()
    await asyncio.wait_for(ran.wait(), 1)
    await task.stop()


@pytest.mark.parametrize("failure", [Unavailable("the database is away"), RuntimeError("a defect")])
async def test_work_goes_on_after_an_error(failure: Exception) -> None:
    turns = 0
    again = asyncio.Event()

    async def work() -> None:
        nonlocal turns
        turns += 1
        if turns == 1:
            raise failure
        again.set()

    task = PeriodicTask(seconds=0.01)
    task.start(work)
    await asyncio.wait_for(again.wait(), 1)
    await task.stop()


async def test_work_stops_even_when_it_is_woken_at_the_same_time() -> None:
    for _ in range(50):
        task = PeriodicTask(seconds=LONG)
        task.start(lambda: asyncio.sleep(0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.wake()
        await asyncio.wait_for(task.stop(), 1)
