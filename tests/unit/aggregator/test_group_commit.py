"""Group commit: what arrives together is processed together, what arrives alone at once, and one bad item does not spoil the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from ifed.errors import Unavailable, WrongState
from services.aggregator.runtime.group_commit import GroupCommit


class Processor:
    """Multiplies items by ten, a moment later, and records the batches."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.failing: set[int] = set()

    async def process(self, topic: str, items: Sequence[int]) -> list[int | Exception]:
        self.batches.append((topic, list(items)))
        await asyncio.sleep(0.01)
        if self.failing & set(items):
            raise Unavailable("away")
        return [10 * item if item >= 0 else WrongState("below zero") for item in items]


async def test_items_that_arrive_during_a_batch_form_the_next() -> None:
    processor = Processor()
    commits: GroupCommit[str, int, int] = GroupCommit(processor.process, most=3)
    first = asyncio.create_task(commits.put("a", 1))
    await asyncio.sleep(0.001)
    rest = await asyncio.gather(*(commits.put("a", item) for item in range(2, 7)))
    assert (await first, rest) == (10, [20, 30, 40, 50, 60])
    assert processor.batches == [("a", [1]), ("a", [2, 3, 4]), ("a", [5, 6])]


async def test_two_topics_do_not_wait_for_each_other() -> None:
    processor = Processor()
    commits: GroupCommit[str, int, int] = GroupCommit(processor.process, most=3)
    await asyncio.gather(commits.put("a", 1), commits.put("b", 2))
    assert processor.batches == [("a", [1]), ("b", [2])]


async def test_a_refused_item_does_not_refuse_the_others() -> None:
    commits: GroupCommit[str, int, int] = GroupCommit(Processor().process, most=3)
    answers = await asyncio.gather(*(commits.put("a", item) for item in (1, -1, 2)), return_exceptions=True)
    assert [answers[0], answers[2]] == [10, 20]
    assert isinstance(answers[1], WrongState)


async def test_when_a_batch_fails_each_item_is_retried_alone() -> None:
    processor = Processor()
    processor.failing = {2}
    commits: GroupCommit[str, int, int] = GroupCommit(processor.process, most=3)
    answers = await asyncio.gather(*(commits.put("a", item) for item in (1, 2, 3)), return_exceptions=True)
    assert [answers[0], answers[2]] == [10, 30]
    assert isinstance(answers[1], Unavailable)
    assert processor.batches == [("a", [1, 2, 3]), ("a", [1]), ("a", [2]), ("a", [3])]


async def test_a_cancelled_caller_leaves_the_others_their_results() -> None:
    commits: GroupCommit[str, int, int] = GroupCommit(Processor().process, most=3)
    gone, stays = (asyncio.create_task(commits.put("a", item)) for item in (1, 2))
    await asyncio.sleep(0.001)
    gone.cancel()
    assert await stays == 20
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert await commits.put("a", 3) == 30, "it still works"
