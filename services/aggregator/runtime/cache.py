"""The cache of aggregates, which also notifies long polls: in this process, or in Redis for all replicas."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Protocol
from uuid import uuid4

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.aggregator.metrics import Metrics
from services.aggregator.runtime.breaker import CircuitBreaker, CircuitOpen
from services.aggregator.runtime.notifications import Subscription, Topics

LIFETIME_SECONDS = 3600
RECONNECT_SECONDS = 1.0
TIMEOUT_SECONDS = 0.5
BREAKER_SECONDS = 1.0
REDIS_ERRORS = (RedisError, OSError)


class Cache(Protocol):
    """Bodies under content-addressed keys, and notifications by topic. Both may be lost: the database alone is authoritative."""

    async def get(self, key: str) -> bytes | None:
        """Return the body under `key`; None when it is not cached."""

    async def put(self, key: str, body: bytes) -> None:
        """Cache a body."""

    def subscribe(self, topic: str) -> AbstractContextManager[Subscription]:
        """Subscribe to a topic. Subscribe before reading the database, so that no notification in between is lost."""

    async def publish(self, topic: str) -> None:
        """Wake the subscribers of the topic on every replica."""

    async def state(self) -> str:
        """Return `ok`, or `degraded: …`."""


class ProcessCache:
    """A cache in this process that evicts the least recently used body first.

    Args:
        max_bytes: of all bodies together.
    """

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
            _, evicted = self._bodies.popitem(last=False)
            self._bytes -= len(evicted)

    def subscribe(self, topic: str) -> AbstractContextManager[Subscription]:
        return self._topics.subscribe(topic)

    async def publish(self, topic: str) -> None:
        self._topics.publish(topic)

    async def state(self) -> str:
        return "ok"

    async def open(self) -> None:
        """Do nothing: there is nothing to connect to."""

    async def close(self) -> None:
        """Drop all bodies."""
        self._bodies.clear()


class RedisCache:
    """A cache in Redis, with notifications over its publish and subscribe.

    One listener of each process wakes the subscribers there. Notifications within a process do not depend on Redis. When the listener
    has reconnected it wakes every subscriber once, because what was published meanwhile is lost.
    """

    def __init__(self, url: str, metrics: Metrics, *, prefix: str = "ifed") -> None:
        self._redis = Redis.from_url(
            url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS, retry=Retry(NoBackoff(), 1)
        )
        self._prefix, self._channel = prefix, f"{prefix}:bells"
        self._topics, self._process = Topics(), uuid4().hex
        self._listener: asyncio.Task[None] | None = None
        self._closing = False
        self._breaker = CircuitBreaker(
            seconds=BREAKER_SECONDS,
            errors=REDIS_ERRORS,
            consequence="aggregates are read from the database, and replicas poll it",
            on_failure=lambda call: metrics.cache_failures.labels(call).inc(),
        )

    async def get(self, key: str) -> bytes | None:
        body = await self._call("read", lambda: self._redis.get(f"{self._prefix}:{key}"))
        return body if isinstance(body, bytes) else None

    async def put(self, key: str, body: bytes) -> None:
        await self._call("write", lambda: self._redis.set(f"{self._prefix}:{key}", body, ex=LIFETIME_SECONDS))

    def subscribe(self, topic: str) -> AbstractContextManager[Subscription]:
        return self._topics.subscribe(topic)

    async def publish(self, topic: str) -> None:
        self._topics.publish(topic)
        await self._call("publish", lambda: self._redis.publish(self._channel, f"{self._process} {topic}"))

    async def _call(self, name: str, operation: Callable[[], Awaitable[object]]) -> object:
        """Return what Redis answers; None when it does not."""
        try:
            return await self._breaker.call(name, operation)
        except CircuitOpen:
            return None

    async def state(self) -> str:
        try:
            await self._redis.ping()
        except REDIS_ERRORS as reason:
            return f"degraded: redis cannot be reached ({type(reason).__name__}); waits look at the database instead"
        return "ok"

    async def open(self) -> None:
        """Start the listener."""
        self._listener = asyncio.create_task(self._listen_forever())

    async def close(self) -> None:
        """Stop the listener and disconnect."""
        self._closing = True
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait([self._listener])
        await self._redis.aclose()

    async def _listen_forever(self) -> None:
        while not self._closing:
            try:
                await self._listen()
            except REDIS_ERRORS as reason:
                self._breaker.failed("listen", reason)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _listen(self) -> None:
        async with self._redis.pubsub(ignore_subscribe_messages=False) as channel:
            await channel.subscribe(self._channel)
            while not self._closing:
                message = await channel.get_message(timeout=TIMEOUT_SECONDS)
                if message is not None and message["type"] == "subscribe":
                    self._topics.publish_all()
                elif message is not None:
                    sender, _, topic = message["data"].decode().partition(" ")
                    if sender != self._process:
                        self._topics.publish(topic)
