"""What the service asks of its storage about leave to enrol and about the audit, as protocols. Names no implementation."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from services.aggregator.records import AuditEntry, EnrolmentCode


class EnrolmentCodes(Protocol):
    """Leave to enrol, by the hash of its code."""

    async def add(self, code: EnrolmentCode) -> None: ...

    async def take(self, code_hash: str, now: datetime) -> EnrolmentCode | None:
        """Mark the code as used and give it; None when there is none, or it is used or expired. Of two takers one gets it."""


class Audit(Protocol):
    """What admins asked for, in order; it only grows."""

    async def add(self, entry: AuditEntry) -> None: ...

    async def page(self, after: int, limit: int) -> list[AuditEntry]:
        """Lines by number, those after `after`."""
