"""The cache of one process and the one in Redis keep the same contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry

from services.aggregator.metrics import Metrics
from services.aggregator.runtime.cache import Cache, ProcessCache, RedisCache

AT_ONCE, SOON = 0.01, 3.0


class CacheContract:
    """What every cache does; a subclass provides the fixture `cache`."""

    async def test_a_body_comes_back_byte_for_byte(self, cache: Cache) -> None:
        await cache.put("context:1", b"\x00\xff")
        assert await cache.get("context:1") == b"\x00\xff"

    async def test_a_key_that_was_never_put_is_a_miss(self, cache: Cache) -> None:
        assert await cache.get("context:2") is None

    async def test_a_notification_reaches_its_topic_alone(self, cache: Cache) -> None:
        with cache.subscribe("sentiment") as subscription, cache.subscribe("other") as other:
            await cache.publish("sentiment")
            assert await subscription.wait(AT_ONCE)
            assert not await other.wait(AT_ONCE)

    async def test_a_notification_before_the_wait_is_not_lost(self, cache: Cache) -> None:
        with cache.subscribe("sentiment") as subscription:
            await cache.publish("sentiment")
            await asyncio.sleep(AT_ONCE)
            assert await subscription.wait(AT_ONCE)

    async def test_a_notification_counts_once(self, cache: Cache) -> None:
        with cache.subscribe("sentiment") as subscription:
            await cache.publish("sentiment")
            assert await subscription.wait(AT_ONCE)
            assert not await subscription.wait(AT_ONCE)

    async def test_every_subscriber_is_woken(self, cache: Cache) -> None:
        with cache.subscribe("sentiment") as first, cache.subscribe("sentiment") as second:
            waiting = [asyncio.create_task(subscription.wait(SOON)) for subscription in (first, second)]
            await asyncio.sleep(0)
            await cache.publish("sentiment")
            assert await asyncio.gather(*waiting) == [True, True]

    async def test_its_state_is_ok(self, cache: Cache) -> None:
        assert await cache.state() == "ok"


class TestProcessCache(CacheContract):
    @pytest.fixture
    def cache(self) -> ProcessCache:
        return ProcessCache()

    async def test_the_least_recently_used_body_is_evicted_first(self) -> None:
        cache = ProcessCache(max_bytes=10)
        for key in ("a", "b"):
            await cache.put(key, b"12345")
        await cache.get("a")
        await cache.put("c", b"12345")
        assert [await cache.get(key) for key in ("a", "b", "c")] == [b"12345", None, b"12345"]

    async def test_a_body_larger_than_the_cache_is_not_cached(self) -> None:
        cache = ProcessCache(max_bytes=4)
        await cache.put("a", b"12345")
        assert await cache.get("a") is None


class TestRedisCache(CacheContract):
    @pytest.fixture
    async def cache(self, redis_url: str, redis_prefix: str) -> AsyncIterator[RedisCache]:
        async with opened(redis_url, redis_prefix) as cache:
            yield cache

    async def test_a_notification_reaches_another_replica(self, cache: RedisCache, redis_url: str, redis_prefix: str) -> None:
        async with opened(redis_url, redis_prefix) as other:
            with other.subscribe("sentiment") as subscription:
                await cache.publish("sentiment")
                assert await subscription.wait(SOON)

    async def test_another_replica_reads_what_one_cached(self, cache: RedisCache, redis_url: str, redis_prefix: str) -> None:
        await cache.put("adapter:1", b"body")
        async with opened(redis_url, redis_prefix) as other:
            assert await other.get("adapter:1") == b"body"


class opened:  # noqa: N801  # reads as a word: `async with opened(url, prefix)`
    """A Redis cache whose listener has subscribed."""

    def __init__(self, url: str, prefix: str) -> None:
        self._cache = RedisCache(url, Metrics(CollectorRegistry()), prefix=prefix)

    async def __aenter__(self) -> RedisCache:
        with self._cache.subscribe("opening") as subscription:
            await self._cache.open()
            assert await subscription.wait(SOON), "the listener wakes every subscriber once it has subscribed"
        return self._cache

    async def __aexit__(self, *_error: object) -> None:
        await self._cache.close()


class TestRedisGone:
    """An outage of Redis loses nothing."""

    @pytest.fixture
    async def cache(self) -> AsyncIterator[RedisCache]:
        cache = RedisCache("redis://127.0.0.1:1/0", Metrics(CollectorRegistry()))
        await cache.open()
        yield cache
        await cache.close()

    async def test_reads_miss_and_writes_are_lost_without_an_error(self, cache: RedisCache) -> None:
        await cache.put("context:1", b"body")
        assert await cache.get("context:1") is None

    async def test_notifications_of_this_process_still_arrive(self, cache: RedisCache) -> None:
        with cache.subscribe("sentiment") as subscription:
            await cache.publish("sentiment")
            assert await subscription.wait(AT_ONCE)

    async def test_its_state_is_degraded(self, cache: RedisCache) -> None:
        assert (await cache.state()).startswith("degraded: redis cannot be reached")
