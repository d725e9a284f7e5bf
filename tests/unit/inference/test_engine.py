"""Batching: which items share a forward pass, how replicas share the queue, and when requests leave it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from ifed.errors import DeadlineExceeded, QueueFull, Unavailable
from ifed.tensors.values import Float32
from services.inference.engine import Engine, EngineResult, Pass, SharedPrefix, Size, choose_batch, pass_tokens, token_share
from services.inference.metrics import Metrics
from tests.unit.inference.fakes import metrics_of, sample


class Model:
    """Score a number with itself, record the batches, and block while `free` is not set."""

    def __init__(self, *, blocked: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.free = threading.Event()
        if not blocked:
            self.free.set()

    def score(self, items: Sequence[int]) -> list[Float32]:
        self.free.wait(5)
        self.batches.append(list(items))
        self.threads.add(threading.get_ident())
        if -1 in items:
            raise ValueError("no such item")
        return [np.array([item], np.float32) for item in items]


@asynccontextmanager
async def engine_of(
    *models: Model,
    budget: int = 100,
    queue: int = 10,
    tokens: Callable[[int], int] = lambda _: 1,
    short_pass: int = 0,
    gather: float = 0.01,
    metrics: Metrics | None = None,
) -> AsyncIterator[Engine[int]]:
    """A running engine with one replica per model."""
    engine = Engine(
        [model.score for model in models],
        tokens=tokens,
        token_budget=budget,
        short_pass=short_pass,
        gather_seconds=gather,
        max_queue=queue,
        metrics=metrics or metrics_of(),
    )
    engine.start()
    yield engine
    await engine.stop()


async def start(engine: Engine[int], *requests: list[int], seconds: float = 0.05) -> list[asyncio.Task[EngineResult]]:
    """Start requests, and give idle replicas the time to take a batch."""
    tasks = [asyncio.create_task(engine.run(items)) for items in requests]
    await asyncio.sleep(seconds)
    return tasks


async def numbers(result: Awaitable[EngineResult]) -> list[float]:
    return [float(scores[0]) for scores in (await result).scores]


def sizes(*tokens: int) -> list[Size]:
    return [Size(count) for count in tokens]


class TestChooseBatch:
    def test_packed_texts_are_taken_in_order_while_they_fit(self) -> None:
        assert choose_batch(sizes(60, 50, 30, 10), 100, padded=False) == [0, 2, 3]

    def test_padded_texts_are_taken_by_closeness_to_the_first(self) -> None:
        assert choose_batch(sizes(10, 40, 12, 11, 9), 44, padded=True) == [0, 3, 4]

    def test_a_first_text_beyond_the_budget_runs_alone(self) -> None:
        assert choose_batch(sizes(200, 1), 100, padded=False) == [0]
        assert choose_batch(sizes(200, 1), 100, padded=True) == [0]

    def test_an_empty_queue_is_no_batch(self) -> None:
        assert choose_batch([], 100, padded=True) == []

    def test_a_shared_prefix_counts_once(self) -> None:
        prefix = SharedPrefix("text", 50)
        tasks = [Size(55, [prefix])] * 20
        assert pass_tokens(tasks) == 50 + 20 * 5
        assert choose_batch(tasks, 100, padded=False) == list(range(10))
        assert choose_batch([*tasks[:2], *sizes(40, 41), Size(55, [SharedPrefix("other", 50)])], 100, padded=False) == [0, 1, 2]

    def test_what_shares_a_prefix_stays_together_up_to_a_short_pass_and_to_twice_the_prefix(self) -> None:
        tasks = [Size(55, [SharedPrefix("text", 50)])] * 40
        assert len(choose_batch(tasks, 60, padded=False, short_pass=70)) == 10, "twice 50"
        assert len(choose_batch(tasks, 60, padded=False, short_pass=150)) == 20
        assert choose_batch([*tasks[:1], *sizes(10)], 60, padded=False, short_pass=150) == [0], "others keep to the budget"

    def test_a_text_that_shares_parts_of_a_prefix_counts_without_them(self) -> None:
        template, text = SharedPrefix("template", 20), SharedPrefix("text", 30)
        assert pass_tokens([Size(60, [template, text]), Size(60, [template]), Size(60)]) == 60 + 40 + 60

    @given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 3)), min_size=1, max_size=50), st.integers(1, 600), st.booleans())
    def test_the_first_always_runs_and_the_budget_always_holds(
        self, drawn: list[tuple[int, int]], budget: int, padded: bool
    ) -> None:
        waiting = [Size(30 + tokens, [SharedPrefix(key, 30)] if key else []) for tokens, key in drawn]
        chosen = choose_batch(waiting, budget, padded=padded)
        assert chosen[0] == 0
        assert chosen == sorted(set(chosen))
        batch = [waiting[index] for index in chosen]
        cost = max(size.tokens for size in batch) * len(batch) if padded else pass_tokens(batch)
        assert len(chosen) == 1 or cost <= (budget if padded or not any(size.shared for size in batch) else max(budget, 60))


class TestTokenShare:
    def test_idle_replicas_get_equal_shares(self) -> None:
        assert token_share(90, idle=1, replicas=2, budget=512, short_pass=64) == 45
        assert token_share(91, idle=2, replicas=4, budget=512, short_pass=0) == 31

    def test_a_replica_takes_a_whole_short_pass_when_the_others_are_busy(self) -> None:
        assert token_share(90, idle=0, replicas=2, budget=512, short_pass=64) == 64
        assert token_share(300, idle=0, replicas=2, budget=512, short_pass=64) == 150
        assert token_share(90, idle=0, replicas=1, budget=512, short_pass=64) == 90

    def test_no_share_exceeds_the_budget(self) -> None:
        assert token_share(9000, idle=0, replicas=2, budget=512, short_pass=64) == 512
        assert token_share(9000, idle=1, replicas=2, budget=512, short_pass=9000) == 512


class TestBatches:
    async def test_waiting_requests_share_a_batch_and_get_their_own_scores(self) -> None:
        model = Model()
        async with engine_of(model) as engine:
            scores = await asyncio.gather(*(numbers(engine.run(items)) for items in ([1, 2], [3], [4, 5])))
        assert scores == [[1, 2], [3], [4, 5]]
        assert sorted(model.batches[0]) == [1, 2, 3, 4, 5]

    async def test_a_batch_ends_at_the_token_budget(self) -> None:
        model = Model()
        async with engine_of(model, budget=10, tokens=lambda item: item) as engine:
            await asyncio.gather(*(engine.run([item]) for item in (6, 4, 1, 50)))
        assert model.batches == [[6, 4], [1], [50]]

    async def test_a_large_request_does_not_delay_a_small_one(self) -> None:
        model = Model()
        async with engine_of(model, budget=4, queue=100) as engine:
            large, small = asyncio.create_task(engine.run(list(range(10, 30)))), asyncio.create_task(engine.run([1]))
            assert await numbers(small) == [1]
            assert 1 in model.batches[0]
            assert len(model.batches[0]) == 4
            assert await numbers(large) == list(range(10, 30))

    async def test_the_model_runs_in_one_thread_that_is_not_the_event_loop(self) -> None:
        model = Model()
        async with engine_of(model) as engine:
            for number in range(5):
                await engine.run([number])
        assert len(model.threads) == 1
        assert threading.get_ident() not in model.threads

    async def test_no_items_need_no_pass(self) -> None:
        model = Model()
        async with engine_of(model) as engine:
            assert (await engine.run([])).scores == []
        assert model.batches == []

    async def test_every_pass_is_recorded_with_its_fill(self) -> None:
        metrics = metrics_of()
        async with engine_of(Model(), budget=10, tokens=lambda _: 3, metrics=metrics) as engine:
            result = await engine.run([1, 2, 3, 4])
        assert result.passes == [Pass(3, 0.9, [0, 1, 2]), Pass(1, 0.3, [3])]
        assert result.queue_seconds >= 0
        assert result.model_seconds >= 0
        assert sample(metrics, "batch_items_sum") == 4
        assert sample(metrics, "batch_fill_sum") == pytest.approx(0.9 + 0.3)
        assert sample(metrics, "batch_seconds_count") == 2

    async def test_items_that_share_a_prefix_fill_the_budget_with_what_is_left_of_each(self) -> None:
        model, metrics = Model(), metrics_of()
        async with engine_of(model, budget=20, tokens=lambda _: 11, metrics=metrics) as engine:
            result = await engine.run(list(range(20)), shared=[[SharedPrefix("text", 10)]] * 20)
        assert [len(batch) for batch in model.batches] == [10, 10]
        assert [forward_pass.fill for forward_pass in result.passes] == [1.0, 1.0]
        assert sample(metrics, "batch_fill_sum") == 2.0

    async def test_a_request_has_each_pass_that_ran_an_item_of_it_once(self) -> None:
        async with engine_of(Model(), budget=3) as engine:
            first, second = await asyncio.gather(engine.run([1, 2, 3]), engine.run([4]))
        assert [forward_pass.items for forward_pass in first.passes] == [3, 1]
        assert [forward_pass.items for forward_pass in second.passes] == [3]


class TestReplicas:
    async def test_idle_replicas_run_at_the_same_time_and_divide_the_queue(self) -> None:
        model = Model(blocked=True)
        async with engine_of(model, model) as engine:
            requests = await start(engine, [0], [1], [2], [3], seconds=0.1)
            assert engine.depth == 1, "the first took half of the queue, the second half of the rest"
            model.free.set()
            await asyncio.gather(*requests)
        assert sorted(model.batches) == [[0, 1], [2], [3]]
        assert len(model.threads) == 2

    async def test_an_idle_replica_takes_what_arrives_while_the_other_is_busy(self) -> None:
        model = Model(blocked=True)
        async with engine_of(model, model) as engine:
            requests = [*await start(engine, [0]), *await start(engine, [1], [2]), *await start(engine, [3])]
            assert engine.depth == 2, "the idle replica took one of two, and now none is idle"
            model.free.set()
            await asyncio.gather(*requests)
        assert sorted(number for batch in model.batches for number in batch) == [0, 1, 2, 3]
        assert [0] in model.batches
        assert [1] in model.batches

    async def test_a_replica_leaves_busy_ones_their_share_of_a_short_queue(self) -> None:
        model = Model(blocked=True)
        async with engine_of(model, model) as engine:
            requests = [*await start(engine, [0], [1]), *await start(engine, [2], [3], [4], [5])]
            assert engine.depth == 4
            model.free.set()
            await asyncio.gather(*requests)
        assert max(len(batch) for batch in model.batches) == 2

    async def test_a_replica_leaves_busy_ones_nothing_of_a_short_pass(self) -> None:
        busy, free = Model(blocked=True), Model(blocked=True)
        async with engine_of(busy, free, short_pass=4) as engine:
            first = await start(engine, [0], [1])
            second = await start(engine, [2], [3], [4], [5])
            free.free.set()
            await asyncio.gather(*second)
            assert len(free.batches[1]) == 4
            busy.free.set()
            await asyncio.gather(*first)

    async def test_items_in_a_running_batch_do_not_end_the_wait_for_a_fuller_one(self) -> None:
        model = Model(blocked=True)
        async with engine_of(model, model, budget=10, tokens=lambda item: item, gather=0.3) as engine:
            requests = [*await start(engine, [9], seconds=0.4), *await start(engine, [2])]
            requests += await start(engine, [1], [3], seconds=0.4)
            model.free.set()
            await asyncio.gather(*requests)
        assert sorted(model.batches) == [[2, 1], [3], [9]], "2 waited for the others and took 1; 3 was the busy replica's share"

    async def test_an_error_in_one_replica_leaves_the_others_running(self) -> None:
        model = Model()
        async with engine_of(model, model, budget=1) as engine:
            results = await asyncio.gather(*(numbers(engine.run([item])) for item in (-1, 1, 2)), return_exceptions=True)
            assert isinstance(results[0], ValueError)
            assert results[1:] == [[1], [2]]
            for number in range(4):
                assert await numbers(engine.run([number])) == [number]


class TestQueue:
    async def test_a_full_queue_refuses_with_a_time_to_retry(self) -> None:
        model = Model(blocked=True)
        async with engine_of(model, queue=3) as engine:
            requests = [*await start(engine, [0]), *await start(engine, [1], [2, 3], seconds=0)]
            assert engine.depth == 3
            with pytest.raises(QueueFull, match="the queue holds 3 texts and takes at most 3; this request has 1 more") as refusal:
                await engine.run([4])
            assert refusal.value.retry_after
            model.free.set()
            await asyncio.gather(*requests)
            assert engine.depth == 0

    async def test_a_cancelled_request_leaves_the_queue_at_once(self) -> None:
        model = Model(blocked=True)
        async with engine_of(model, queue=2) as engine:
            running = await start(engine, [0])
            cancelled, waiting = await start(engine, [1], [2], seconds=0)
            cancelled.cancel()
            await asyncio.sleep(0)
            assert engine.depth == 1
            later = await start(engine, [3], seconds=0)
            model.free.set()
            await asyncio.gather(*running, waiting, *later)
        assert model.batches == [[0], [2, 3]]

    async def test_a_request_whose_deadline_passes_is_refused_and_leaves_the_queue(self) -> None:
        model = Model(blocked=True)
        async with engine_of(model) as engine:
            running = await start(engine, [0])
            with pytest.raises(DeadlineExceeded):
                await engine.run([1], deadline=asyncio.get_running_loop().time() + 0.02)
            assert engine.depth == 0
            model.free.set()
            await asyncio.gather(*running)
        assert model.batches == [[0]]

    async def test_any_thread_may_read_the_depth_while_requests_come_and_go(self) -> None:
        stopped, errors = threading.Event(), list[Exception]()
        async with engine_of(Model(), queue=10_000) as engine:

            def read() -> None:
                while not stopped.is_set():
                    try:
                        assert engine.depth >= 0
                    except RuntimeError as reason:  # a dictionary that changed while it was iterated
                        errors.append(reason)

            reader = threading.Thread(target=read)
            reader.start()
            try:
                for _ in range(20):
                    await asyncio.gather(*(engine.run([number]) for number in range(50)))
            finally:
                stopped.set()
                reader.join()
        assert not errors


class TestFailures:
    async def test_an_error_reaches_its_callers_and_the_engine_goes_on(self) -> None:
        async with engine_of(Model()) as engine:
            with pytest.raises(ValueError, match="no such item"):
                await engine.run([-1])
            assert await numbers(engine.run([1])) == [1]
            assert engine.alive

    async def test_too_few_scores_or_failing_metrics_reach_the_callers_and_the_engine_goes_on(self) -> None:
        class FailingMetrics(Metrics):
            failing = False

            def record_pass(self, *, items: int, tokens: int, budget: int, seconds: float) -> None:
                if self.failing:
                    raise RuntimeError("not recorded")

        class ShortModel(Model):
            def score(self, items: Sequence[int]) -> list[Float32]:
                return [np.array([item], np.float32) for item in items if item > 0]

        metrics = FailingMetrics(CollectorRegistry())
        async with engine_of(ShortModel(), metrics=metrics) as engine:
            with pytest.raises(ValueError, match="shorter"):
                await engine.run([1, -1])
            metrics.failing = True
            with pytest.raises(RuntimeError, match="not recorded"):
                await engine.run([1])
            metrics.failing = False
            assert await numbers(engine.run([2])) == [2]
            assert engine.alive

    async def test_stopping_refuses_waiting_and_running_requests(self) -> None:
        model = Model(blocked=True)
        async with engine_of(model) as engine:
            requests = [*await start(engine, [0]), *await start(engine, [1], seconds=0)]
            model.free.set()
        for request in requests:
            with pytest.raises(Unavailable):
                await request
