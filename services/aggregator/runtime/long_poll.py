"""Requests that are held until there is something to answer (long polling)."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from prometheus_client import Gauge

from services.aggregator.runtime.cache import Cache

Seen = TypeVar("Seen")


class LongPoll:
    """Holds requests until there is something to tell. No database connection is held meanwhile.

    Args:
        cache: whose bells wake a held request.
        held: shows how many are held, by topic.
        recheck: seconds after which the truth is looked at though no bell rang.
        longest: seconds a request is held at the most, whatever it asks for.
    """

    def __init__(self, cache: Cache, held: Gauge, *, recheck: float, longest: float) -> None:
        self._cache, self._held, self._recheck, self.longest = cache, held, recheck, longest
        self.closing = False
        self._topics: dict[str, int] = {}

    async def until(self, topic: str, look: Callable[[], Awaitable[Seen]], settled: Callable[[Seen], bool], *, wait: float) -> Seen:
        """Look until `settled` or `wait` seconds are over, and return what was seen last."""
        end = time.monotonic() + min(wait, self.longest)
        self._count(topic, 1)
        try:
            with self._cache.subscribe(topic) as subscription:
                while True:
                    seen = await look()
                    left = end - time.monotonic()
                    if settled(seen) or left <= 0 or self.closing:
                        return seen
                    await subscription.wait(min(left, self._recheck))
        finally:
            self._count(topic, -1)

    def _count(self, topic: str, change: int) -> None:
        self._topics[topic] = self._topics.get(topic, 0) + change
        self._held.labels(topic).set(self._topics[topic])
        if not self._topics[topic]:
            del self._topics[topic]
            self._held.remove(topic)  # names of tasks come and go; their series must not stay for ever

    async def close(self) -> None:
        """Answer every held request now: the process is about to stop."""
        self.closing = True
        for topic in list(self._topics):
            await self._cache.publish(topic)
