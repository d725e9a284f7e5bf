"""The SQL of head rounds: what each of them asks, what the next one will, and the heads made anew after withdrawals."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Select, and_, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ifed.errors import UnknownRound
from ifed.messages.enums import HeadQuestion, RoundKind, RoundState
from services.aggregator.domain.aggregates import HeadAnswers, HeadRevision
from services.aggregator.storage.tables import contributions, head_queries, head_revisions, rounds

_REVISION = ("task", "solve", "changes", "created_at", "weight", "digest")


@dataclass(frozen=True, slots=True)
class NextQuestion:
    """What a closed head round left to ask.

    Attributes:
        round: the number of that round.
        solve: the first round of its solution.
        context: the version of the context vector that the solution works with.
        clients: those who answered, by name.
    """

    round: int
    solve: int
    question: HeadQuestion
    query: bytes
    context: int | None
    clients: tuple[str, ...]


class HeadRepository:
    """Queries of head rounds by task and round."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, task: str, number: int, query: bytes) -> None:
        """Store what a new round asks."""
        await self._connection.execute(insert(head_queries).values(task=task, number=number, body=query))

    async def query(self, task: str, number: int) -> bytes:
        """Return what a round asks.

        Raises:
            UnknownRound: the task has no head round of this number.
        """
        statement = select(head_queries.c.body).where(head_queries.c.task == task, head_queries.c.number == number)
        if (body := await self._connection.scalar(statement)) is None:
            raise UnknownRound(f"task {task!r} has no head round {number}")
        return bytes(body)

    async def put_next(self, task: str, number: int, question: HeadQuestion, query: bytes) -> None:
        """Store what is asked after a round."""
        same = head_queries.c.task == task, head_queries.c.number == number
        await self._connection.execute(update(head_queries).where(*same).values(next_question=question.value, next_body=query))

    async def asked_after(self, task: str, number: int) -> tuple[HeadQuestion, bytes] | None:
        """Return what a round left to ask; None when its solution ended with it."""
        same = head_queries.c.task == task, head_queries.c.number == number
        row = (await self._connection.execute(select(head_queries).where(*same))).one_or_none()
        if row is None or row.next_question is None:
            return None
        return HeadQuestion(row.next_question), bytes(row.next_body)

    async def next_question(self, task: str, version: int) -> NextQuestion | None:
        """Return what is to be asked next for the head of a version; None when its solution has to begin."""
        same = and_(rounds.c.task == head_queries.c.task, rounds.c.number == head_queries.c.number)
        closed = rounds.c.task == task, rounds.c.kind == RoundKind.HEAD.value, rounds.c.state == RoundState.CLOSED.value
        columns = rounds.c.number, rounds.c.solve, rounds.c.version, rounds.c.context
        statement = select(*columns, head_queries.c.next_question, head_queries.c.next_body).join(rounds, same)
        row = (await self._connection.execute(statement.where(*closed).order_by(rounds.c.number.desc()).limit(1))).one_or_none()
        if row is None or row.next_question is None or row.version != version:
            return None
        clients = await self._clients(task, row.number)
        return NextQuestion(row.number, row.solve, HeadQuestion(row.next_question), bytes(row.next_body), row.context, clients)

    async def of_solve(self, task: str, solve: int, last: int) -> list[HeadAnswers]:
        """Return the rounds of a solution, in order, up to round `last`, each closed or being aggregated."""
        same = and_(rounds.c.task == head_queries.c.task, rounds.c.number == head_queries.c.number)
        answered = rounds.c.state.in_([RoundState.CLOSED.value, RoundState.AGGREGATING.value])
        of_solve = rounds.c.task == task, rounds.c.solve == solve, rounds.c.number <= last, answered
        statement = select(rounds.c.number, rounds.c.question, head_queries.c.body).join(rounds, same).where(*of_solve)
        rows = (await self._connection.execute(statement.order_by(rounds.c.number))).all()
        return [
            HeadAnswers(row.number, HeadQuestion(row.question), bytes(row.body), await self._clients(task, row.number))
            for row in rows
        ]

    async def _clients(self, task: str, number: int) -> tuple[str, ...]:
        statement = select(contributions.c.client).where(contributions.c.task == task, contributions.c.number == number)
        return tuple((await self._connection.scalars(statement.order_by(contributions.c.client))).all())

    async def withdraw(self, task: str, client: str, change: int) -> int:
        """Withdraw all answers of a client with the change `change`; return how many they were."""
        current = contributions.c.task == task, contributions.c.client == client, contributions.c.removed.is_(None)
        statement = update(contributions).where(*current, contributions.c.number.in_(_head_rounds(task)))
        return (await self._connection.execute(statement.values(removed=change))).rowcount

    async def withdrawn(self, task: str, number: int, changes: int | None = None) -> list[str]:
        """Return the clients that answered a round and have withdrawn since, by name; with `changes`, those who had by that change."""
        removed = contributions.c.removed.is_not(None) if changes is None else contributions.c.removed <= changes
        gone = contributions.c.task == task, contributions.c.number == number, removed
        statement = select(contributions.c.client).where(*gone).order_by(contributions.c.client)
        return list((await self._connection.scalars(statement)).all())

    async def deleted(self, task: str, solve: int, last: int) -> list[str]:
        """Return the clients whose answers in a solution, up to round `last`, were deleted after they had withdrawn, by name."""
        of_solve = select(rounds.c.number).where(rounds.c.task == task, rounds.c.solve == solve, rounds.c.number <= last)
        gone = contributions.c.task == task, contributions.c.number.in_(of_solve), func.length(contributions.c.body) == 0
        statement = select(contributions.c.client).where(*gone).distinct().order_by(contributions.c.client)
        return list((await self._connection.scalars(statement)).all())

    async def outdated(self, task: str, changes: int) -> list[int]:
        """Return the versions, one of each solution, whose newest head has answers that were withdrawn by `changes`."""
        same = and_(rounds.c.task == contributions.c.task, rounds.c.number == contributions.c.number)
        newest = (
            select(func.max(head_revisions.c.changes))
            .where(head_revisions.c.task == task, head_revisions.c.solve == rounds.c.solve)
            .correlate(rounds)
            .scalar_subquery()
        )
        unreflected = or_(newest.is_(None), contributions.c.removed > newest)
        made = rounds.c.task == task, rounds.c.kind == RoundKind.HEAD.value, rounds.c.produced.is_not(None)
        statement = select(rounds.c.produced).select_from(contributions.join(rounds, same)).distinct()
        statement = statement.where(*made, contributions.c.removed <= changes, unreflected).order_by(rounds.c.produced)
        return list((await self._connection.scalars(statement)).all())

    async def add_revision(self, revision: HeadRevision, body: bytes) -> None:
        """Store a head made anew."""
        values = {name: getattr(revision, name) for name in _REVISION}
        await self._connection.execute(insert(head_revisions).values(**values, body=body))

    async def revision(self, task: str, solve: int) -> HeadRevision | None:
        """Return the newest head of a solution that was made anew; None when its first one counts."""
        columns = [head_revisions.c[name] for name in _REVISION]
        statement = select(*columns).where(head_revisions.c.task == task, head_revisions.c.solve == solve)
        row = (await self._connection.execute(statement.order_by(head_revisions.c.changes.desc()).limit(1))).one_or_none()
        return None if row is None else HeadRevision(*row)

    async def revision_body(self, revision: HeadRevision) -> bytes:
        """Return the body of a head made anew.

        Raises:
            UnknownRound: it was deleted with its task.
        """
        same = (head_revisions.c[name] == getattr(revision, name) for name in ("task", "solve", "changes"))
        if (body := await self._connection.scalar(select(head_revisions.c.body).where(*same))) is None:
            raise UnknownRound(f"task {revision.task!r} has no head of the solution that began with round {revision.solve}")
        return bytes(body)


def _head_rounds(task: str) -> Select[tuple[int]]:
    return select(rounds.c.number).where(rounds.c.task == task, rounds.c.kind == RoundKind.HEAD.value)
