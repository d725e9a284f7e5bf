"""Errors of the domain in place of broken database constraints."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from sqlalchemy import Index, PrimaryKeyConstraint, Table, UniqueConstraint
from sqlalchemy.exc import IntegrityError

from ifed.errors import IFedError
from services.aggregator.storage.tables import metadata


@asynccontextmanager
async def translate_integrity_errors(refusals: Mapping[str, IFedError]) -> AsyncIterator[None]:
    """Raise the refusal of the constraint that a statement inside breaks; any other error passes.

    Args:
        refusals: what to raise, by the name of the constraint.
    """
    try:
        yield
    except IntegrityError as reason:
        if (refusal := refusals.get(broken_constraint(reason))) is None:
            raise
        raise refusal from reason


def broken_constraint(reason: IntegrityError) -> str:
    """Return the name of the broken constraint or unique index; empty when the database does not say."""
    cause = getattr(reason.orig, "__cause__", None)
    if name := getattr(cause, "constraint_name", None):
        return str(name)
    _, message, columns = str(reason.orig).partition("UNIQUE constraint failed: ")
    return _constraint_on(frozenset(columns.split(", "))) if message else ""


def _constraint_on(columns: frozenset[str]) -> str:
    """Return the name of the primary key, unique constraint or unique index on exactly these columns; empty if there is none.

    SQLite reports the columns of a broken constraint instead of its name. If a primary key and another constraint of a table cover the
    same columns, return the primary key.

    Args:
        columns: each as `table.column`.
    """
    for table in metadata.tables.values():
        for constraint in _unique_constraints(table):
            if columns == {f"{table.name}.{column.name}" for column in constraint.columns}:
                return str(constraint.name)
    return ""


def _unique_constraints(table: Table) -> list[PrimaryKeyConstraint | UniqueConstraint | Index]:
    unique = [constraint for constraint in table.constraints if isinstance(constraint, UniqueConstraint)]
    return [table.primary_key, *unique, *(index for index in table.indexes if index.unique)]
