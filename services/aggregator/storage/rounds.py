"""The SQL of rounds, of the clients they wait for, and of what clients contributed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import astuple
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, Table, and_, delete, exists, func, insert, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ifed.errors import AlreadyContributed, NothingYet, UnknownRound, WrongState
from ifed.messages.enums import HeadQuestion, RoundKind, RoundState
from ifed.messages.rounds import ReadingResult
from ifed.tensors.confidence import ConfidenceBin, ConfidenceBins
from services.aggregator.domain.aggregates import ContextPart, LedgerLine
from services.aggregator.domain.contribution import Contribution, ContributionRecord
from services.aggregator.domain.evaluation import EvaluationResult, LabelResult
from services.aggregator.domain.round import Round, Seat
from services.aggregator.storage.changes import ChangeTracker
from services.aggregator.storage.constraints import translate_integrity_errors
from services.aggregator.storage.leases import claim_one
from services.aggregator.storage.rows import readable_page
from services.aggregator.storage.tables import contributions, memberships, rounds, seats, tasks, versions

BODIES_AT_ONCE = 32
DUE_AT_ONCE = 100
_RECORD = ("digest", "received_at", "weight", "size", "loss", "seconds", "correct", "evaluated")
_FIXED = ("task", "number")
_PLAIN = (
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
    "solve",
)


class RoundRepository:
    """Rounds by task and number, with their participants and contributions."""

    def __init__(self, connection: AsyncConnection, changes: ChangeTracker) -> None:
        self._connection, self._changes = connection, changes

    async def add(self, round_: Round, clients: Sequence[str]) -> None:
        """Store a new round that waits for `clients`.

        Raises:
            WrongState: the task has a round going.
        """
        live = WrongState(f"task {round_.task!r} has a round going already")
        async with translate_integrity_errors({"uq_rounds_live": live, "pk_rounds": live}):
            await self._connection.execute(insert(rounds).values(**_key(round_), **_values(round_)))
        await self._connection.execute(insert(seats), [{**_key(round_), "client": client} for client in clients])
        self._changes.round_saved(round_)

    async def get(self, task: str, number: int, *, for_update: bool = False) -> Round:
        """Return the round, locked until the transaction ends when `for_update` is set.

        Raises:
            UnknownRound: the task has no round of this number.
        """
        round_ = await self._load(select(rounds).where(*_in_round(rounds, task, number)), for_update=for_update)
        if round_ is None:
            raise UnknownRound(f"task {task!r} has no round {number}")
        return round_

    async def newest(self, task: str, *, for_update: bool = False) -> Round | None:
        """Return the round of the highest number, or None."""
        statement = select(rounds).where(rounds.c.task == task).order_by(rounds.c.number.desc()).limit(1)
        return await self._load(statement, for_update=for_update)

    async def _load(self, statement: Select[Any], *, for_update: bool) -> Round | None:
        row = (await self._connection.execute(statement.with_for_update() if for_update else statement)).one_or_none()
        return None if row is None else self._changes.round_loaded(_round(row))

    async def save(self, round_: Round) -> None:
        """Write everything of the round but its task and number.

        Raises:
            WrongState: the task has another round going.
        """
        statement = update(rounds).where(*_in_round(rounds, round_.task, round_.number)).values(**_values(round_))
        live = WrongState(f"task {round_.task!r} has another round going")
        async with translate_integrity_errors({"uq_rounds_live": live}):
            await self._connection.execute(statement)
        self._changes.round_saved(round_)

    async def page(self, task: str, after: int, limit: int) -> list[Round]:
        """Return up to `limit` rounds by number, those after `after`; one that cannot be read is left out."""
        return await readable_page(
            self._connection, select(rounds).where(rounds.c.task == task), rounds.c.number, after, limit, _round
        )

    async def due(self, now: datetime) -> list[tuple[str, int]]:
        """Return task and number of open rounds past their deadline."""
        statement = select(rounds.c.task, rounds.c.number).where(rounds.c.state == RoundState.OPEN.value, rounds.c.deadline <= now)
        rows = await self._connection.execute(statement.order_by(rounds.c.deadline).limit(DUE_AT_ONCE))
        return [(row.task, row.number) for row in rows]

    async def claim(self, now: datetime, until: datetime) -> Round | None:
        """Claim one round that is to be aggregated, until `until`; None when there is none."""
        aggregating = rounds.c.state == RoundState.AGGREGATING.value
        row = await claim_one(self._connection, rounds.c.claimed_until, aggregating, now=now, until=until)
        return None if row is None else _round(row)

    async def evaluations(self, task: str, *, labels: bool = False) -> list[tuple[int, EvaluationResult]]:
        """Return versions that are not withdrawn with their evaluations, in the order of the rounds that evaluated them.

        Args:
            labels: whether to read the results of the labels, of which a task may have a thousand.
        """
        evaluated = and_(rounds.c.task == task, rounds.c.state == RoundState.CLOSED.value, rounds.c.accuracy.is_not(None))
        same = and_(versions.c.task == rounds.c.task, versions.c.version == rounds.c.version)
        columns = [column for column in rounds.c if labels or column is not rounds.c.labels]
        statement = select(*columns).outerjoin(versions, same).where(evaluated, versions.c.withdrawn_at.is_(None))
        rows = await self._connection.execute(statement.order_by(rounds.c.number))
        return [(row.version, _evaluation(row)) for row in rows]

    async def evaluation_of(self, task: str, version: int) -> Round:
        """Return the newest closed round that evaluated a version of the coefficients.

        Raises:
            NothingYet: there is none.
        """
        evaluated = rounds.c.state == RoundState.CLOSED.value, rounds.c.accuracy.is_not(None), rounds.c.version == version
        statement = select(rounds).where(rounds.c.task == task, *evaluated).order_by(rounds.c.number.desc()).limit(1)
        if (row := (await self._connection.execute(statement)).one_or_none()) is None:
            raise NothingYet(f"no closed round of task {task!r} has evaluated version {version}")
        return _round(row)

    async def seat(self, task: str, number: int, client: str) -> Seat | None:
        """Return the client as a participant of the round; None when the round does not wait for it."""
        statement = _participants().where(*_in_round(seats, task, number), seats.c.client == client)
        row = (await self._connection.execute(statement)).one_or_none()
        return None if row is None else _participant(row)

    async def seats(self, task: str, numbers: Iterable[int]) -> dict[int, list[Seat]]:
        """Return the participants of several rounds, by client name."""
        grouped: dict[int, list[Seat]] = {number: [] for number in numbers}
        statement = _participants().where(seats.c.task == task, seats.c.number.in_(list(grouped)))
        for row in await self._connection.execute(statement.order_by(seats.c.number, seats.c.client)):
            grouped[row.number].append(_participant(row))
        return grouped

    async def missing(self, task: str, number: int) -> list[str]:
        """Return the names of participants that have not contributed, in order."""
        statement = _participants().where(*_in_round(seats, task, number), contributions.c.digest.is_(None))
        return [row.client for row in await self._connection.execute(statement.order_by(seats.c.client))]

    async def unseat(self, task: str, number: int, client: str) -> None:
        """Remove a participant."""
        await self._connection.execute(delete(seats).where(*_in_round(seats, task, number), seats.c.client == client))

    async def record(self, round_: Round, contribution: Contribution) -> None:
        """Store a contribution to the round.

        Raises:
            AlreadyContributed: the round has a contribution of this client.
        """
        entry = contribution.entry
        twice = AlreadyContributed(f"{entry.client} contributed to {round_} already")
        async with translate_integrity_errors({"pk_contributions": twice}):
            await self._connection.execute(insert(contributions).values(**_key(round_), **_contribution_values(contribution)))

    async def ledger(self, task: str, after: tuple[int, str, int], limit: int) -> list[LedgerLine]:
        """Return up to `limit` contributions to all rounds, in the order of round, client and change.

        Args:
            after: round, client and change of the last line before these.
        """
        key = contributions.c.number, contributions.c.client, contributions.c.change
        columns: list[Any] = [contributions.c[name] for name in ("number", "client", *_RECORD, "change", "removed")]
        columns += [rounds.c.kind, rounds.c.state]
        same = and_(rounds.c.task == contributions.c.task, rounds.c.number == contributions.c.number)
        statement = select(*columns).select_from(contributions.join(rounds, same))
        rows = await self._connection.execute(
            statement.where(contributions.c.task == task, tuple_(*key) > after).order_by(*key).limit(limit)
        )
        return [
            LedgerLine(row.number, RoundKind(row.kind), RoundState(row.state), _record(row), row.change, row.removed)
            for row in rows
        ]

    async def bodies(self, task: str, number: int) -> AsyncIterator[tuple[str, int, bytes]]:
        """Iterate over client, weight and body of every contribution to the round, by client name, a few in memory at a time."""
        columns = contributions.c.client, contributions.c.weight, contributions.c.body
        statement = select(*columns).where(*_in_round(contributions, task, number))
        after = ""
        while True:
            batch = statement.where(contributions.c.client > after).order_by(contributions.c.client).limit(BODIES_AT_ONCE)
            rows = (await self._connection.execute(batch)).all()
            for row in rows:
                yield row.client, row.weight, bytes(row.body)
            if len(rows) < BODIES_AT_ONCE:
                return
            after = rows[-1].client


def _in_round(table: Table, task: str, number: int) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return table.c.task == task, table.c.number == number


def _participants() -> Select[Any]:
    """Return the query of participants, with the records of those who have contributed in the round itself."""
    same = and_(
        contributions.c.task == seats.c.task,
        contributions.c.number == seats.c.number,
        contributions.c.client == seats.c.client,
        contributions.c.change == 0,
    )
    columns = (contributions.c[name] for name in _RECORD)
    return select(seats.c.number, seats.c.client, *columns).select_from(seats.outerjoin(contributions, same))


def _participant(row: Row[Any]) -> Seat:
    return Seat(row.client, None if row.digest is None else _record(row))


def _record(row: Row[Any]) -> ContributionRecord:
    return ContributionRecord(row.client, *(getattr(row, name) for name in _RECORD))


def _contribution_values(contribution: Contribution) -> dict[str, Any]:
    entry = contribution.entry
    return {name: getattr(entry, name) for name in ("client", *_RECORD)} | {"body": contribution.body}


def _key(round_: Round) -> dict[str, Any]:
    return {name: getattr(round_, name) for name in _FIXED}


def _values(round_: Round) -> dict[str, Any]:
    evaluation = round_.evaluation
    bias = None if evaluation is None else evaluation.label_bias
    return {name: getattr(round_, name) for name in _PLAIN} | {
        "kind": round_.kind.value,
        "state": round_.state.value,
        "accuracy": None if evaluation is None else evaluation.accuracy,
        "macro_f1": None if evaluation is None else evaluation.macro_f1,
        "examples": None if evaluation is None else evaluation.examples,
        "label_bias": None if bias is None else list(bias),
        "question": None if round_.question is None else round_.question.value,
        "log_likelihood": None if evaluation is None else evaluation.log_likelihood,
        "reading": None if evaluation is None else evaluation.reading,
        "readings": [reading.model_dump() for reading in evaluation.readings] if evaluation and evaluation.readings else None,
        "labels": [astuple(label) for label in evaluation.labels] if evaluation and evaluation.labels else None,
        "confidence": [astuple(part) for part in evaluation.confidence.bins] if evaluation and evaluation.confidence else None,
    }


def _round(row: Row[Any]) -> Round:
    return Round(
        **{name: getattr(row, name) for name in (*_FIXED, *_PLAIN)},
        kind=RoundKind(row.kind),
        state=RoundState(row.state),
        evaluation=None if row.accuracy is None else _evaluation(row),
        question=None if row.question is None else HeadQuestion(row.question),
    )


def _evaluation(row: Row[Any]) -> EvaluationResult:
    bias = None if row.label_bias is None else tuple(row.label_bias)
    readings = tuple(ReadingResult.model_validate(reading) for reading in row.readings or ())
    labels = tuple(LabelResult(*counts) for counts in getattr(row, "labels", None) or ())
    confidence = None if row.confidence is None else ConfidenceBins(tuple(ConfidenceBin(*part) for part in row.confidence))
    return EvaluationResult(
        row.accuracy, row.macro_f1, row.examples, bias, row.log_likelihood, row.reading, readings, labels, confidence
    )


class ContextPartRepository:
    """What clients sent for the context vector of a task: in its context round, and later, each time with a change of its own."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, task: str, number: int, change: int, contribution: Contribution) -> None:
        """Store what came after the context round `number` had closed."""
        values = {"task": task, "number": number, "change": change} | _contribution_values(contribution)
        await self._connection.execute(insert(contributions).values(**values))

    async def find(self, task: str, client: str, digest: str) -> ContributionRecord | None:
        """Return the part of the client with this digest; None when it sent none or withdrew it."""
        columns = (contributions.c[name] for name in ("client", *_RECORD))
        current = _not_withdrawn(task, client), contributions.c.digest == digest, _in_context_round(RoundState.CLOSED)
        row = (await self._connection.execute(select(*columns).where(*current).limit(1))).one_or_none()
        return None if row is None else _record(row)

    async def holds(self, task: str, client: str) -> bool:
        """Return whether the context vector of a closed round has a part of the client."""
        current = _not_withdrawn(task, client), _in_context_round(RoundState.CLOSED)
        return (await self._connection.execute(select(contributions.c.change).where(*current).limit(1))).one_or_none() is not None

    async def additions(self, task: str, number: int, client: str) -> int:
        """Return how many additions of the client to the context vector of the round `number` are stored."""
        added = *_in_round(contributions, task, number), contributions.c.client == client, contributions.c.change > 0
        return int((await self._connection.execute(select(func.count()).select_from(contributions).where(*added))).scalar_one())

    async def delete_withdrawn(self, before: datetime) -> int:
        """Delete the bodies of what clients withdrew from a task before a time; return their number.

        Their rows stay in the ledger. What the newest context vector has not yet been made without is left for the next call.
        """
        same = memberships.c.task == contributions.c.task, memberships.c.client == contributions.c.client
        withdrew = exists().where(*same, memberships.c.withdrawn_at <= before).correlate(contributions)
        settled = select(tasks.c.context_settled).where(tasks.c.name == contributions.c.task).scalar_subquery()
        stored = func.length(contributions.c.body) > 0
        statement = update(contributions).where(contributions.c.removed <= settled, stored, withdrew).values(body=b"")
        return (await self._connection.execute(statement)).rowcount

    async def deleted(self, task: str, number: int, changes: int) -> list[str]:
        """Return the clients whose parts counted after `changes` changes and have been deleted since, by name."""
        gone = *_counted(task, number, changes), func.length(contributions.c.body) == 0
        statement = select(contributions.c.client).where(*gone).distinct().order_by(contributions.c.client)
        return list((await self._connection.scalars(statement)).all())

    async def withdraw(self, task: str, client: str, change: int) -> int:
        """Withdraw all parts of the client with the change `change`; return how many they were."""
        current = update(contributions).where(_not_withdrawn(task, client), _in_context_round(*RoundState))
        return (await self._connection.execute(current.values(removed=change))).rowcount

    async def bodies(self, task: str, number: int, changes: int) -> AsyncIterator[ContextPart]:
        """Iterate over the parts that count after `changes` changes, by client and then change, a few in memory at a time."""
        counted = _counted(task, number, changes)
        key = contributions.c.client, contributions.c.change
        statement = select(*key, contributions.c.digest, contributions.c.weight, contributions.c.body).where(*counted)
        after: tuple[str, int] = ("", 0)
        while True:
            rows = (
                await self._connection.execute(statement.where(tuple_(*key) > after).order_by(*key).limit(BODIES_AT_ONCE))
            ).all()
            for row in rows:
                yield ContextPart(row.client, row.digest, row.weight, bytes(row.body))
            if len(rows) < BODIES_AT_ONCE:
                return
            after = (rows[-1].client, rows[-1].change)


def _counted(task: str, number: int, changes: int) -> tuple[ColumnElement[bool], ...]:
    return (
        *_in_round(contributions, task, number),
        contributions.c.change <= changes,
        or_(contributions.c.removed.is_(None), contributions.c.removed > changes),
    )


def _not_withdrawn(task: str, client: str) -> ColumnElement[bool]:
    return and_(contributions.c.task == task, contributions.c.client == client, contributions.c.removed.is_(None))


def _in_context_round(*states: RoundState) -> ColumnElement[bool]:
    same = rounds.c.task == contributions.c.task, rounds.c.number == contributions.c.number
    wanted = rounds.c.kind == RoundKind.CONTEXT.value, rounds.c.state.in_([state.value for state in states])
    return exists().where(*same, *wanted).correlate(contributions)
