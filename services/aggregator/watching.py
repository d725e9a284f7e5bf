"""What happens, told to whoever follows it: from the database, woken by the cache. Knows no HTTP and no SQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from ifed.errors import Unavailable
from ifed.events import Event
from services.aggregator.backstage import EVERYTHING, Backstage
from services.aggregator.records import Happening

AT_ONCE = 200
PATIENCE_SECONDS = 1.0


class Watching:
    """Streams of events. A stream holds no connection to the database while nothing happens."""

    def __init__(self, backstage: Backstage) -> None:
        self._backstage = backstage

    async def newest(self) -> int:
        """The number after which everything is still to come."""
        async with self._backstage.store.reading() as work:
            return await work.events.newest()

    async def follow(self, after: int, task: str | None) -> AsyncIterator[Event]:
        """Every event after that number, of one task where it is named, until the process stops. Waits for a database that is away."""

        async def look() -> list[Happening]:
            async with self._backstage.store.reading() as work:
                return await work.events.page(after, AT_ONCE, task)

        polls = self._backstage.polls
        while True:
            try:
                found = await polls.until(EVERYTHING, look, bool, wait=polls.longest)
            except Unavailable:
                await asyncio.sleep(PATIENCE_SECONDS)
                found = []
            for one in found:
                yield event_info(one)
                assert one.number is not None, "it was read from the store"
                after = one.number
            if polls.closing and not found:
                return


def event_info(one: Happening) -> Event:
    """An event as those who follow see it."""
    assert one.number is not None, "it was read from the store"
    return Event(
        number=one.number,
        at=one.at,
        kind=one.kind,
        task=one.task,
        round=one.round,
        round_kind=one.round_kind,
        version=one.version,
        reason=one.reason,
    )
