"""Which named constraint a statement broke, on either database. Knows no refusal but the one it is handed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from sqlalchemy import Index, PrimaryKeyConstraint, Table, UniqueConstraint
from sqlalchemy.exc import IntegrityError

from ifed.errors import IFedError
from services.aggregator.storage.tables import metadata


@asynccontextmanager
async def translate_integrity_errors(refusals: Mapping[str, IFedError]) -> AsyncIterator[None]:
    """Raise the refusal that belongs to the constraint a statement inside breaks; any other error passes."""
    try:
        yield
    except IntegrityError as reason:
        if (refusal := refusals.get(broken_constraint(reason))) is None:
            raise
        raise refusal from reason


def broken_constraint(reason: IntegrityError) -> str:
    """The name of the broken constraint or unique index; empty when the database does not say."""
    cause = getattr(reason.orig, "__cause__", None)
    if name := getattr(cause, "constraint_name", None):
        return str(name)
    _, said, columns = str(reason.orig).partition("UNIQUE constraint failed: ")
    return _named_by_columns(frozenset(columns.split(", "))) if said else ""


def _named_by_columns(columns: frozenset[str]) -> str:
    """SQLite says `table.column, …` where Postgres says the name. Of two on the same columns the primary key is meant."""
    for table in metadata.tables.values():
        for constraint in _uniques(table):
            if columns == {f"{table.name}.{column.name}" for column in constraint.columns}:
                return str(constraint.name)
    return ""


def _uniques(table: Table) -> list[PrimaryKeyConstraint | UniqueConstraint | Index]:
    unique = [constraint for constraint in table.constraints if isinstance(constraint, UniqueConstraint)]
    return [table.primary_key, *unique, *(index for index in table.indexes if index.unique)]
