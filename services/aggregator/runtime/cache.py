"""What the service asks of its storage and its cache, as protocols. Names no implementation."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Protocol
from uuid import uuid4

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.aggregator.metrics import Metrics
from services.aggregator.runtime.notifications import Subscription, Topics


class Cache(Protocol):
    """Bodies by content-addressed keys, and bells. Never the truth: a read may miss, a write may be lost."""

    async def get(self, key: str) -> bytes | None: ...

    async def put(self, key: str, body: bytes) -> None: ...

    def subscribe(self, topic: str) -> AbstractContextManager[Subscription]:
        """Take a bell before looking at the truth, so that no ring in between is lost."""

    async def publish(self, topic: str) -> None:
        """Ring every bell of the topic, on every replica."""

    async def state(self) -> str:
        """`ok`, or `degraded: …`."""


log = structlog.get_logger(__name__)
LIFETIME_SECONDS = 3600
RECONNECT_SECONDS = 1.0
PATIENCE_SECONDS = 0.5
BREAKER_SECONDS = 1.0  # after a failure Redis is not asked for so long, so that requests do not each wait for it in vain


class ProcessCache:
    """Bodies in this process, the longest unused let go first; bells for this process alone."""

    def __init__(self, *, max_bytes: int = 64 * 2**20) -> None:
        self._bodies: OrderedDict[str, bytes] = OrderedDict()
        self._max_bytes, self._bytes = max_bytes, 0
        self._topics = Topics()

    async def get(self, key: str) -> bytes | None:
        body = self._bodies.get(key)
        if body is not None:
            self._bodies.move_to_end(key)
        return body

    async def put(self, key: str, body: bytes) -> None:
        self._bytes += len(body) - len(self._bodies.pop(key, b""))
        self._bodies[key] = body
        while self._bytes > self._max_bytes:
            _, dropped = self._bodies.popitem(last=False)
            self._bytes -= len(dropped)

    def subscribe(self, topic: str) -> AbstractContextManager[Subscription]:
        return self._topics.subscribe(topic)

    async def publish(self, topic: str) -> None:
        self._topics.publish(topic)

    async def state(self) -> str:
        return "ok"

    async def open(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        self._bodies.clear()


class RedisCache:
    """Bodies in Redis, bells through its publish and subscribe: one listener a process rings the bells of its waiters.

    A ring of this process never takes the way through Redis. When the listener had to reconnect, every bell rings once, since what
    was announced meanwhile is lost.
    """

    def __init__(self, url: str, metrics: Metrics, *, prefix: str = "ifed") -> None:
        self._redis = Redis.from_url(
            url, socket_timeout=PATIENCE_SECONDS, socket_connect_timeout=PATIENCE_SECONDS, retry=Retry(NoBackoff(), 1)
        )
        self._metrics, self._prefix, self._channel = metrics, prefix, f"{prefix}:bells"
        self._topics, self._process = Topics(), uuid4().hex
        self._listener: asyncio.Task[None] | None = None
        self._trouble: str | None = None
        self._closing, self._resting_until = False, 0.0

    async def get(self, key: str) -> bytes | None:
        body = await self._ask("read", lambda: self._redis.get(f"{self._prefix}:{key}"))
        return body if isinstance(body, bytes) else None

    async def put(self, key: str, body: bytes) -> None:
        await self._ask("write", lambda: self._redis.set(f"{self._prefix}:{key}", body, ex=LIFETIME_SECONDS))

    def subscribe(self, topic: str) -> AbstractContextManager[Subscription]:
        return self._topics.subscribe(topic)

    async def publish(self, topic: str) -> None:
        self._topics.publish(topic)
        await self._ask("publish", lambda: self._redis.publish(self._channel, f"{self._process} {topic}"))

    async def state(self) -> str:
        try:
            await self._redis.ping()
        except (RedisError, OSError) as reason:
            return f"degraded: redis cannot be reached ({type(reason).__name__}); waits look at the database instead"
        return "ok"

    async def open(self) -> None:
        self._listener = asyncio.create_task(self._listen_forever())

    async def close(self) -> None:
        self._closing = True
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait([self._listener])
        await self._redis.aclose()

    async def _listen_forever(self) -> None:
        while not self._closing:
            try:
                await self._listen_once()
            except (RedisError, OSError) as reason:
                self._failed("listen", reason)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _listen_once(self) -> None:
        async with self._redis.pubsub(ignore_subscribe_messages=False) as channel:
            await channel.subscribe(self._channel)
            while not self._closing:
                message = await channel.get_message(timeout=PATIENCE_SECONDS)
                if message is not None and message["type"] == "subscribe":
                    self._topics.publish_all()
                elif message is not None:
                    sender, _, topic = message["data"].decode().partition(" ")
                    if sender != self._process:
                        self._topics.publish(topic)

    async def _ask(self, doing: str, call: Callable[[], Awaitable[object]]) -> object:
        """What Redis answers; None when it does not, or did not a moment ago."""
        if time.monotonic() < self._resting_until:
            return None
        try:
            answer = await call()
        except (RedisError, OSError) as reason:
            self._resting_until = time.monotonic() + BREAKER_SECONDS
            self._failed(doing, reason)
            return None
        if self._trouble is not None:
            log.info("redis answers again")
            self._trouble = None
        return answer

    def _failed(self, doing: str, reason: Exception) -> None:
        self._metrics.cache_failures.labels(doing).inc()
        if self._trouble is None:
            log.warning("redis failed, going on without it", doing=doing, reason=type(reason).__name__)
        self._trouble = doing
