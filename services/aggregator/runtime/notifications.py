"""Bells within one process: whoever waits on a topic is woken when it rings. Knows no other process."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Subscription:
    """One waiter's bell."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def publish(self) -> None:
        self._rung.set()

    async def wait(self, seconds: float) -> bool:
        """Wait for a ring, no longer than `seconds`; a ring from before the call counts, and is then spent."""
        try:
            async with asyncio.timeout(seconds):  # wait_for of Python 3.11 may swallow a cancellation that meets a ring
                await self._rung.wait()
        except TimeoutError:
            return False
        self._rung.clear()
        return True


class Topics:
    """The bells of a process by topic."""

    def __init__(self) -> None:
        self._held: defaultdict[str, set[Subscription]] = defaultdict(set)

    @contextmanager
    def subscribe(self, topic: str) -> Iterator[Subscription]:
        """Take a bell before looking at the truth, so that no ring in between is lost."""
        subscription = Subscription()
        self._held[topic].add(subscription)
        try:
            yield subscription
        finally:
            self._held[topic].discard(subscription)
            if not self._held[topic]:
                del self._held[topic]

    def publish(self, topic: str) -> None:
        for subscription in self._held.get(topic, ()):
            subscription.publish()

    def publish_all(self) -> None:
        """Wake everyone: something may have been missed."""
        for topic in self._held:
            self.publish(topic)
