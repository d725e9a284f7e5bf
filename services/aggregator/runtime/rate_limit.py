"""How many requests a caller may make in a minute, counted in Redis for all replicas together, or in this process."""

from __future__ import annotations

import math
import time

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter
from redis.asyncio import ConnectionPool

from ifed.errors import Overloaded
from services.aggregator.runtime.breaker import CircuitBreaker, CircuitOpen

TIMEOUT_SECONDS = 0.5
BREAKER_SECONDS = 5.0


class RateLimiter:
    """Refuses the requests of a caller beyond a number in a minute.

    While Redis does not answer each replica counts for itself: a caller may then make more requests, and never fewer.

    Args:
        per_minute: the number of requests; None for no limit.
        redis_url: where to count; None counts in this process.
        prefix: of the keys in Redis.
    """

    def __init__(self, per_minute: int | None, redis_url: str | None, prefix: str) -> None:
        self._item = None if per_minute is None else RateLimitItemPerMinute(per_minute, namespace=f"{prefix}:rates")
        self._local = FixedWindowRateLimiter(MemoryStorage())
        self._shared = None if redis_url is None else FixedWindowRateLimiter(_redis_storage(redis_url))
        # The client of Redis raises errors of many kinds, and none of them is a reason to refuse a request.
        self._breaker = CircuitBreaker(
            seconds=BREAKER_SECONDS, errors=(Exception,), consequence="each replica counts requests for itself"
        )

    async def check(self, caller: str, *, role: str) -> None:
        """Count a request of the caller with this role; a client that is called `admin` does not count as the admin.

        Raises:
            Overloaded: it is one too many; `retry_after` says when the minute is over.
        """
        if self._item is None:
            return
        key = f"{role} {caller}"
        limiter, admitted = await self._hit(self._item, key)
        if not admitted:
            window = await limiter.get_window_stats(self._item, key)
            seconds = max(1, math.ceil(window.reset_time - time.time()))
            raise Overloaded(f"{caller} has made the {self._item.amount} calls of this minute", retry_after=seconds)

    async def _hit(self, item: RateLimitItemPerMinute, key: str) -> tuple[FixedWindowRateLimiter, bool]:
        """Return the limiter that counted the request, and whether it is within the limit."""
        shared = self._shared
        if shared is not None:
            try:
                return shared, await self._breaker.call("count", lambda: shared.hit(item, key))
            except CircuitOpen:
                pass
        return self._local, await self._local.hit(item, key)


def _redis_storage(url: str) -> RedisStorage:
    # The library's own reader of URLs takes fewer of them than that of the cache: no socket, and no host without its port.
    pool = ConnectionPool.from_url(url, socket_timeout=TIMEOUT_SECONDS)
    return RedisStorage("async+redis://", implementation="redispy", connection_pool=pool)  # type: ignore[arg-type]
