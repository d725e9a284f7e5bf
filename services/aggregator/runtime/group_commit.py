"""Group commit: items that arrive together for one topic are processed together."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

Topic = TypeVar("Topic", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")


class GroupCommit(Generic[Topic, Item, Result]):
    """Passes the items that have arrived for a topic to `process`, one batch of a topic at a time.

    An item that arrives alone is processed at once and alone. Those that arrive meanwhile form the next batch: many contributions to
    one round then share one lock and one commit, instead of waiting for each other's.

    Args:
        process: returns a result or an exception for each item, in order. When it raises on several items, each is tried once more
            alone, so that one cannot spoil the others.
        most: the most items in a batch.
    """

    def __init__(self, process: Callable[[Topic, Sequence[Item]], Awaitable[Sequence[Result | Exception]]], *, most: int) -> None:
        self._process, self._most = process, most
        self._queues: defaultdict[Topic, deque[tuple[Item, asyncio.Future[Result]]]] = defaultdict(deque)
        self._workers: dict[Topic, asyncio.Task[None]] = {}

    async def put(self, topic: Topic, item: Item) -> Result:
        """Return the result for the item, or raise its exception."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queues[topic].append((item, future))
        if topic not in self._workers:
            self._workers[topic] = asyncio.create_task(self._run(topic))
        return await future

    async def _run(self, topic: Topic) -> None:
        queue = self._queues[topic]
        while queue:
            batch = [queue.popleft() for _ in range(min(len(queue), self._most))]
            await self._process_batch(topic, batch)
        del self._queues[topic], self._workers[topic]

    async def _process_batch(self, topic: Topic, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        results: Sequence[Result | Exception]
        try:
            results = await self._process(topic, [item for item, _ in batch])
        except Exception as reason:  # noqa: BLE001  # whatever it is, the callers of `put` get it
            if len(batch) > 1:
                for item in batch:
                    await self._process_batch(topic, [item])
                return
            results = [reason]
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue  # its caller was cancelled; the item was processed all the same
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
