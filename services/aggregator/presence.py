"""Who called when: noted in memory, written for all of them together. Losing a few notes loses nothing that counts."""

from __future__ import annotations

from datetime import datetime, timedelta

from services.aggregator.ports import Store
from services.aggregator.records import Party

SEEN_EVERY = timedelta(seconds=30)


class Presence:
    """Notes parties that were not seen for a while; one transaction a tick writes them, instead of one for every call."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._noted: dict[str, datetime] = {}

    def note(self, party: Party, now: datetime) -> None:
        """Remember that the party calls now, unless that is known."""
        if party.last_seen_at is None or now - party.last_seen_at > SEEN_EVERY:
            self._noted[party.name] = now

    async def write(self) -> None:
        """Keep what was noted since."""
        if not self._noted:
            return
        noted, self._noted = self._noted, {}
        async with self._store.work() as work:
            await work.parties.saw(noted)
            await work.commit()
