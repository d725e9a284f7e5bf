"""What every use case works with: database, cache, metrics, long polls and a clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from services.aggregator.domain.round import Round
from services.aggregator.metrics import Metrics
from services.aggregator.runtime.cache import Cache
from services.aggregator.runtime.long_poll import LongPoll
from services.aggregator.storage.database import Database, utc_now

ALL_EVENTS = "*"  # the topic of every event of every task; no task can have this name


@dataclass(frozen=True, slots=True)
class Dependencies:
    """Built once by the application and passed to every use case.

    Attributes:
        wake_worker: runs the aggregation worker now instead of at its next tick.
    """

    database: Database
    cache: Cache
    metrics: Metrics
    long_poll: LongPoll
    wake_worker: Callable[[], None]
    clock: Callable[[], datetime] = utc_now

    async def publish(self, task: str, *changed: Round | None) -> None:
        """After a commit, count the rounds that changed state, and wake the worker and the long polls of the task."""
        for round_ in changed:
            if round_ is not None:
                self.metrics.rounds.labels(task, round_.kind.value, round_.state.value).inc()
        self.wake_worker()
        await self.cache.publish(task)
