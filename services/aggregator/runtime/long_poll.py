"""Long polling: requests that wait until there is something to answer."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from prometheus_client import Gauge

from services.aggregator.runtime.cache import Cache

Value = TypeVar("Value")


class LongPoll:
    """Lets requests wait for a change. They hold no database connection meanwhile.

    Args:
        cache: notifies waiting requests.
        waiting: shows the number of waiting requests by topic.
        recheck: seconds after which a request reads the database again without a notification.
        longest: the most seconds a request waits.

    Attributes:
        closing: whether requests are no longer kept waiting.
    """

    def __init__(self, cache: Cache, waiting: Gauge, *, recheck: float, longest: float) -> None:
        self._cache, self._waiting, self._recheck, self.longest = cache, waiting, recheck, longest
        self.closing = False
        self._topics: dict[str, int] = {}

    async def until(
        self, topic: str, read: Callable[[], Awaitable[Value]], is_settled: Callable[[Value], bool], *, wait: float
    ) -> Value:
        """Read until the value is settled or `wait` seconds have passed, and return the last value."""
        end = time.monotonic() + min(wait, self.longest)
        self._count(topic, 1)
        try:
            with self._cache.subscribe(topic) as subscription:
                while True:
                    value = await read()
                    remaining = end - time.monotonic()
                    if is_settled(value) or remaining <= 0 or self.closing:
                        return value
                    await subscription.wait(min(remaining, self._recheck))
        finally:
            self._count(topic, -1)

    def _count(self, topic: str, change: int) -> None:
        self._topics[topic] = self._topics.get(topic, 0) + change
        self._waiting.labels(topic).set(self._topics[topic])
        if not self._topics[topic]:
            del self._topics[topic]
            self._waiting.remove(topic)  # tasks come and go, and their series must not stay for ever

    async def close(self) -> None:
        """Answer all waiting requests now, because the process is about to stop."""
        self.closing = True
        for topic in list(self._topics):
            await self._cache.publish(topic)
