"""Enrolment codes and the audit, in SQL. Makes no decision."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ifed.states import Role
from services.aggregator.records import AuditEntry, EnrolmentCode
from services.aggregator.tables import audit, enrolments


class StoredEnrolments:
    """The repository of enrolment codes, in one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, code: EnrolmentCode) -> None:
        await self._connection.execute(insert(enrolments).values(**(asdict(code) | {"role": code.role.value})))

    async def take(self, code_hash: str, now: datetime) -> EnrolmentCode | None:
        fresh = (enrolments.c.code_hash == code_hash) & enrolments.c.used_at.is_(None) & (enrolments.c.expires_at > now)
        row = (
            await self._connection.execute(update(enrolments).where(fresh).values(used_at=now).returning(enrolments))
        ).one_or_none()
        if row is None:
            return None
        return EnrolmentCode(row.code_hash, row.name, Role(row.role), row.created_at, row.expires_at, row.used_at)


class StoredAudit:
    """The repository of the audit, in one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, entry: AuditEntry) -> None:
        said = {name: value for name, value in asdict(entry).items() if name != "number"}
        await self._connection.execute(insert(audit).values(**said))

    async def page(self, after: int, limit: int) -> list[AuditEntry]:
        found = await self._connection.execute(select(audit).where(audit.c.id > after).order_by(audit.c.id).limit(limit))
        return [AuditEntry(row.at, row.actor, row.action, row.target, row.request_id, row.id) for row in found]
