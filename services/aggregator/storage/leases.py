"""Leases: a replica claims a row until a time, which stands in a `claimed_until` column. A lease that has run out is free again."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Column, ColumnElement, Row, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection


def is_free(claimed_until: Column[datetime], now: datetime) -> ColumnElement[bool]:
    """Return the condition that nobody holds the lease."""
    return or_(claimed_until.is_(None), claimed_until <= now)


async def claim_one(
    connection: AsyncConnection, claimed_until: Column[datetime], *conditions: ColumnElement[bool], now: datetime, until: datetime
) -> Row[Any] | None:
    """Claim one free row that meets the conditions and return it as it was before; None when there is none.

    Rows that another transaction has locked are skipped.
    """
    table = claimed_until.table
    free = select(table).where(*conditions, is_free(claimed_until, now)).limit(1)
    row = (await connection.execute(free.with_for_update(skip_locked=True))).one_or_none()
    if row is not None:
        key = [column == getattr(row, column.name) for column in table.primary_key]
        await set_lease(connection, claimed_until, *key, until=until)
    return row


async def set_lease(
    connection: AsyncConnection, claimed_until: Column[datetime], *conditions: ColumnElement[bool], until: datetime | None
) -> int:
    """Claim or renew the lease of the rows that meet the conditions, or release it with None; return the number of these rows."""
    statement = update(claimed_until.table).where(*conditions).values({claimed_until: until})
    return (await connection.execute(statement)).rowcount
