"""The lane: what arrives together is done together, what arrives alone at once, and one bad item spoils nothing for the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from ifed.errors import Unavailable, WrongState
from services.aggregator.runtime.group_commit import GroupCommit


class Kept:
    """Does what it is given, a turn of the loop later, and remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.spoils: set[int] = set()

    async def do(self, topic: str, items: Sequence[int]) -> list[int | Exception]:
        self.batches.append((topic, list(items)))
        await asyncio.sleep(0.01)
        if self.spoils & set(items):
            raise Unavailable("away")
        return [10 * item if item >= 0 else WrongState("below zero") for item in items]


async def test_what_arrives_while_a_batch_is_done_makes_the_next_one() -> None:
    kept = Kept()
    lane: GroupCommit[str, int, int] = GroupCommit(kept.do, most=3)
    first = asyncio.create_task(lane.put("a", 1))
    await asyncio.sleep(0.001)
    rest = await asyncio.gather(*(lane.put("a", item) for item in range(2, 7)))
    assert (await first, rest) == (10, [20, 30, 40, 50, 60])
    assert kept.batches == [("a", [1]), ("a", [2, 3, 4]), ("a", [5, 6])]


async def test_two_topics_do_not_wait_for_each_other() -> None:
    kept = Kept()
    lane: GroupCommit[str, int, int] = GroupCommit(kept.do, most=3)
    await asyncio.gather(lane.put("a", 1), lane.put("b", 2))
    assert kept.batches == [("a", [1]), ("b", [2])]


async def test_a_refused_item_refuses_no_other() -> None:
    lane: GroupCommit[str, int, int] = GroupCommit(Kept().do, most=3)
    answers = await asyncio.gather(*(lane.put("a", item) for item in (1, -1, 2)), return_exceptions=True)
    assert [answers[0], answers[2]] == [10, 20]
    assert isinstance(answers[1], WrongState)


async def test_when_a_batch_fails_each_item_is_tried_once_more_alone() -> None:
    kept = Kept()
    kept.spoils = {2}
    lane: GroupCommit[str, int, int] = GroupCommit(kept.do, most=3)
    answers = await asyncio.gather(*(lane.put("a", item) for item in (1, 2, 3)), return_exceptions=True)
    assert [answers[0], answers[2]] == [10, 30]
    assert isinstance(answers[1], Unavailable)
    assert kept.batches == [("a", [1, 2, 3]), ("a", [1]), ("a", [2]), ("a", [3])]


async def test_a_caller_who_gives_up_leaves_the_others_their_answers() -> None:
    lane: GroupCommit[str, int, int] = GroupCommit(Kept().do, most=3)
    gone, stays = (asyncio.create_task(lane.put("a", item)) for item in (1, 2))
    await asyncio.sleep(0.001)
    gone.cancel()
    assert await stays == 20
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert await lane.put("a", 3) == 30, "the lane goes on"
