"""Held requests and background work, against the fakes: no ring is lost, nothing waits longer than it must."""

from __future__ import annotations

import asyncio
import time

import pytest
from prometheus_client import CollectorRegistry

from ifed.errors import Unavailable
from services.aggregator.metrics import Metrics
from services.aggregator.runtime.background import PeriodicTask
from services.aggregator.runtime.long_poll import LongPoll
from tests.fakes import FakeCache

LONG, SHORT = 5.0, 0.05


class Truth:
    """Something a poll looks at."""

    def __init__(self) -> None:
        self.value, self.looks = 0, 0

    async def look(self) -> int:
        self.looks += 1
        return self.value


def polls(cache: FakeCache, *, recheck: float = LONG, longest: float = LONG) -> LongPoll:
    return LongPoll(cache, Metrics(CollectorRegistry()).long_polls, recheck=recheck, longest=longest)


async def test_what_is_settled_is_answered_at_once() -> None:
    truth = Truth()
    assert await polls(FakeCache()).until("t", truth.look, lambda seen: seen == 0, wait=LONG) == 0
    assert truth.looks == 1


async def test_a_change_that_is_announced_while_the_truth_is_read_is_not_missed() -> None:
    cache, truth = FakeCache(), Truth()

    async def look_and_change_right_after() -> int:
        seen = await truth.look()
        if not seen:
            truth.value = 1
            await cache.publish("t")
        return seen

    began = time.monotonic()
    assert await polls(cache).until("t", look_and_change_right_after, bool, wait=LONG) == 1
    assert time.monotonic() - began < 1


async def test_a_poll_that_nothing_woke_gives_what_it_saw_last() -> None:
    assert await polls(FakeCache()).until("t", Truth().look, bool, wait=SHORT) == 0


async def test_a_poll_is_held_no_longer_than_the_service_allows() -> None:
    began = time.monotonic()
    await polls(FakeCache(), longest=SHORT).until("t", Truth().look, bool, wait=3600)
    assert time.monotonic() - began < 1


async def test_without_a_cache_a_poll_looks_again_by_itself() -> None:
    cache, truth = FakeCache(), Truth()
    cache.down = True
    waiting = asyncio.create_task(polls(cache, recheck=SHORT).until("t", truth.look, bool, wait=LONG))
    await asyncio.sleep(SHORT / 2)
    truth.value = 1
    await cache.publish("t")
    assert await waiting == 1


async def test_closing_answers_every_held_request() -> None:
    held = polls(FakeCache())
    waiting = [asyncio.create_task(held.until(topic, Truth().look, bool, wait=LONG)) for topic in ("a", "a", "b")]
    await asyncio.sleep(SHORT)
    began = time.monotonic()
    await held.close()
    assert await asyncio.gather(*waiting) == [0, 0, 0]
    assert time.monotonic() - began < 1
    assert await held.until("a", Truth().look, bool, wait=LONG) == 0, "what comes after is not held"


async def test_background_work_runs_at_once_after_a_nudge() -> None:
    ran = asyncio.Event()

    async def work() -> None:
        ran.set()

    ticker = PeriodicTask(seconds=LONG)
    ticker.start(work)
    await asyncio.wait_for(ran.wait(), 1)
    ran.clear()
    ticker.wake()
    await asyncio.wait_for(ran.wait(), 1)
    await ticker.stop()


@pytest.mark.parametrize("trouble", [Unavailable("the database is away"), RuntimeError("a defect")])
async def test_background_work_outlives_what_goes_wrong_in_it(trouble: Exception) -> None:
    turns = 0
    again = asyncio.Event()

    async def work() -> None:
        nonlocal turns
        turns += 1
        if turns == 1:
            raise trouble
        again.set()

    ticker = PeriodicTask(seconds=0.01)
    ticker.start(work)
    await asyncio.wait_for(again.wait(), 1)
    await ticker.stop()


async def test_background_work_stops_even_when_a_nudge_meets_the_stop() -> None:
    for _ in range(50):
        ticker = PeriodicTask(seconds=LONG)
        ticker.start(lambda: asyncio.sleep(0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        ticker.wake()
        await asyncio.wait_for(ticker.stop(), 1)
