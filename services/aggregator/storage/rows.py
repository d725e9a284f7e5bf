"""Pages of rows of which some cannot be read, such as those that another release wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import structlog
from sqlalchemy import Column, Row, Select
from sqlalchemy.ext.asyncio import AsyncConnection

log = structlog.get_logger(__name__)
Value = TypeVar("Value")


async def readable_page(
    connection: AsyncConnection,
    statement: Select[Any],
    key: Column[Any],
    after: str | int,
    limit: int,
    read: Callable[[Row[Any]], Value],
) -> list[Value]:
    """Return up to `limit` values of the rows after `after`; a row that cannot be read is logged and left out.

    Args:
        connection: of the transaction.
        statement: selects the rows, without an order.
        key: the unique column by which the rows are ordered.
        after: the key after which the page begins.
        limit: the number of values.
        read: makes a value of a row; raises ValueError if the row is unreadable.
    """
    values: list[Value] = []
    while (missing := limit - len(values)) > 0:
        rows = (await connection.execute(statement.where(key > after).order_by(key).limit(missing))).all()
        for row in rows:
            after = getattr(row, key.name)
            try:
                values.append(read(row))
            except ValueError as reason:
                log.error(
                    "a stored row cannot be read and is left out", table=key.table.name, key=after, reason=type(reason).__name__
                )
        if len(rows) < missing:
            break
    return values
