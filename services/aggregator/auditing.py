"""The audit: what admins ask for is written down before it is done. Knows no HTTP and no SQL."""

from __future__ import annotations

from datetime import datetime

from ifed.access import AuditLine
from ifed.contracts import Page
from services.aggregator import views
from services.aggregator.backstage import Backstage
from services.aggregator.records import AuditEntry

LONGEST_TARGET, LONGEST_ID = 300, 100


class Auditing:
    """Writes lines, and shows them."""

    def __init__(self, backstage: Backstage) -> None:
        self._backstage = backstage

    async def note(self, actor: str, action: str, target: str, request_id: str | None) -> None:
        """Write a line. When that fails the request fails, so nothing is done that is not in the audit."""
        async with self._backstage.store.work() as work:
            await work.audit.add(line(self._backstage.clock(), actor, action, target, request_id))
            await work.commit()

    async def page(self, after: int, limit: int) -> Page[AuditLine]:
        """Lines by number."""
        async with self._backstage.store.reading() as work:
            found = await work.audit.page(after, limit + 1)
        return views.page([_line(entry) for entry in found], limit, lambda line: str(line.number))


def line(at: datetime, actor: str, action: str, target: str, request_id: str | None) -> AuditEntry:
    """A line that fits into the table."""
    return AuditEntry(at, actor, action, target[:LONGEST_TARGET], None if request_id is None else request_id[:LONGEST_ID])


def _line(entry: AuditEntry) -> AuditLine:
    assert entry.number is not None, "it was read from the audit"
    return AuditLine(
        number=entry.number, at=entry.at, actor=entry.actor, action=entry.action, target=entry.target, request_id=entry.request_id
    )
