"""Background work that runs periodically, and at once when it is woken."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from ifed.errors import Unavailable
from services.aggregator.runtime.notifications import Subscription

log = structlog.get_logger(__name__)


class PeriodicTask:
    """Runs work every `seconds`, and at once after `wake`."""

    def __init__(self, *, seconds: float) -> None:
        self._seconds, self._subscription = seconds, Subscription()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    def wake(self) -> None:
        """Run the work now, or once more after the present run."""
        self._subscription.publish()

    def start(self, work: Callable[[], Awaitable[None]]) -> None:
        """Start running `work`, until `stop`."""
        self._task = asyncio.create_task(self._run(work))

    async def stop(self) -> None:
        """Cancel the work. What it did not commit is done after the next start, or by another replica."""
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
            except Exception:  # noqa: BLE001  # the loop must survive any error of one run
                await log.aexception("background work failed and is tried again")
                await asyncio.sleep(self._seconds)
            await self._subscription.wait(self._seconds)
