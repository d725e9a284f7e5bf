"""What every store must do with the queries of head rounds."""

from __future__ import annotations

import pytest

from ifed.errors import UnknownRound
from ifed.messages.enums import HeadQuestion, HeadState, RoundKind, RoundState
from ifed.messages.rounds import ReadingResult
from services.aggregator.domain.aggregates import HeadAnswers
from services.aggregator.domain.evaluation import EvaluationResult
from services.aggregator.storage.database import Database
from testing.factories import NOON, round_, update_contribution
from tests.contract.rounds_contract import with_task


async def with_head_round(database: Database, number: int, question: HeadQuestion, *clients: str, version: int = 0) -> None:
    """Store a closed head round of the solution that began with round 1, answered by `clients`."""
    async with database.unit_of_work() as work:
        head = round_(number, RoundKind.HEAD, version=version, question=question, solve=1, context=1)
        await work.rounds.add(head, clients)
        await work.heads.add("sentiment", number, f"query {number}".encode())
        for client in clients:
            await work.rounds.record(head, update_contribution(client))
        head.state, head.closed_at = RoundState.CLOSED, NOON
        await work.rounds.save(head)
        await work.commit()


class HeadsContract:
    """Head rounds and what they ask."""

    async def test_the_next_question_is_that_of_the_newest_closed_round_for_the_version(self, database: Database) -> None:
        await with_task(database, "a", "b")
        await with_head_round(database, 1, HeadQuestion.MOMENT, "a", "b")
        async with database.unit_of_work() as work:
            assert await work.heads.next_question("sentiment", 0) is None
            await work.heads.put_next("sentiment", 1, HeadQuestion.PRODUCT, b"directions")
            await work.commit()
        async with database.read_only() as work:
            pending = await work.heads.next_question("sentiment", 0)
            assert pending is not None
            assert (pending.round, pending.solve, pending.question, pending.query) == (1, 1, HeadQuestion.PRODUCT, b"directions")
            assert (pending.context, pending.clients) == (1, ("a", "b"))
            assert await work.heads.next_question("sentiment", 3) is None, "of another version"
            assert await work.heads.asked_after("sentiment", 1) == (HeadQuestion.PRODUCT, b"directions")
        await with_head_round(database, 2, HeadQuestion.LIKELIHOOD, "a")
        async with database.read_only() as work:
            assert await work.heads.next_question("sentiment", 0) is None, "the solution has ended"

    async def test_the_rounds_of_a_solution_come_with_who_answered(self, database: Database) -> None:
        await with_task(database, "a", "b")
        await with_head_round(database, 1, HeadQuestion.MOMENT, "b", "a")
        await with_head_round(database, 2, HeadQuestion.PRODUCT, "a")
        async with database.unit_of_work() as work:
            cancelled = round_(3, RoundKind.HEAD, question=HeadQuestion.PRODUCT, solve=1, state=RoundState.CANCELLED)
            await work.rounds.add(cancelled, ["a"])
            await work.heads.add("sentiment", 3, b"nobody answered")
            await work.commit()
        async with database.read_only() as work:
            assert await work.heads.of_solve("sentiment", 1, 3) == [
                HeadAnswers(1, HeadQuestion.MOMENT, b"query 1", ("a", "b")),
                HeadAnswers(2, HeadQuestion.PRODUCT, b"query 2", ("a",)),
            ]
            assert len(await work.heads.of_solve("sentiment", 1, 1)) == 1
            assert await work.heads.query("sentiment", 3) == b"nobody answered"
            with pytest.raises(UnknownRound, match="no head round 9"):
                await work.heads.query("sentiment", 9)

    async def test_a_round_keeps_its_question_and_every_reading_of_its_evaluation(self, database: Database) -> None:
        await with_task(database, "a")
        words = ReadingResult(reading="words", accuracy=0.5, macro_f1=0.4, log_likelihood=-0.9)
        head = ReadingResult(reading="head", accuracy=0.75, macro_f1=0.7, log_likelihood=-0.5)
        evaluation = EvaluationResult(0.75, 0.7, 8, None, -0.5, "head", (words, head))
        async with database.unit_of_work() as work:
            kept = round_(1, RoundKind.HEAD, question=HeadQuestion.SUMS, solve=1, evaluation=evaluation)
            await work.rounds.add(kept, ["a"])
            await work.commit()
        async with database.read_only() as work:
            assert await work.rounds.get("sentiment", 1) == kept

    async def test_a_task_keeps_the_state_of_its_head(self, database: Database) -> None:
        await with_task(database, "a")
        async with database.unit_of_work() as work:
            task = await work.tasks.get("sentiment", for_update=True)
            task.head = HeadState.SOLVED
            await work.tasks.save(task)
            await work.commit()
        async with database.read_only() as work:
            assert (await work.tasks.get("sentiment")).head is HeadState.SOLVED
