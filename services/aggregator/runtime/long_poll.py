"""Long polling: requests that wait until there is something to answer, a limited number of them."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import Gauge

from services.aggregator.runtime.cache import Cache
from services.aggregator.runtime.notifications import Subscription

Value = TypeVar("Value")


async def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Caller:
    """Who waits.

    Attributes:
        party: by whom held requests are counted.
        has_hung_up: returns whether the caller has closed its connection, so that nobody waits for the answer.
    """

    party: str
    has_hung_up: Callable[[], Awaitable[bool]] = _never


NOBODY = Caller("nobody")


class HeldRequest:
    """A request that may be held.

    Attributes:
        caller: who waits.
        released: whether it must be answered now, because too many requests are held.
    """

    def __init__(self, caller: Caller) -> None:
        self.caller, self.released = caller, False
        self._subscription: Subscription | None = None

    def release(self) -> None:
        """Let it be answered now."""
        self.released = True
        if self._subscription is not None:
            self._subscription.publish()

    async def wait(self, subscription: Subscription, seconds: float) -> None:
        """Wait for a notification or for the release."""
        self._subscription = subscription
        if not self.released:
            await subscription.wait(seconds)


class LongPoll:
    """Lets requests wait for a change. They hold no database connection meanwhile, and read a few at a time.

    Args:
        cache: notifies waiting requests.
        waiting: shows the number of waiting requests by topic.
        recheck: seconds after which a request reads the database again without a notification.
        longest: the most seconds a request waits.
        most: held requests; one more, and the oldest is answered.
        most_of_party: held requests of one party; likewise.
        readers: waiting requests that read the database at the same time, so that some of its connections are left to others.

    Attributes:
        closing: whether requests are no longer kept waiting.
    """

    def __init__(
        self,
        cache: Cache,
        waiting: Gauge,
        *,
        recheck: float,
        longest: float,
        most: int = 2000,
        most_of_party: int = 300,
        readers: int = 10,
    ) -> None:
        self._cache, self._waiting, self._recheck, self.longest = cache, waiting, recheck, longest
        self._most, self._most_of_party, self._readers = most, most_of_party, asyncio.Semaphore(readers)
        self._held: OrderedDict[HeldRequest, None] = OrderedDict()
        self._by_party: dict[str, OrderedDict[HeldRequest, None]] = {}
        self.closing = False
        self._topics: dict[str, int] = {}

    async def until(
        self,
        topic: str,
        read: Callable[[], Awaitable[Value]],
        is_settled: Callable[[Value], bool],
        *,
        wait: float,
        caller: Caller = NOBODY,
    ) -> Value:
        """Read until the value is settled, `wait` seconds have passed or the caller has hung up, and return the last value.

        While too many requests are held, return the last value of the oldest one early.
        """
        with self.hold(caller) as held_request:
            return await self.until_released(topic, read, is_settled, wait=wait, held_request=held_request)

    async def until_released(
        self,
        topic: str,
        read: Callable[[], Awaitable[Value]],
        is_settled: Callable[[Value], bool],
        *,
        wait: float,
        held_request: HeldRequest,
    ) -> Value:
        """Do as `until` for a request that is held already, such as a stream, which waits many times."""
        end = time.monotonic() + min(wait, self.longest)
        self._count(topic, 1)
        try:
            with self._cache.subscribe(topic) as subscription:
                while True:
                    async with self._readers:
                        value = await read()
                    remaining = end - time.monotonic()
                    if (
                        is_settled(value)
                        or remaining <= 0
                        or self.closing
                        or held_request.released
                        or await held_request.caller.has_hung_up()
                    ):
                        return value
                    await held_request.wait(subscription, min(remaining, self._recheck))
        finally:
            self._count(topic, -1)

    @contextmanager
    def hold(self, caller: Caller) -> Iterator[HeldRequest]:
        """Count a request as held within the block; release the oldest one if that is one too many."""
        held_request = HeldRequest(caller)
        of_party = self._by_party.setdefault(caller.party, OrderedDict())
        self._held[held_request] = of_party[held_request] = None
        if len(of_party) > self._most_of_party:
            self._release(next(iter(of_party)))
        elif len(self._held) > self._most:
            self._release(next(iter(self._held)))
        try:
            yield held_request
        finally:
            self._forget(held_request)

    def _release(self, held_request: HeldRequest) -> None:
        self._forget(held_request)
        held_request.release()

    def _forget(self, held_request: HeldRequest) -> None:
        self._held.pop(held_request, None)
        of_party = self._by_party.get(held_request.caller.party, OrderedDict())
        of_party.pop(held_request, None)
        if not of_party:
            self._by_party.pop(held_request.caller.party, None)

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
