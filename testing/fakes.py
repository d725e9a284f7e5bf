"""A clock that a test moves, and a cache that a test switches off."""

from __future__ import annotations

from datetime import datetime, timedelta

from services.aggregator.runtime.cache import ProcessCache
from testing.factories import NOON


class SwitchableCache(ProcessCache):
    """A cache that a test can switch off: then every read misses, and writes and notifications are lost.

    Attributes:
        published: the topics that were published, also while it was off.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down = False
        self.published: list[str] = []

    async def get(self, key: str) -> bytes | None:
        return None if self.down else await super().get(key)

    async def put(self, key: str, body: bytes) -> None:
        if not self.down:
            await super().put(key, body)

    async def publish(self, topic: str) -> None:
        self.published.append(topic)
        if not self.down:
            await super().publish(topic)

    async def state(self) -> str:
        return "degraded: switched off by a test" if self.down else await super().state()


class FakeClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
