"""Delete what has been kept long enough: old events, and what clients withdrew."""

from __future__ import annotations

from datetime import timedelta

import structlog

from services.aggregator.application.dependencies import Dependencies

log = structlog.get_logger(__name__)
DELETED_AT_ONCE = 1000


class Retention:
    """Background work of every replica that deletes what is too old.

    Args:
        dependencies: the database and the clock.
        events: how long an event is kept; None for ever.
        withdrawn: how long the context vectors and answers of a client are kept after it withdrew from their task.
    """

    def __init__(self, dependencies: Dependencies, *, events: timedelta | None, withdrawn: timedelta) -> None:
        self._dependencies, self._events, self._withdrawn = dependencies, events, withdrawn

    async def run_due(self) -> None:
        """Delete withdrawn context vectors and answers, and old events."""
        async with self._dependencies.database.unit_of_work() as work:
            bodies = await work.parts.delete_withdrawn(self._dependencies.clock() - self._withdrawn)
            await work.commit()
        if bodies:
            await log.ainfo("withdrawn contributions deleted", count=bodies)
        if self._events is not None:
            await self._delete_events(self._events)

    async def _delete_events(self, keep: timedelta) -> None:
        """Delete old events, in transactions of `DELETED_AT_ONCE`."""
        before, total, deleted = self._dependencies.clock() - keep, 0, DELETED_AT_ONCE
        while deleted == DELETED_AT_ONCE:
            async with self._dependencies.database.unit_of_work() as work:
                deleted = await work.events.delete_before(before, DELETED_AT_ONCE)
                await work.commit()
            total += deleted
        if total:
            await log.ainfo("old events deleted", count=total, before=before.isoformat())
