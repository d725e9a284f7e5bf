"""Lanes, a bounded queue, batches over several requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import pytest

from ifed.errors import DeadlineExceeded, QueueFull, Unavailable
from services.inference.engine import Engine, Pass, Ran, Scores


class Model:
    """Scores a number with itself, remembers its batches, and can be held."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.free = threading.Event()
        self.free.set()

    def score(self, items: Sequence[int]) -> list[Scores]:
        self.free.wait(5)
        self.batches.append(list(items))
        self.threads.add(threading.get_ident())
        if -1 in items:
            raise ValueError("no such item")
        return [np.array([item], np.float32) for item in items]


def engine_of(
    model: Model,
    *,
    budget: int = 100,
    queue: int = 10,
    tokens: Callable[[int], int] = lambda _: 1,
    lanes: int = 1,
    gather: float = 0.01,
) -> Engine[int]:
    engine = Engine([model.score] * lanes, tokens=tokens, token_budget=budget, gather_seconds=gather, max_queue=queue)
    engine.start()
    return engine


async def numbers(work: Awaitable[Ran]) -> list[float]:
    return [float(one[0]) for one in (await work).scores]


async def test_requests_that_wait_share_a_batch_and_get_their_own_answers() -> None:
    model = Model()
    engine = engine_of(model)
    answers = await asyncio.gather(*(numbers(engine.run(items)) for items in ([1, 2], [3], [4, 5])))
    assert answers == [[1, 2], [3], [4, 5]]
    assert sorted(model.batches[0]) == [1, 2, 3, 4, 5]
    await engine.stop()


async def test_a_batch_ends_at_the_token_budget() -> None:
    model = Model()
    engine = engine_of(model, budget=10, tokens=lambda item: item)
    await asyncio.gather(engine.run([6]), engine.run([4]), engine.run([1]), engine.run([50]))
    assert model.batches == [[6, 4], [1], [50]]
    await engine.stop()


async def test_a_large_request_does_not_hold_up_a_small_one() -> None:
    model = Model()
    engine = engine_of(model, budget=4, queue=100)
    large, small = asyncio.create_task(engine.run(list(range(10, 30)))), asyncio.create_task(engine.run([1]))
    assert await numbers(small) == [1]
    assert 1 in model.batches[0]
    assert len(model.batches[0]) == 4
    assert await numbers(large) == list(range(10, 30))
    await engine.stop()


async def test_the_model_runs_in_one_thread_that_is_not_the_event_loop() -> None:
    model = Model()
    engine = engine_of(model)
    for number in range(5):
        await engine.run([number])
    assert len(model.threads) == 1
    assert threading.get_ident() not in model.threads
    await engine.stop()


async def test_lanes_that_are_idle_run_at_the_same_time_and_share_what_waits() -> None:
    model = Model()
    model.free.clear()
    engine = engine_of(model, lanes=2)
    asked = [asyncio.create_task(engine.run([number])) for number in range(4)]
    await asyncio.sleep(0.1)
    assert engine.depth == 1, "one took its half, the other half of what was left"
    model.free.set()
    await asyncio.gather(*asked)
    assert sorted(model.batches) == [[0, 1], [2], [3]]
    assert len(model.threads) == 2
    await engine.stop()


async def test_an_idle_lane_takes_what_comes_while_the_other_one_runs() -> None:
    model = Model()
    model.free.clear()
    engine = engine_of(model, lanes=2)
    first = asyncio.create_task(engine.run([0]))
    await asyncio.sleep(0.05)
    later = [asyncio.create_task(engine.run([number])) for number in (1, 2)]
    await asyncio.sleep(0.05)
    last = asyncio.create_task(engine.run([3]))
    await asyncio.sleep(0.05)
    assert engine.depth == 2, "the idle lane took one of two, and no lane is left"
    model.free.set()
    await asyncio.gather(first, *later, last)
    assert sorted(number for batch in model.batches for number in batch) == [0, 1, 2, 3]
    assert [0] in model.batches
    assert [1] in model.batches
    await engine.stop()


async def test_a_lane_leaves_the_busy_ones_their_share_of_a_short_queue() -> None:
    model = Model()
    model.free.clear()
    engine = engine_of(model, lanes=2)
    first = [asyncio.create_task(engine.run([number])) for number in (0, 1)]
    await asyncio.sleep(0.05)
    later = [asyncio.create_task(engine.run([number])) for number in range(2, 6)]
    await asyncio.sleep(0.05)
    assert engine.depth == 4
    model.free.set()
    await asyncio.gather(*first, *later)
    assert max(len(batch) for batch in model.batches) == 2, "none read all four one after the other"
    await engine.stop()


@pytest.mark.parametrize(("short", "taken"), [(0, 2), (4, 4)])
async def test_a_lane_leaves_busy_ones_nothing_of_a_short_pass(short: int, taken: int) -> None:
    busy, soon = Model(), Model()
    busy.free.clear()
    soon.free.clear()
    engine = Engine(
        [busy.score, soon.score], tokens=lambda _: 1, token_budget=100, short_pass=short, gather_seconds=0.01, max_queue=10
    )
    engine.start()
    first = [asyncio.create_task(engine.run([number])) for number in (0, 1)]
    await asyncio.sleep(0.05)
    later = [asyncio.create_task(engine.run([number])) for number in range(2, 6)]
    await asyncio.sleep(0.05)
    soon.free.set()
    await asyncio.gather(*later)
    assert len(soon.batches[1]) == taken
    busy.free.set()
    await asyncio.gather(*first)
    await engine.stop()


async def test_what_another_lane_reads_does_not_end_the_wait_for_company() -> None:
    model = Model()
    model.free.clear()
    engine = engine_of(model, budget=10, tokens=lambda item: item, lanes=2, gather=0.3)
    held = asyncio.create_task(engine.run([9]))
    await asyncio.sleep(0.4)
    first = asyncio.create_task(engine.run([2]))
    await asyncio.sleep(0.05)
    later = [asyncio.create_task(engine.run([tokens])) for tokens in (1, 3)]
    await asyncio.sleep(0.4)
    model.free.set()
    await asyncio.gather(held, first, *later)
    assert sorted(model.batches) == [[2, 1], [3], [9]], "2 waited for the others and took 1, the busy lane's share left"
    await engine.stop()


async def test_an_error_in_one_lane_leaves_the_others_to_run() -> None:
    model = Model()
    engine = engine_of(model, lanes=2, budget=1)
    found = await asyncio.gather(*(numbers(engine.run([number])) for number in (-1, 1, 2)), return_exceptions=True)
    assert isinstance(found[0], ValueError)
    assert found[1:] == [[1], [2]]
    for number in range(4):
        assert await numbers(engine.run([number])) == [number]
    await engine.stop()


async def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    model = Model()
    model.free.clear()
    engine = engine_of(model, queue=3)
    first = asyncio.create_task(engine.run([0]))
    await asyncio.sleep(0.05)
    waiting = [asyncio.create_task(engine.run([1])), asyncio.create_task(engine.run([2, 3]))]
    await asyncio.sleep(0)
    assert engine.depth == 3
    with pytest.raises(QueueFull, match="3 texts wait, these are 1, and at most 3 may wait") as refusal:
        await engine.run([4])
    assert refusal.value.retry_after
    model.free.set()
    await asyncio.gather(first, *waiting)
    assert engine.depth == 0
    await engine.stop()


async def test_a_caller_that_went_away_frees_its_place_at_once() -> None:
    model = Model()
    model.free.clear()
    engine = engine_of(model, queue=2)
    first = asyncio.create_task(engine.run([0]))
    await asyncio.sleep(0.05)
    gone, stays = asyncio.create_task(engine.run([1])), asyncio.create_task(engine.run([2]))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    assert engine.depth == 1
    another = asyncio.create_task(engine.run([3]))
    await asyncio.sleep(0)
    model.free.set()
    await asyncio.gather(first, stays, another)
    assert model.batches == [[0], [2, 3]]
    await engine.stop()


async def test_a_deadline_that_passes_frees_the_place_and_is_told() -> None:
    model = Model()
    model.free.clear()
    engine = engine_of(model)
    first = asyncio.create_task(engine.run([0]))
    await asyncio.sleep(0.05)
    with pytest.raises(DeadlineExceeded):
        await engine.run([1], deadline=asyncio.get_running_loop().time() + 0.02)
    assert engine.depth == 0
    model.free.set()
    await first
    assert model.batches == [[0]]
    await engine.stop()


async def test_an_error_reaches_its_callers_and_the_lane_goes_on() -> None:
    model = Model()
    engine = engine_of(model)
    with pytest.raises(ValueError, match="no such item"):
        await engine.run([-1])
    assert await numbers(engine.run([1])) == [1]
    assert engine.alive
    await engine.stop()


async def test_too_few_scores_or_an_observer_that_fails_reach_the_callers_and_the_engine_goes_on() -> None:
    class Listener:
        broken = False

        def batch(self, *, items: int, tokens: int, budget: int, seconds: float) -> None:
            if self.broken:
                raise RuntimeError("nobody listens")

    def short(items: Sequence[int]) -> list[Scores]:
        return [np.array([item], np.float32) for item in items if item > 0]

    listener = Listener()
    engine = Engine([short], tokens=lambda _: 1, token_budget=10, gather_seconds=0.0, max_queue=9, observer=listener)
    engine.start()
    with pytest.raises(ValueError, match="shorter"):
        await engine.run([1, -1])
    listener.broken = True
    with pytest.raises(RuntimeError, match="nobody listens"):
        await engine.run([1])
    listener.broken = False
    assert await numbers(engine.run([2])) == [2]
    assert engine.alive
    await engine.stop()


async def test_stopping_refuses_what_waits_and_what_is_under_way() -> None:
    model = Model()
    model.free.clear()
    engine = engine_of(model)
    under_way = asyncio.create_task(engine.run([0]))
    await asyncio.sleep(0.05)
    waiting = asyncio.create_task(engine.run([1]))
    await asyncio.sleep(0)
    model.free.set()
    await engine.stop()
    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(Unavailable):
        await under_way


async def test_no_items_need_no_model() -> None:
    model = Model()
    assert (await engine_of(model).run([])).scores == []
    assert model.batches == []


async def test_every_forward_pass_is_told_with_its_fill() -> None:
    told: list[tuple[int, int, int]] = []

    class Listener:
        def batch(self, *, items: int, tokens: int, budget: int, seconds: float) -> None:
            told.append((items, tokens, budget))

    engine = Engine([Model().score], tokens=lambda _: 3, token_budget=10, gather_seconds=0.01, max_queue=9, observer=Listener())
    engine.start()
    ran = await engine.run([1, 2, 3, 4])
    assert told == [(3, 9, 10), (1, 3, 10)]
    assert ran.passes == [Pass(3, 0.9), Pass(1, 0.3)]
    assert ran.queue_seconds >= 0
    assert ran.model_seconds >= 0
    await engine.stop()


async def test_a_request_is_told_of_every_pass_that_read_a_text_of_it_once() -> None:
    engine = engine_of(Model(), budget=3)
    one, other = await asyncio.gather(engine.run([1, 2, 3]), engine.run([4]))
    assert [shared.items for shared in one.passes] == [3, 1]
    assert [shared.items for shared in other.passes] == [3]
    await engine.stop()


async def test_another_thread_may_ask_how_many_wait_while_requests_come_and_go() -> None:
    engine = engine_of(Model(), queue=10_000)
    ended, problems = threading.Event(), list[Exception]()

    def ask() -> None:
        while not ended.is_set():
            try:
                assert engine.depth >= 0
            except RuntimeError as reason:  # a dictionary that changed while it was read
                problems.append(reason)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(20):
            await asyncio.gather(*(engine.run([number]) for number in range(50)))
    finally:
        ended.set()
        asking.join()
    assert not problems
    await engine.stop()
