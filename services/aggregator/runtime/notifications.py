"""Notifications within one process: waiting for a topic until something is published under it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Subscription:
    """One subscriber to a topic."""

    def __init__(self) -> None:
        self._published = asyncio.Event()

    def publish(self) -> None:
        """Wake the subscriber, now or at its next `wait`."""
        self._published.set()

    async def wait(self, seconds: float) -> bool:
        """Wait for a notification, no longer than `seconds`; return whether there was one.

        One that came before the call counts, and each counts once.
        """
        try:
            async with asyncio.timeout(seconds):  # wait_for of Python 3.11 may swallow a cancellation that meets the event
                await self._published.wait()
        except TimeoutError:
            return False
        self._published.clear()
        return True


class Topics:
    """The subscribers of a process by topic."""

    def __init__(self) -> None:
        self._subscriptions: defaultdict[str, set[Subscription]] = defaultdict(set)

    @contextmanager
    def subscribe(self, topic: str) -> Iterator[Subscription]:
        """Subscribe to a topic within the block."""
        subscription = Subscription()
        self._subscriptions[topic].add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions[topic].discard(subscription)
            if not self._subscriptions[topic]:
                del self._subscriptions[topic]

    def publish(self, topic: str) -> None:
        """Wake the subscribers of a topic."""
        for subscription in self._subscriptions.get(topic, ()):
            subscription.publish()

    def publish_all(self) -> None:
        """Wake all subscribers, because a notification may have been lost."""
        for topic in self._subscriptions:
            self.publish(topic)
