"""Runs background work again and again, at once when nudged. Knows nothing of what it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from ifed.errors import Unavailable
from services.aggregator.runtime.notifications import Subscription

log = structlog.get_logger(__name__)


class PeriodicTask:
    """Work at every tick of `seconds`, and at once after `nudge`."""

    def __init__(self, *, seconds: float) -> None:
        self._seconds, self._subscription = seconds, Subscription()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    def wake(self) -> None:
        self._subscription.publish()

    def start(self, work: Callable[[], Awaitable[None]]) -> None:
        """Begin; ends with `stop`."""
        self._task = asyncio.create_task(self._run(work))

    async def stop(self) -> None:
        """End. Work that is cut off was not committed; it is done at the next start, or by another replica."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self, work: Callable[[], Awaitable[None]]) -> None:
        while not self._stopping:
            try:
                await work()
            except Unavailable:
                await log.awarning("background work waits for the database")
                await asyncio.sleep(self._seconds)
            except Exception:  # noqa: BLE001  # the loop outlives what goes wrong in one turn
                await log.aexception("background work failed, trying again")
                await asyncio.sleep(self._seconds)
            await self._subscription.wait(self._seconds)
