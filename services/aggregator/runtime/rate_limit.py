"""How often one party may call. Counts in Redis for all replicas together, in the process otherwise; knows no HTTP."""

from __future__ import annotations

import math
import time

import structlog
from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter

from ifed.errors import Overloaded

log = structlog.get_logger(__name__)
BREAKER_SECONDS = 5.0  # after a failure Redis is not asked for so long


class RateLimiter:
    """Refuses the calls of a party beyond so many in a minute.

    Without an answer from Redis each replica counts for itself: a party may then call more often, and never less.
    """

    def __init__(self, per_minute: int | None, redis_url: str | None, prefix: str) -> None:
        self._item = None if per_minute is None else RateLimitItemPerMinute(per_minute, namespace=f"{prefix}:rates")
        self._here = FixedWindowRateLimiter(MemoryStorage())
        shared = None if redis_url is None else RedisStorage(f"async+{redis_url}", implementation="redispy", socket_timeout=0.5)
        self._shared = None if shared is None else FixedWindowRateLimiter(shared)
        self._resting_until = 0.0

    async def check(self, party: str) -> None:
        """Count a call.

        Raises:
            Overloaded: one too many; Retry-After says when the minute is over.
        """
        if self._item is None:
            return
        limiter = self._here if self._shared is None or time.monotonic() < self._resting_until else self._shared
        try:
            admitted = await limiter.hit(self._item, party)
        except Exception as reason:  # noqa: BLE001  # whatever Redis' client raises: a limit is no reason to refuse
            self._resting_until = time.monotonic() + BREAKER_SECONDS
            await log.awarning("redis failed, each replica counts calls for itself", reason=type(reason).__name__)
            limiter, admitted = self._here, await self._here.hit(self._item, party)
        if not admitted:
            window = await limiter.get_window_stats(self._item, party)
            seconds = max(1, math.ceil(window.reset_time - time.time()))
            raise Overloaded(f"{party} has made the {self._item.amount} calls of this minute", retry_after=seconds)
