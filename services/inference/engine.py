"""Which of the waiting texts share the next forward pass: pure arithmetic on their sizes. Knows no requests and no model."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from time import monotonic
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ifed.errors import DeadlineExceeded, QueueFull, Unavailable


def lane_share(waiting: int, *, idle: int, lanes: int, budget: int, short: int) -> int:
    """Tokens that a lane takes of those that wait: a part for each idle lane; where all others are busy, for each lane, or a short pass.

    Args:
        waiting: tokens.
        idle: lanes that do nothing, this one not counted.
        lanes: all of them.
        budget: the most.
        short: tokens up to which a pass costs little more than for one text, so that a lane leaves none of them to others that are busy.
    """
    part = math.ceil(waiting / (1 + idle)) if idle else max(short, math.ceil(waiting / lanes))
    return min(budget, part)


def choose_batch(sizes: Sequence[int], budget: int, *, padded: bool) -> list[int]:
    """Indices of the texts to run together, the first among them always.

    Texts laid end to end cost the sum of their sizes, so they are taken in turn while they fit. Where they are padded, each costs the
    longest one's size, so after the first come those nearest to it in length.

    Args:
        sizes: tokens of each waiting text, in the order in which they are entitled to be next.
        budget: tokens of one forward pass, padding included; a first text that is longer runs alone.
    """
    if not sizes:
        return []
    chosen, longest, total = [0], sizes[0], sizes[0]
    others = range(1, len(sizes))
    for index in sorted(others, key=lambda index: abs(sizes[index] - sizes[0])) if padded else others:
        grown = max(longest, sizes[index]) * (len(chosen) + 1) if padded else total + sizes[index]
        if grown <= budget:
            chosen.append(index)
            longest, total = max(longest, sizes[index]), total + sizes[index]
    return sorted(chosen)


Item = TypeVar("Item")
Scores = npt.NDArray[np.float32]
LOOK_AHEAD = 256
LONGEST_RETRY = 30


class BatchObserver(Protocol):
    """Told of every forward pass."""

    def batch(self, *, items: int, tokens: int, budget: int, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass: how many items it read, and their tokens over the budget."""

    items: int
    fill: float


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of one request.

    Attributes:
        scores: one per item, in order.
        queue_seconds: from its arrival until its first item entered the model.
        model_seconds: from then until its last item left it.
        passes: every forward pass that read an item of it, other requests' items included.
    """

    scores: list[Scores]
    queue_seconds: float
    model_seconds: float
    passes: Sequence[Pass] = ()


@dataclass(slots=True, eq=False)
class _Job(Generic[Item]):
    items: Sequence[Item]
    sizes: Sequence[int]
    answer: asyncio.Future[Ran] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    arrived: float = field(default_factory=monotonic)
    started: float = 0.0
    waiting: dict[int, None] = field(default_factory=dict)
    scores: dict[int, Scores] = field(default_factory=dict)
    passes: list[Pass] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.waiting = dict.fromkeys(range(len(self.items)))


class Engine(Generic[Item]):
    """Runs batches gathered from waiting requests, one at a time in each lane.

    A large request does not hold up the small ones: each forward pass takes one text of every request in turn while the budget lasts.
    Each lane takes its share of what waits: few texts are not read one after the other while a lane does nothing, and a text that comes
    to a service that is not full finds short passes. Where much waits, a share is the whole budget.

    Args:
        lanes: each is what the model does with a list of items; blocking; answers in the same order. None is called while it runs.
        tokens: length of an item, for the budget.
        token_budget: tokens of one forward pass, unless one item alone is larger.
        short_pass: tokens that a lane takes without sharing them with lanes that are busy.
        padded: whether items of a batch are filled up to the longest.
        gather_seconds: how long the first of a batch waits for others, counted from its arrival.
        max_queue: items that may wait.
    """

    def __init__(
        self,
        lanes: Sequence[Callable[[Sequence[Item]], list[Scores]]],
        *,
        tokens: Callable[[Item], int],
        token_budget: int,
        short_pass: int = 0,
        gather_seconds: float,
        max_queue: int,
        padded: bool = False,
        observer: BatchObserver | None = None,
    ) -> None:
        self._lanes, self._tokens, self._observer = lanes, tokens, observer
        self._budget, self._short_pass, self._padded = token_budget, short_pass, padded
        self._gather_seconds, self._max_queue = gather_seconds, max_queue
        self._jobs: dict[_Job[Item], None] = {}
        self._tokens_per_second = 0.0
        self._arrived = asyncio.Event()
        self._idle: asyncio.Queue[int] = asyncio.Queue()
        self._threads = ThreadPoolExecutor(len(lanes), thread_name_prefix="model")
        self._running: asyncio.Task[None] | None = None

    @property
    def depth(self) -> int:
        """Items that wait. Any thread may ask: /metrics is written in another one while requests come and go."""
        return sum(len(job.waiting) for job in tuple(self._jobs))

    @property
    def alive(self) -> bool:
        return self._running is not None and not self._running.done()

    def start(self) -> None:
        for lane in range(len(self._lanes)):
            self._idle.put_nowait(lane)
        self._running = asyncio.create_task(self._run(), name="engine")

    async def stop(self) -> None:
        """End: requests without their whole answer are refused, and the passes under way are waited for and dropped."""
        if self._running is not None:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running
        for job in self._jobs:
            if not job.answer.done():
                job.answer.set_exception(Unavailable("the service is shutting down; ask again"))
        await asyncio.to_thread(self._threads.shutdown)

    async def run(self, items: Sequence[Item], *, deadline: float | None = None) -> Ran:
        """The scores of `items`. A caller that goes away, or whose deadline passes, gives its places up at once.

        Args:
            deadline: on the event loop's clock.

        Raises:
            QueueFull: too many items wait already; with the time in which they should be done.
            DeadlineExceeded: `deadline` passed first.
        """
        if not items:
            return Ran([], 0.0, 0.0)
        job = _Job(items, [self._tokens(item) for item in items])
        if self._jobs and (waiting := self.depth) + len(items) > self._max_queue:
            raise QueueFull(
                f"{waiting} texts wait, these are {len(items)}, and at most {self._max_queue} may wait; try again in a moment",
                retry_after=self._patience(),
            )
        self._jobs[job] = None
        self._arrived.set()
        try:
            async with asyncio.timeout_at(deadline):
                return await job.answer
        except TimeoutError as reason:
            raise DeadlineExceeded("the deadline of this request passed before the model had read its texts") from reason
        finally:
            self._jobs.pop(job, None)

    def _patience(self) -> int:
        """Whole seconds in which what waits now should be done, by the speed of late."""
        speed = len(self._lanes) * self._tokens_per_second
        return max(1, min(LONGEST_RETRY, math.ceil(self._waiting_tokens() / speed))) if speed else 1

    def _waiting_tokens(self) -> int:
        """Without what a lane reads now."""
        return sum(job.sizes[index] for job in self._jobs for index in job.waiting)

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as answering:
            while True:
                await self._arrived.wait()
                lane = await self._idle.get()
                await self._gather()
                if batch := self._next():
                    answering.create_task(self._answer(lane, batch))
                else:
                    self._idle.put_nowait(lane)
                if not any(job.waiting for job in self._jobs):
                    self._arrived.clear()

    def _next(self) -> list[tuple[_Job[Item], int]]:
        """What one lane reads next: its share of what waits."""
        places = list(islice(self._in_turn(), LOOK_AHEAD))
        sizes = [job.sizes[index] for job, index in places]
        budget = lane_share(
            sum(sizes), idle=self._idle.qsize(), lanes=len(self._lanes), budget=self._budget, short=self._short_pass
        )
        batch = [places[place] for place in choose_batch(sizes, budget, padded=self._padded)]
        for job, index in batch:
            del job.waiting[index]
        return batch

    async def _gather(self) -> None:
        """Wait a moment for more, unless there is enough or the oldest has waited that long already."""
        oldest = next((job for job in self._jobs if job.waiting), None)
        if oldest is None:
            return
        left = oldest.arrived + self._gather_seconds - monotonic()
        if left > 0 and self._waiting_tokens() < self._budget:
            await asyncio.sleep(left)

    def _in_turn(self) -> Iterator[tuple[_Job[Item], int]]:
        """The oldest request's next item, one of each other request by age, then the second ones."""
        queues = deque((job, iter(tuple(job.waiting))) for job in self._jobs if job.waiting)
        while queues:
            job, left = queues.popleft()
            if (index := next(left, None)) is not None:
                yield job, index
                queues.append((job, left))

    async def _answer(self, lane: int, batch: Sequence[tuple[_Job[Item], int]]) -> None:
        began = monotonic()
        for job, _ in batch:
            job.started = job.started or began
        items = [job.items[at] for job, at in batch]
        try:
            scores = await asyncio.get_running_loop().run_in_executor(self._threads, self._lanes[lane], items)
            self._deliver(batch, scores, began, monotonic())
        except Exception as reason:  # noqa: BLE001  # the callers get it; the lane goes on
            for job, _ in batch:
                self._jobs.pop(job, None)
                if not job.answer.done():
                    job.answer.set_exception(reason)
            return
        finally:
            self._idle.put_nowait(lane)

    def _deliver(self, batch: Sequence[tuple[_Job[Item], int]], scores: Sequence[Scores], began: float, ended: float) -> None:
        shared = self._measured(batch, ended - began)
        for job in {job for job, _ in batch}:
            job.passes.append(shared)
        for (job, index), score in zip(batch, scores, strict=True):
            job.scores[index] = score
            if len(job.scores) == len(job.items) and not job.answer.done():
                ordered = [job.scores[at] for at in range(len(job.items))]
                job.answer.set_result(Ran(ordered, job.started - job.arrived, ended - job.started, job.passes))

    def _measured(self, batch: Sequence[tuple[_Job[Item], int]], seconds: float) -> Pass:
        tokens = sum(job.sizes[index] for job, index in batch)
        speed = tokens / max(seconds, 1e-6)
        self._tokens_per_second = 0.9 * self._tokens_per_second + 0.1 * speed if self._tokens_per_second else speed
        if self._observer is not None:
            self._observer.batch(items=len(batch), tokens=tokens, budget=self._budget, seconds=seconds)
        return Pass(len(batch), tokens / self._budget)
