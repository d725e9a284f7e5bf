"""Rounds, their seats and their contributions, in SQL. Makes no decision."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, delete, exists, insert, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ifed.errors import AlreadyContributed, UnknownRound, WrongState
from ifed.messages.enums import RoundKind, RoundState
from services.aggregator.domain.aggregates import ContextPart, LedgerLine
from services.aggregator.domain.contribution import Contribution, ContributionRecord
from services.aggregator.domain.evaluation import EvaluationResult
from services.aggregator.domain.round import Round, Seat
from services.aggregator.storage.constraints import translate_integrity_errors
from services.aggregator.storage.tables import contributions, rounds, seats, versions

BODIES_AT_ONCE = 32
DUE_AT_ONCE = 100
ENTRY = ("digest", "received_at", "weight", "size", "loss", "seconds", "correct", "evaluated")


class RoundRepository:
    """The repository of rounds, in one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, round_: Round, clients: Sequence[str]) -> None:
        live = WrongState(f"task {round_.task!r} has a round going already")
        async with translate_integrity_errors({"uq_rounds_live": live, "pk_rounds": live}):
            await self._connection.execute(insert(rounds).values(**_key(round_), **_values(round_)))
        await self._connection.execute(insert(seats), [{**_key(round_), "client": client} for client in clients])

    async def get(self, task: str, number: int, *, for_update: bool = False) -> Round:
        found = await self._one(select(rounds).where(*_of(rounds, task, number)), for_update)
        if found is None:
            raise UnknownRound(f"task {task!r} has no round {number}")
        return found

    async def newest(self, task: str, *, for_update: bool = False) -> Round | None:
        statement = select(rounds).where(rounds.c.task == task).order_by(rounds.c.number.desc()).limit(1)
        return await self._one(statement, for_update)

    async def _one(self, statement: Select[Any], for_update: bool) -> Round | None:
        row = (await self._connection.execute(statement.with_for_update() if for_update else statement)).one_or_none()
        return None if row is None else _round(row)

    async def save(self, round_: Round) -> None:
        statement = update(rounds).where(*_of(rounds, round_.task, round_.number)).values(**_values(round_))
        live = WrongState(f"task {round_.task!r} has another round going")
        async with translate_integrity_errors({"uq_rounds_live": live}):
            await self._connection.execute(statement)

    async def page(self, task: str, after: int, limit: int) -> list[Round]:
        statement = select(rounds).where(rounds.c.task == task, rounds.c.number > after).order_by(rounds.c.number).limit(limit)
        return [_round(row) for row in await self._connection.execute(statement)]

    async def due(self, now: datetime) -> list[tuple[str, int]]:
        statement = select(rounds.c.task, rounds.c.number).where(rounds.c.state == RoundState.OPEN.value, rounds.c.deadline <= now)
        found = await self._connection.execute(statement.order_by(rounds.c.deadline).limit(DUE_AT_ONCE))
        return [(row.task, row.number) for row in found]

    async def claim(self, now: datetime, until: datetime) -> Round | None:
        free = or_(rounds.c.claimed_until.is_(None), rounds.c.claimed_until <= now)
        statement = select(rounds).where(rounds.c.state == RoundState.AGGREGATING.value, free).limit(1)
        row = (await self._connection.execute(statement.with_for_update(skip_locked=True))).one_or_none()
        if row is None:
            return None
        await self._connection.execute(update(rounds).where(*_of(rounds, row.task, row.number)).values(claimed_until=until))
        return _round(row)

    async def evaluations(self, task: str) -> list[tuple[int, EvaluationResult]]:
        measured = and_(rounds.c.task == task, rounds.c.state == RoundState.CLOSED.value, rounds.c.accuracy.is_not(None))
        same = and_(versions.c.task == rounds.c.task, versions.c.version == rounds.c.version)
        kept = select(rounds).outerjoin(versions, same).where(measured, versions.c.withdrawn_at.is_(None))
        found = await self._connection.execute(kept.order_by(rounds.c.number))
        return [(row.version, _measure(row)) for row in found]

    async def seat(self, task: str, number: int, client: str) -> Seat | None:
        row = (await self._connection.execute(_seats().where(*_of(seats, task, number), seats.c.client == client))).one_or_none()
        return None if row is None else _seat(row)

    async def seats(self, task: str, numbers: Iterable[int]) -> dict[int, list[Seat]]:
        wanted = list(numbers)
        found = await self._connection.execute(
            _seats().where(seats.c.task == task, seats.c.number.in_(wanted)).order_by(seats.c.number, seats.c.client)
        )
        grouped: dict[int, list[Seat]] = {number: [] for number in wanted}
        for row in found:
            grouped[row.number].append(_seat(row))
        return grouped

    async def missing(self, task: str, number: int) -> list[str]:
        statement = _seats().where(*_of(seats, task, number), contributions.c.digest.is_(None)).order_by(seats.c.client)
        return [row.client for row in await self._connection.execute(statement)]

    async def unseat(self, task: str, number: int, client: str) -> None:
        await self._connection.execute(delete(seats).where(*_of(seats, task, number), seats.c.client == client))

    async def record(self, round_: Round, contribution: Contribution) -> None:
        entry = contribution.entry
        said = {name: getattr(entry, name) for name in ENTRY}
        twice = AlreadyContributed(f"{entry.client} contributed to {round_} already")
        async with translate_integrity_errors({"pk_contributions": twice}):
            await self._connection.execute(
                insert(contributions).values(**_key(round_), client=entry.client, body=contribution.body, **said)
            )

    async def ledger(self, task: str, after: tuple[int, str, int], limit: int) -> list[LedgerLine]:
        same = and_(rounds.c.task == contributions.c.task, rounds.c.number == contributions.c.number)
        said: list[Any] = [contributions.c[name] for name in ("number", "client", *ENTRY, "change", "removed")]
        said += [rounds.c.kind, rounds.c.state]
        key = contributions.c.number, contributions.c.client, contributions.c.change
        statement = select(*said).select_from(contributions.join(rounds, same))
        mine = statement.where(contributions.c.task == task, tuple_(*key) > after).order_by(*key)
        found = await self._connection.execute(mine.limit(limit))
        return [
            LedgerLine(row.number, RoundKind(row.kind), RoundState(row.state), _record_of(row), row.change, row.removed)
            for row in found
        ]

    async def bodies(self, task: str, number: int) -> AsyncIterator[tuple[int, bytes]]:
        after = ""
        while True:
            statement = (
                select(contributions.c.client, contributions.c.weight, contributions.c.body)
                .where(*_of(contributions, task, number), contributions.c.client > after)
                .order_by(contributions.c.client)
                .limit(BODIES_AT_ONCE)
            )
            found = (await self._connection.execute(statement)).all()
            for row in found:
                yield row.weight, row.body
            if len(found) < BODIES_AT_ONCE:
                return
            after = found[-1].client


def _of(table: Any, task: str, number: int) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return table.c.task == task, table.c.number == number


def _seats() -> Select[Any]:
    same = and_(
        contributions.c.task == seats.c.task,
        contributions.c.number == seats.c.number,
        contributions.c.client == seats.c.client,
        contributions.c.change == 0,
    )
    said = (contributions.c[name] for name in ENTRY)
    return select(seats.c.number, seats.c.client, *said).select_from(seats.outerjoin(contributions, same))


def _seat(row: Row[Any]) -> Seat:
    if row.digest is None:
        return Seat(row.client)
    return Seat(row.client, _record_of(row))


def _record_of(row: Row[Any]) -> ContributionRecord:
    return ContributionRecord(row.client, *(getattr(row, name) for name in ENTRY))


def _key(round_: Round) -> dict[str, Any]:
    return {"task": round_.task, "number": round_.number}


def _values(round_: Round) -> dict[str, Any]:
    plain = (
        "opened_at",
        "deadline",
        "closed_at",
        "expected",
        "required",
        "contributed",
        "version",
        "produced",
        "reason",
        "attempt",
        "context",
    )
    measured = round_.evaluation
    return {name: getattr(round_, name) for name in plain} | {
        "kind": round_.kind.value,
        "state": round_.state.value,
        "accuracy": None if measured is None else measured.accuracy,
        "macro_f1": None if measured is None else measured.macro_f1,
        "examples": None if measured is None else measured.examples,
        "label_bias": None if measured is None or measured.label_bias is None else list(measured.label_bias),
    }


def _round(row: Row[Any]) -> Round:
    plain = ("task", "number", "opened_at", "deadline", "closed_at", "expected", "required", "contributed")
    return Round(
        **{name: getattr(row, name) for name in (*plain, "version", "produced", "reason", "attempt", "context")},
        kind=RoundKind(row.kind),
        state=RoundState(row.state),
        evaluation=None if row.accuracy is None else _measure(row),
    )


def _measure(row: Row[Any]) -> EvaluationResult:
    bias = None if row.label_bias is None else tuple(row.label_bias)
    return EvaluationResult(row.accuracy, row.macro_f1, row.examples, bias)


class ContextPartRepository:
    """The repository of the parts of context vectors, in one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, task: str, number: int, change: int, contribution: Contribution) -> None:
        said = {name: getattr(contribution.entry, name) for name in ENTRY}
        key = {"task": task, "number": number, "client": contribution.entry.client, "change": change}
        await self._connection.execute(insert(contributions).values(**key, **said, body=contribution.body))

    async def find(self, task: str, client: str, digest: str) -> ContributionRecord | None:
        said = [contributions.c[name] for name in ("client", *ENTRY)]
        statement = select(*said).where(_counts(task, client), contributions.c.digest == digest, _in_context(RoundState.CLOSED))
        row = (await self._connection.execute(statement.limit(1))).one_or_none()
        return None if row is None else _part_values(row)

    async def holds(self, task: str, client: str) -> bool:
        statement = select(contributions.c.change).where(_counts(task, client), _in_context(RoundState.CLOSED)).limit(1)
        return (await self._connection.execute(statement)).one_or_none() is not None

    async def withdraw(self, task: str, client: str, change: int) -> int:
        mine = update(contributions).where(_counts(task, client), _in_context(*RoundState))
        return (await self._connection.execute(mine.values(removed=change))).rowcount

    async def bodies(self, task: str, number: int, changes: int) -> AsyncIterator[ContextPart]:
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
                yield ContextPart(row.client, row.digest, row.weight, bytes(row.body))
            if len(found) < BODIES_AT_ONCE:
                return
            after = (found[-1].client, found[-1].change)


def _counts(task: str, client: str) -> ColumnElement[bool]:
    return and_(contributions.c.task == task, contributions.c.client == client, contributions.c.removed.is_(None))


def _in_context(*states: RoundState) -> ColumnElement[bool]:
    same = rounds.c.task == contributions.c.task, rounds.c.number == contributions.c.number
    wanted = rounds.c.kind == RoundKind.CONTEXT.value, rounds.c.state.in_([state.value for state in states])
    return exists().where(*same, *wanted).correlate(contributions)


def _part_values(row: Row[Any]) -> ContributionRecord:
    return ContributionRecord(row.client, *(getattr(row, name) for name in ENTRY))
