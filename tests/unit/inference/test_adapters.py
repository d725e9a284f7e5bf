"""Adapters are fetched on first use, kept up to date, swapped whole, let go by age, and refused for another model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from ifed.errors import NothingYet, OtherModel, Unavailable, UnknownTask, UnknownVersion
from ifed.messages.bodies import AdapterBody
from services.inference import adapters as module
from services.inference.adapters import Adapters
from tests.unit.inference.fakes import OTHER, SIZE, FakeSource, Observer, adapters_of, body


async def until(condition: Callable[[], bool], *, seconds: float = 3) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # what is waited for has no event of its own
            await asyncio.sleep(0.01)


def versions(adapters: Adapters[int]) -> dict[str, int]:
    return {one.meta.task: one.loaded for one in adapters.current()}


async def left_alone(monkeypatch: pytest.MonkeyPatch) -> tuple[FakeSource, Adapters[int]]:
    """Adapters with task "a", which nothing follows and every use looks at again, and their source, which has gone."""
    monkeypatch.setattr(module, "FRESH_SECONDS", 0.0)
    source = FakeSource()
    source.promote(body("a", 1))
    adapters = adapters_of(source, max_followed=0)
    await adapters.get("a")
    source.refusal = Unavailable("gone")
    return source, adapters


async def test_an_adapter_is_fetched_once_however_many_ask_at_the_same_time() -> None:
    source, observer = FakeSource(), Observer()
    source.promote(body("a", 1))
    adapters = adapters_of(source, observer)
    found = await asyncio.gather(*(adapters.get("a") for _ in range(5)))
    assert [one.loaded for one in found] == [1] * 5
    assert [asked for asked in source.asked if asked[2] is None] == [("a", None, None)]
    await adapters.get("a")
    assert observer.told["looked up", "a", False] == 1
    assert observer.told["looked up", "a", True] == 1
    await adapters.close()


async def test_a_newer_version_arrives_by_itself() -> None:
    source = FakeSource()
    source.promote(body("a", 1))
    adapters = adapters_of(source)
    before = await adapters.get("a")
    await asyncio.sleep(0.01)
    source.promote(body("a", 2))
    await until(lambda: versions(adapters) == {"a": 2}, seconds=1)
    assert before.loaded == 1, "a request under way keeps the adapter it began with"
    await adapters.close()


async def test_a_task_that_is_not_followed_is_asked_for_again_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRESH_SECONDS", 0.05)
    source = FakeSource()
    source.promote(body("a", 1))
    adapters = adapters_of(source, max_followed=0)
    assert (await adapters.get("a")).loaded == 1
    source.promote(body("a", 2))
    await asyncio.sleep(0.06)
    assert (await adapters.get("a")).loaded == 2
    asked = len(source.asked)
    await adapters.get("a")
    assert len(source.asked) == asked, "a look that is fresh is not repeated"


async def test_an_aggregator_that_is_gone_leaves_the_known_adapter_and_says_so() -> None:
    source, observer = FakeSource(), Observer()
    source.promote(body("a", 1))
    adapters = adapters_of(source, observer)
    await adapters.get("a")
    source.refusal = Unavailable("gone")
    source.bell.set()
    await until(lambda: bool(adapters.stale))
    assert (await adapters.get("a")).loaded == 1
    assert adapters.stale == {"a": "gone"}
    assert observer.told["stale", "a"] >= 1
    with pytest.raises(Unavailable):
        await adapters.get("b")
    source.refusal = None
    await until(lambda: not adapters.stale)
    await adapters.close()


async def test_without_a_long_poll_too_the_known_adapter_stays_while_the_aggregator_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, adapters = await left_alone(monkeypatch)
    assert (await adapters.get("a")).loaded == 1
    assert adapters.stale == {"a": "gone"}
    await adapters.close()


async def test_a_task_that_is_deleted_is_no_longer_served() -> None:
    source = FakeSource()
    source.promote(body("a", 1))
    adapters = adapters_of(source)
    await adapters.get("a")
    await asyncio.sleep(0.01)
    source.versions.clear()
    source.bell.set()
    await until(lambda: not adapters.current())
    with pytest.raises(UnknownTask):
        await adapters.get("a")
    assert adapters.stale == {}, "nothing is late of a task that is gone and that no setting names"
    adapters.want(["a"])
    await until(lambda: adapters.stale == {"a": "no task 'a'"})
    await adapters.close()


@pytest.mark.parametrize("gone", [None, Unavailable("gone")])
async def test_an_adapter_let_go_while_it_is_looked_at_again_still_answers(
    gone: Unavailable | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FRESH_SECONDS", 0.0)
    source = FakeSource()
    source.promote(body("a", 1))
    source.promote(body("b", 1))
    adapters = adapters_of(source, max_followed=0, max_bytes=SIZE)
    await adapters.get("a")
    asked = source.adapter

    async def slow(task: str, **given: Any) -> tuple[str, AdapterBody] | None:
        if task == "a":
            await adapters.get("b")  # takes the room of "a"
            source.refusal = gone
        return await asked(task, **given)

    monkeypatch.setattr(source, "adapter", slow)
    assert (await adapters.get("a")).loaded == 1
    assert len(adapters.current()) == 1
    assert adapters.stale == {}, "what was let go is not late: nobody has asked for it since"
    await adapters.close()


async def test_a_task_with_nothing_yet_is_followed_from_the_start() -> None:
    source = FakeSource()
    source.refusal = NothingYet("no adapter yet")
    adapters = adapters_of(source)
    adapters.want(["a"])
    await asyncio.sleep(0.05)
    source.refusal = None
    source.promote(body("a", 1))
    await until(lambda: versions(adapters) == {"a": 1})
    assert adapters.stale == {}
    await adapters.close()


async def test_a_pinned_version_stays_when_the_task_moves_on() -> None:
    source = FakeSource()
    source.promote(body("a", 1))
    source.promote(body("a", 2))
    adapters = adapters_of(source)
    assert (await adapters.get("a")).loaded == 2
    assert (await adapters.get("a", 1)).loaded == 1
    with pytest.raises(UnknownVersion):
        await adapters.get("a", 9)
    asked = len(source.asked)
    await adapters.get("a", 1)
    assert len(source.asked) == asked, "a version never changes"
    await adapters.close()


async def test_the_least_recently_used_go_when_the_bytes_do_not_suffice() -> None:
    source, observer = FakeSource(), Observer()
    for task in "abc":
        source.promote(body(task, 1))
    adapters = adapters_of(source, observer, max_bytes=2 * SIZE)
    for task in ("a", "b", "a", "c"):
        await adapters.get(task)
    assert versions(adapters) == {"a": 1, "c": 1}
    assert adapters.bytes_held == 2 * SIZE
    assert observer.told["lets go", "b"] == 1
    assert (await adapters.get("b")).loaded == 1
    assert versions(adapters) == {"b": 1, "c": 1}
    source.promote(body("a", 2))
    await asyncio.sleep(0.05)
    assert "a" not in versions(adapters), "what was let go is no longer followed"
    await adapters.close()


async def test_an_adapter_larger_than_the_budget_is_served_all_the_same() -> None:
    source = FakeSource()
    source.promote(body("a", 1))
    adapters = adapters_of(source, max_bytes=1)
    assert (await adapters.get("a")).loaded == 1
    await adapters.close()


async def test_an_adapter_of_another_model_is_refused_by_name() -> None:
    source = FakeSource()
    source.promote(body("a", 1, identity=OTHER))
    adapters = adapters_of(source)
    with pytest.raises(OtherModel, match="calibrated on other"):
        await adapters.get("a")
    await adapters.close()


async def test_the_end_of_a_loss_is_told_though_nobody_asks_for_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.02)
    source = FakeSource()
    source.promote(body("a", 1))
    source.refusal = Unavailable("gone")
    adapters = adapters_of(source, max_followed=0)
    await adapters.fetch_now(["a"])
    assert adapters.stale == {"a": "gone"}
    await asyncio.sleep(0.05)
    assert adapters.stale == {"a": "gone"}, "a look that fails does not end the looking"
    source.refusal = None
    await until(lambda: not adapters.stale)
    assert versions(adapters) == {"a": 1}
    source.refusal = Unavailable("gone again")
    await adapters.fetch_now(["b"])
    source.refusal = None
    source.promote(body("b", 1))
    await until(lambda: not adapters.stale)
    await adapters.close()


async def test_looking_for_what_is_late_outlives_an_error_that_nobody_foresaw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.02)
    source = FakeSource()
    adapters = adapters_of(source, max_followed=0)
    await adapters.fetch_now(["a"])
    asked, broken = source.adapter, [PermissionError("not yours")]

    async def breaking(task: str, **given: Any) -> tuple[str, AdapterBody] | None:
        if broken:
            raise broken.pop()
        return await asked(task, **given)

    monkeypatch.setattr(source, "adapter", breaking)
    source.promote(body("a", 1))
    await until(lambda: not adapters.stale)
    assert not broken
    await adapters.close()


async def test_a_task_that_was_let_go_and_is_deleted_is_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.02)
    source, adapters = await left_alone(monkeypatch)
    await adapters.get("a")
    assert adapters.stale == {"a": "gone"}
    source.versions.clear()
    source.refusal = None
    await until(lambda: not adapters.stale)
    assert adapters.current() == []
    await adapters.close()


async def test_a_source_that_is_not_followed_is_read_once_at_the_start_and_says_what_cannot_be_had() -> None:
    source = FakeSource()
    source.promote(body("a", 1))
    source.promote(body("b", 1, identity=OTHER))
    adapters = adapters_of(source, max_followed=0)
    await adapters.fetch_now(["a", "b", "c"])
    assert versions(adapters) == {"a": 1}
    assert "calibrated on other" in adapters.stale["b"]
    assert adapters.stale["c"] == "no task 'c'"
    source.promote(body("c", 1))
    assert (await adapters.get("c")).loaded == 1
    assert "c" not in adapters.stale
    await adapters.close()
