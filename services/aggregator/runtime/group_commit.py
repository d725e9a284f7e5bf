"""Work of one kind that arrives together and is done together, a topic at a time. Knows nothing of what the work is."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

Topic = TypeVar("Topic", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")


class GroupCommit(Generic[Topic, Item, Result]):
    """Hands what arrived for one topic to `do`, all at once, while nothing else of that topic is being done.

    An item that arrives alone is done at once and alone. What arrives meanwhile waits and is done together: many contributions to
    one round then share one lock and one commit, instead of waiting for each other's. The answers of `do` are a result or a refusal for
    each item, in their order. When `do` itself fails on several items, each is tried once more alone, so that one cannot
    spoil it for the others.
    """

    def __init__(self, do: Callable[[Topic, Sequence[Item]], Awaitable[Sequence[Result | Exception]]], *, most: int) -> None:
        self._do, self._most = do, most
        self._waiting: defaultdict[Topic, deque[tuple[Item, asyncio.Future[Result]]]] = defaultdict(deque)
        self._running: dict[Topic, asyncio.Task[None]] = {}

    async def put(self, topic: Topic, item: Item) -> Result:
        """The item's result; raises its refusal."""
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting[topic].append((item, answer))
        if topic not in self._running:
            self._running[topic] = asyncio.create_task(self._run(topic))
        return await answer

    async def _run(self, topic: Topic) -> None:
        waiting = self._waiting[topic]
        while waiting:
            taken = [waiting.popleft() for _ in range(min(len(waiting), self._most))]
            await self._together(topic, taken)
        del self._waiting[topic], self._running[topic]

    async def _together(self, topic: Topic, taken: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        results: Sequence[Result | Exception]
        try:
            results = await self._do(topic, [item for item, _ in taken])
        except Exception as reason:  # noqa: BLE001  # whoever waits gets it, whatever it is
            if len(taken) > 1:
                for one in taken:
                    await self._together(topic, [one])
                return
            results = [reason]
        for (_, answer), result in zip(taken, results, strict=True):
            if answer.done():
                continue  # its caller has gone; what it sent is kept all the same
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)
