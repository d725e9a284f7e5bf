"""What every part of the service works with: store, cache, clock, metrics, and requests held until something is worth telling."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from prometheus_client import Gauge

from services.aggregator.domain import Round
from services.aggregator.metrics import Metrics
from services.aggregator.ports import Cache, Store

Seen = TypeVar("Seen")
EVERYTHING = "*"  # the topic of whatever happens to any task; no task can have this name


def utc_now() -> datetime:
    """The present time, with its zone."""
    return datetime.now(UTC)


class Polls:
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
            with self._cache.listen(topic) as bell:
                while True:
                    seen = await look()
                    left = end - time.monotonic()
                    if settled(seen) or left <= 0 or self.closing:
                        return seen
                    await bell.heard(min(left, self._recheck))
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
            await self._cache.announce(topic)


@dataclass(frozen=True, slots=True)
class Backstage:
    """Built once by the app and handed to every part of the service.

    Attributes:
        nudge: wakes the background work that closes rounds, now instead of at its next tick.
    """

    store: Store
    cache: Cache
    metrics: Metrics
    polls: Polls
    nudge: Callable[[], None]
    clock: Callable[[], datetime] = utc_now

    async def tell(self, task: str, *changed: Round | None) -> None:
        """After a commit: count the rounds that changed state, wake the background work and everyone who waits."""
        for round_ in changed:
            if round_ is not None:
                self.metrics.rounds.labels(task, round_.kind.value, round_.state.value).inc()
        self.nudge()
        await self.cache.announce(task)
