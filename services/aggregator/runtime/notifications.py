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

    def ring(self) -> None:
        self._rung.set()

    async def heard(self, seconds: float) -> bool:
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
    def listen(self, topic: str) -> Iterator[Subscription]:
        """Take a bell before looking at the truth, so that no ring in between is lost."""
        bell = Subscription()
        self._held[topic].add(bell)
        try:
            yield bell
        finally:
            self._held[topic].discard(bell)
            if not self._held[topic]:
                del self._held[topic]

    def ring(self, topic: str) -> None:
        for bell in self._held.get(topic, ()):
            bell.ring()

    def ring_all(self) -> None:
        """Wake everyone: something may have been missed."""
        for topic in self._held:
            self.ring(topic)
