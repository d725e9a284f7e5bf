"""What the clients' parts of a context vector are, in SQL: contributions of its round, later ones, and withdrawals. Makes no decision."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, exists, insert, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ifed.states import RoundKind, RoundState
from services.aggregator.contribution import Contribution, Entry
from services.aggregator.records import Part
from services.aggregator.stored_rounds import BODIES_AT_ONCE, ENTRY
from services.aggregator.tables import contributions, rounds


class StoredParts:
    """The repository of the parts of context vectors, in one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, task: str, number: int, change: int, contribution: Contribution) -> None:
        said = {name: getattr(contribution.entry, name) for name in ENTRY}
        key = {"task": task, "number": number, "client": contribution.entry.client, "change": change}
        await self._connection.execute(insert(contributions).values(**key, **said, body=contribution.body))

    async def find(self, task: str, client: str, digest: str) -> Entry | None:
        said = [contributions.c[name] for name in ("client", *ENTRY)]
        statement = select(*said).where(_counts(task, client), contributions.c.digest == digest, _in_context(RoundState.CLOSED))
        row = (await self._connection.execute(statement.limit(1))).one_or_none()
        return None if row is None else _entry(row)

    async def holds(self, task: str, client: str) -> bool:
        statement = select(contributions.c.change).where(_counts(task, client), _in_context(RoundState.CLOSED)).limit(1)
        return (await self._connection.execute(statement)).one_or_none() is not None

    async def withdraw(self, task: str, client: str, change: int) -> int:
        mine = update(contributions).where(_counts(task, client), _in_context(*RoundState))
        return (await self._connection.execute(mine.values(removed=change))).rowcount

    async def bodies(self, task: str, number: int, changes: int) -> AsyncIterator[Part]:
        there = (
            contributions.c.task == task,
            contributions.c.number == number,
            contributions.c.change <= changes,
            or_(contributions.c.removed.is_(None), contributions.c.removed > changes),
        )
        key = contributions.c.client, contributions.c.change
        wanted = select(*key, contributions.c.digest, contributions.c.weight, contributions.c.body)
        after: tuple[str, int] = ("", 0)
        while True:
            statement = wanted.where(*there, tuple_(*key) > after).order_by(*key).limit(BODIES_AT_ONCE)
            found = (await self._connection.execute(statement)).all()
            for row in found:
                yield Part(row.client, row.digest, row.weight, bytes(row.body))
            if len(found) < BODIES_AT_ONCE:
                return
            after = (found[-1].client, found[-1].change)


def _counts(task: str, client: str) -> ColumnElement[bool]:
    return and_(contributions.c.task == task, contributions.c.client == client, contributions.c.removed.is_(None))


def _in_context(*states: RoundState) -> ColumnElement[bool]:
    same = rounds.c.task == contributions.c.task, rounds.c.number == contributions.c.number
    wanted = rounds.c.kind == RoundKind.CONTEXT.value, rounds.c.state.in_([state.value for state in states])
    return exists().where(*same, *wanted).correlate(contributions)


def _entry(row: Row[Any]) -> Entry:
    return Entry(row.client, *(getattr(row, name) for name in ENTRY))
