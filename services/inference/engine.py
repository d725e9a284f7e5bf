"""Dynamic batching: run the texts of many waiting requests together in forward passes of bounded size."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from time import monotonic
from typing import Generic, TypeVar

from ifed.errors import DeadlineExceeded, QueueFull, Unavailable
from ifed.tensors.values import Float32
from services.inference.metrics import Metrics

LOOK_AHEAD = 256
MAX_RETRY_SECONDS = 30
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Tokens of an item that a forward pass runs once for all its items of the same key."""

    key: Hashable
    tokens: int


@dataclass(frozen=True, slots=True)
class Size:
    """The tokens of an item, and those among them that it may share with others."""

    tokens: int
    shared: Sequence[SharedPrefix] = ()


def pass_tokens(sizes: Iterable[Size]) -> int:
    """Return the tokens of a forward pass: each shared prefix counts once."""
    tokens, present = 0, set[Hashable]()
    for size in sizes:
        tokens += size.tokens - _already_run(size, present)
        present.update(prefix.key for prefix in size.shared)
    return tokens


def _already_run(size: Size, present: set[Hashable]) -> int:
    return sum(prefix.tokens for prefix in size.shared if prefix.key in present)


def token_share(waiting: int, *, idle: int, replicas: int, budget: int, short_pass: int) -> int:
    """Return how many of the waiting tokens a free replica takes.

    With other idle replicas the waiting tokens are divided equally among them and this one. With all others busy they are divided
    among all replicas, but this one takes at least a short pass.

    Args:
        waiting: tokens in the queue.
        idle: other replicas that are idle.
        replicas: all replicas.
        budget: tokens of one forward pass; the share is never larger.
        short_pass: tokens up to which a pass takes little longer than for a single text, so that dividing them gains nothing.
    """
    share = math.ceil(waiting / (1 + idle)) if idle else max(short_pass, math.ceil(waiting / replicas))
    return min(budget, share)


def choose_batch(sizes: Sequence[Size], budget: int, *, padded: bool, short_pass: int = 0) -> list[int]:
    """Return the indices of the texts to run in one forward pass; the first text is always among them.

    Packed texts cost the sum of their sizes, shared prefixes once, and are taken in order while they fit. A text that shares a prefix with
    one that is taken already goes beyond the budget up to a short pass, and up to twice the prefix: elsewhere that would be run again.
    Padded texts each cost the size of the longest, so those closest in size to the first are taken first.

    Args:
        sizes: of each waiting text, in queue order.
        budget: tokens of the forward pass, padding included; a first text that exceeds it runs alone, or with those that share its prefix.
        padded: whether the texts of a batch are padded to the longest.
        short_pass: tokens up to which a pass takes little longer than for a single text.
    """
    if not sizes:
        return []
    if padded:
        return _choose_padded([size.tokens for size in sizes], budget)
    chosen, total, present = [0], sizes[0].tokens, {prefix.key for prefix in sizes[0].shared}
    for index, size in enumerate(sizes[1:], start=1):
        shared = _already_run(size, present)
        if total + size.tokens - shared <= (max(budget, short_pass, 2 * shared) if shared else budget):
            chosen.append(index)
            total += size.tokens - shared
            present.update(prefix.key for prefix in size.shared)
    return chosen


def _choose_padded(sizes: Sequence[int], budget: int) -> list[int]:
    chosen, longest = [0], sizes[0]
    for index in sorted(range(1, len(sizes)), key=lambda index: abs(sizes[index] - sizes[0])):
        if max(longest, sizes[index]) * (len(chosen) + 1) <= budget:
            chosen.append(index)
            longest = max(longest, sizes[index])
    return sorted(chosen)


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass that ran items of a request.

    Attributes:
        items: items in it, those of other requests included.
        fill: their tokens divided by the token budget.
        indices: of the request's own items in it.
    """

    items: int
    fill: float
    indices: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class EngineResult:
    """The scores of one request, and how long they took.

    Attributes:
        scores: for each item float32, shape (labels,), in the order of the items.
        queue_seconds: from the arrival of the request until its first item entered the model.
        model_seconds: from then until its last item left the model.
        passes: every forward pass that ran an item of this request, with the items of other requests counted.
    """

    scores: list[Float32]
    queue_seconds: float
    model_seconds: float
    passes: Sequence[Pass] = ()


@dataclass(slots=True, eq=False)
class _Job(Generic[Item]):
    """One request in the engine: `waiting` holds the indices of its items that no replica has taken yet."""

    items: Sequence[Item]
    sizes: Sequence[Size]
    result: asyncio.Future[EngineResult] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    arrived_at: float = field(default_factory=monotonic)
    started_at: float = 0.0
    waiting: dict[int, None] = field(default_factory=dict)
    scores: dict[int, Float32] = field(default_factory=dict)
    passes: list[Pass] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.waiting = dict.fromkeys(range(len(self.items)))


class Engine(Generic[Item]):
    """Run items of concurrent requests through the model in shared batches.

    A batch takes one item of each request in turn while the token budget lasts, so a large request does not delay small ones. Items that
    share a prefix stay together, because a forward pass runs what they share once. The
    waiting tokens are divided among the replicas of the model (see `token_share`), so none stays idle while another runs a long batch.

    Args:
        replicas: one blocking function per replica of the model, from items to their scores in the same order; each is called from one
            thread at a time.
        tokens: return the tokens of an item.
        token_budget: tokens of one forward pass; a single larger item runs alone.
        short_pass: tokens that a replica takes without dividing them with busy ones.
        gather_seconds: how long the oldest waiting request waits for others to share its batch, from its arrival.
        max_queue: items that may wait.
        padded: whether the items of a batch are padded to the longest.
        metrics: records every forward pass.
    """

    def __init__(
        self,
        replicas: Sequence[Callable[[Sequence[Item]], list[Float32]]],
        *,
        tokens: Callable[[Item], int],
        token_budget: int,
        short_pass: int = 0,
        gather_seconds: float,
        max_queue: int,
        padded: bool = False,
        metrics: Metrics,
    ) -> None:
        self._replicas, self._tokens, self._metrics = replicas, tokens, metrics
        self._budget, self._short_pass, self._padded = token_budget, short_pass, padded
        self._gather_seconds, self._max_queue = gather_seconds, max_queue
        self._jobs: dict[_Job[Item], None] = {}
        self._tokens_per_second = 0.0
        self._arrival = asyncio.Event()
        self._idle: asyncio.Queue[int] = asyncio.Queue()
        self._threads = ThreadPoolExecutor(len(replicas), thread_name_prefix="model")
        self._dispatcher: asyncio.Task[None] | None = None

    @property
    def depth(self) -> int:
        """The number of items that wait. Safe to read from any thread, such as the one that renders /metrics."""
        return sum(len(job.waiting) for job in tuple(self._jobs))

    @property
    def alive(self) -> bool:
        """Whether the engine was started and takes items."""
        return self._dispatcher is not None and not self._dispatcher.done()

    def start(self) -> None:
        """Start taking batches from the queue."""
        for replica in range(len(self._replicas)):
            self._idle.put_nowait(replica)
        self._dispatcher = asyncio.create_task(self._dispatch(), name="engine")

    async def stop(self) -> None:
        """Stop: refuse every unfinished request, and wait for the forward passes that are running."""
        if self._dispatcher is not None:
            self._dispatcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._dispatcher
        for job in self._jobs:
            if not job.result.done():
                job.result.set_exception(Unavailable("the service is shutting down; try again"))
        await asyncio.to_thread(self._threads.shutdown)

    async def run(
        self, items: Sequence[Item], *, shared: Sequence[Sequence[SharedPrefix]] | None = None, deadline: float | None = None
    ) -> EngineResult:
        """Return the scores of `items`. When the caller is cancelled or the deadline passes, the items leave the queue at once.

        Args:
            shared: the prefixes that each item shares with others; by default none does.
            deadline: on the event loop's clock.

        Raises:
            QueueFull: too many items wait already; `retry_after` estimates when they will be done.
            DeadlineExceeded: `deadline` passed first.
        """
        if not items:
            return EngineResult([], 0.0, 0.0)
        prefixes = shared or [()] * len(items)
        job = _Job(items, [Size(self._tokens(item), of_item) for item, of_item in zip(items, prefixes, strict=True)])
        if self._jobs and (depth := self.depth) + len(items) > self._max_queue:
            raise QueueFull(
                f"the queue holds {depth} texts and takes at most {self._max_queue}; this request has {len(items)} more, try again later",
                retry_after=self._retry_after(),
            )
        self._jobs[job] = None
        self._arrival.set()
        try:
            async with asyncio.timeout_at(deadline):
                return await job.result
        except TimeoutError as reason:
            raise DeadlineExceeded("the deadline passed before the model had run all texts of this request") from reason
        finally:
            self._jobs.pop(job, None)

    def _retry_after(self) -> int:
        """Estimate the seconds until all waiting tokens are processed: from 1 to `MAX_RETRY_SECONDS`, 1 while no speed is known."""
        speed = len(self._replicas) * self._tokens_per_second
        return max(1, min(MAX_RETRY_SECONDS, math.ceil(self._waiting_tokens() / speed))) if speed else 1

    def _waiting_tokens(self) -> int:
        return pass_tokens(job.sizes[index] for job in self._jobs for index in job.waiting)

    async def _dispatch(self) -> None:
        async with asyncio.TaskGroup() as batches:
            while True:
                await self._arrival.wait()
                replica = await self._idle.get()
                await self._gather()
                if batch := self._next_batch():
                    batches.create_task(self._run_batch(replica, batch))
                else:
                    self._idle.put_nowait(replica)
                if not any(job.waiting for job in self._jobs):
                    self._arrival.clear()

    async def _gather(self) -> None:
        """Wait until the oldest waiting request is `gather_seconds` old, so that others can join its batch.

        Return at once if no request waits, a full batch already waits, or that time has passed. A batch that fills up during the wait
        does not end it.
        """
        oldest = next((job for job in self._jobs if job.waiting), None)
        if oldest is None:
            return
        remaining = oldest.arrived_at + self._gather_seconds - monotonic()
        if remaining > 0 and self._waiting_tokens() < self._budget:
            await asyncio.sleep(remaining)

    def _next_batch(self) -> list[tuple[_Job[Item], int]]:
        """Take the next batch from the queue: one replica's share of the waiting items."""
        candidates = list(islice(self._round_robin(), LOOK_AHEAD))
        sizes = [job.sizes[index] for job, index in candidates]
        budget = token_share(
            pass_tokens(sizes),
            idle=self._idle.qsize(),
            replicas=len(self._replicas),
            budget=self._budget,
            short_pass=self._short_pass,
        )
        batch = [candidates[place] for place in choose_batch(sizes, budget, padded=self._padded, short_pass=self._short_pass)]
        for job, index in batch:
            del job.waiting[index]
        return batch

    def _round_robin(self) -> Iterator[tuple[_Job[Item], int]]:
        """Yield the first waiting item of each request, oldest request first, then the second of each, and so on."""
        queues = deque((job, iter(tuple(job.waiting))) for job in self._jobs if job.waiting)
        while queues:
            job, indices = queues.popleft()
            if (index := next(indices, None)) is not None:
                yield job, index
                queues.append((job, indices))

    async def _run_batch(self, replica: int, batch: Sequence[tuple[_Job[Item], int]]) -> None:
        started_at = monotonic()
        for job, _ in batch:
            job.started_at = job.started_at or started_at
        items = [job.items[index] for job, index in batch]
        try:
            scores = await asyncio.get_running_loop().run_in_executor(self._threads, self._replicas[replica], items)
            self._deliver(batch, scores, started_at, monotonic())
        except Exception as reason:  # noqa: BLE001  # raised to the callers of this batch; the replica takes the next one
            for job, _ in batch:
                self._jobs.pop(job, None)
                if not job.result.done():
                    job.result.set_exception(reason)
            return
        finally:
            self._idle.put_nowait(replica)

    def _deliver(
        self, batch: Sequence[tuple[_Job[Item], int]], scores: Sequence[Float32], started_at: float, ended_at: float
    ) -> None:
        """Add the scores of a batch to their requests, and complete the requests that have all of theirs."""
        forward_pass = self._record(batch, ended_at - started_at)
        indices: dict[_Job[Item], list[int]] = {}
        for job, index in batch:
            indices.setdefault(job, []).append(index)
        for job, own in indices.items():
            job.passes.append(replace(forward_pass, indices=own))
        for (job, index), item_scores in zip(batch, scores, strict=True):
            job.scores[index] = item_scores
            if len(job.scores) == len(job.items) and not job.result.done():
                ordered = [job.scores[position] for position in range(len(job.items))]
                job.result.set_result(EngineResult(ordered, job.started_at - job.arrived_at, ended_at - job.started_at, job.passes))

    def _record(self, batch: Sequence[tuple[_Job[Item], int]], seconds: float) -> Pass:
        tokens = pass_tokens(job.sizes[index] for job, index in batch)
        speed = tokens / max(seconds, 1e-6)
        self._tokens_per_second = 0.9 * self._tokens_per_second + 0.1 * speed if self._tokens_per_second else speed
        self._metrics.record_pass(items=len(batch), tokens=tokens, budget=self._budget, seconds=seconds)
        return Pass(len(batch), tokens / self._budget)
