"""Adapters are fetched on first use, kept up to date, replaced in one step, evicted by age, and refused for another model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from ifed.errors import NothingYet, OtherModel, Overloaded, Unavailable, UnknownTask, UnknownVersion
from ifed.messages.bodies import AdapterBody
from services.inference import adapters as module
from services.inference.adapters import AdapterCache
from tests.unit.inference.fakes import NBYTES, OTHER_IDENTITY, FakeSource, adapters_of, body, metrics_of, sample


async def until(condition: Callable[[], bool], *, seconds: float = 3) -> None:
    """Poll until a condition holds that no event announces."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def version(adapters: AdapterCache, task: str, pinned: int | None = None) -> int:
    """Return the version of the adapter that a request gets now."""
    return (await adapters.get(task, pinned)).meta.version


def versions(adapters: AdapterCache) -> dict[str, int]:
    """Return the cached versions without a pin, by task."""
    return {adapter.meta.task: adapter.meta.version for adapter in adapters.current()}


async def unreachable(monkeypatch: pytest.MonkeyPatch) -> tuple[FakeSource, AdapterCache]:
    """Return a cache with task "a", not followed and refreshed at every use, and its source, which has become unreachable."""
    monkeypatch.setattr(module, "FRESH_SECONDS", 0.0)
    source = FakeSource()
    source.promote(body("a", 1))
    adapters = adapters_of(source, max_followed=0)
    await adapters.get("a")
    source.refusal = Unavailable("unreachable")
    return source, adapters


async def test_an_adapter_is_fetched_once_for_concurrent_requests() -> None:
    source, metrics = FakeSource(), metrics_of()
    source.promote(body("a", 1))
    adapters = adapters_of(source, metrics)
    assert await asyncio.gather(*(version(adapters, "a") for _ in range(5))) == [1] * 5
    assert [request for request in source.requests if request[2] is None] == [("a", None, None)]
    await adapters.get("a")
    assert sample(metrics, "adapter_lookups_total", task="a", found="fetched") == 1
    assert sample(metrics, "adapter_lookups_total", task="a", found="held") == 1
    await adapters.close()


async def test_a_followed_task_gets_the_newer_version_without_a_request() -> None:
    source = FakeSource()
    source.promote(body("a", 1))
    adapters = adapters_of(source)
    before = await adapters.get("a")
    await asyncio.sleep(0.01)
    source.promote(body("a", 2))
    await until(lambda: versions(adapters) == {"a": 2}, seconds=1)
    assert before.meta.version == 1, "a running request keeps its adapter"
    await adapters.close()


async def test_a_task_that_is_not_followed_is_refreshed_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRESH_SECONDS", 0.05)
    source = FakeSource()
    source.promote(body("a", 1))
    adapters = adapters_of(source, max_followed=0)
    assert await version(adapters, "a") == 1
    source.promote(body("a", 2))
    await asyncio.sleep(0.06)
    assert await version(adapters, "a") == 2
    requests = len(source.requests)
    await adapters.get("a")
    assert len(source.requests) == requests, "a fresh adapter is not refreshed"


async def test_a_followed_adapter_stays_in_use_while_the_source_is_unreachable() -> None:
    source, metrics = FakeSource(), metrics_of()
    source.promote(body("a", 1))
    adapters = adapters_of(source, metrics)
    await adapters.get("a")
    source.refusal = Unavailable("unreachable")
    source.changed.set()
    await until(lambda: bool(adapters.stale))
    assert await version(adapters, "a") == 1
    assert adapters.stale == {"a": "unreachable"}
    assert sample(metrics, "adapter_stale", task="a") == 1
    with pytest.raises(Unavailable):
        await adapters.get("b")
    source.refusal = None
    await until(lambda: not adapters.stale)
    assert sample(metrics, "adapter_stale", task="a") == 0
    await adapters.close()


async def test_an_adapter_without_a_follower_stays_in_use_while_the_source_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    _, adapters = await unreachable(monkeypatch)
    assert await version(adapters, "a") == 1
    assert adapters.stale == {"a": "unreachable"}
    await adapters.close()


async def test_a_deleted_task_is_no_longer_served() -> None:
    source = FakeSource()
    source.promote(body("a", 1))
    adapters = adapters_of(source)
    await adapters.get("a")
    await asyncio.sleep(0.01)
    source.versions.clear()
    source.changed.set()
    await until(lambda: not adapters.current())
    with pytest.raises(UnknownTask):
        await adapters.get("a")
    assert adapters.stale == {}, "a deleted task that no setting names is not stale"
    adapters.follow(["a"])
    await until(lambda: adapters.stale == {"a": "no task 'a'"})
    await adapters.close()


@pytest.mark.parametrize("refusal", [None, Unavailable("unreachable")])
async def test_an_adapter_that_is_evicted_during_its_refresh_still_answers(
    refusal: Unavailable | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FRESH_SECONDS", 0.0)
    source = FakeSource()
    source.promote(body("a", 1))
    source.promote(body("b", 1))
    adapters = adapters_of(source, max_followed=0, max_bytes=NBYTES)
    await adapters.get("a")
    answer = source.adapter

    async def evict_first(task: str, **options: Any) -> tuple[str, AdapterBody] | None:
        if task == "a":
            await adapters.get("b")  # evicts "a"
            source.refusal = refusal
        return await answer(task, **options)

    monkeypatch.setattr(source, "adapter", evict_first)
    assert await version(adapters, "a") == 1
    assert len(adapters.current()) == 1
    assert adapters.stale == {}, "an evicted adapter that was not requested since is not stale"
    await adapters.close()


async def test_a_configured_task_without_an_adapter_is_followed_from_the_start() -> None:
    source = FakeSource()
    source.refusal = NothingYet("no adapter yet")
    adapters = adapters_of(source)
    adapters.follow(["a"])
    await asyncio.sleep(0.05)
    source.refusal = None
    source.promote(body("a", 1))
    await until(lambda: versions(adapters) == {"a": 1})
    assert adapters.stale == {}
    await adapters.close()


async def test_a_pinned_version_stays_when_another_is_promoted() -> None:
    source = FakeSource()
    source.promote(body("a", 1))
    source.promote(body("a", 2))
    adapters = adapters_of(source)
    assert await version(adapters, "a") == 2
    assert await version(adapters, "a", 1) == 1
    with pytest.raises(UnknownVersion):
        await adapters.get("a", 9)
    requests = len(source.requests)
    await adapters.get("a", 1)
    assert len(source.requests) == requests, "a version never changes"
    await adapters.close()


async def test_the_least_recently_used_adapters_are_evicted_beyond_the_size() -> None:
    source, metrics = FakeSource(), metrics_of()
    for task in "abc":
        source.promote(body(task, 1))
    adapters = adapters_of(source, metrics, max_bytes=2 * NBYTES)
    for task in ("a", "b", "a", "c"):
        await adapters.get(task)
    assert versions(adapters) == {"a": 1, "c": 1}
    assert adapters.nbytes == 2 * NBYTES
    assert sample(metrics, "adapter_version", task="b") is None
    assert await version(adapters, "b") == 1
    assert versions(adapters) == {"b": 1, "c": 1}
    source.promote(body("a", 2))
    await asyncio.sleep(0.05)
    assert "a" not in versions(adapters), "an evicted task is no longer followed"
    await adapters.close()


async def test_an_adapter_larger_than_the_cache_is_served_all_the_same() -> None:
    source = FakeSource()
    source.promote(body("a", 1))
    adapters = adapters_of(source, max_bytes=1)
    assert await version(adapters, "a") == 1
    await adapters.close()


async def test_an_adapter_of_another_model_is_refused_with_its_name() -> None:
    source = FakeSource()
    source.promote(body("a", 1, identity=OTHER_IDENTITY))
    adapters = adapters_of(source)
    with pytest.raises(OtherModel, match="calibrated on other"):
        await adapters.get("a")
    await adapters.close()


async def test_stale_adapters_are_retried_until_they_are_fresh_without_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PAUSE", 0.02)
    source = FakeSource()
    source.promote(body("a", 1))
    source.refusal = Unavailable("unreachable")
    adapters = adapters_of(source, max_followed=0)
    await adapters.preload(["a"])
    assert adapters.stale == {"a": "unreachable"}
    await asyncio.sleep(0.05)
    assert adapters.stale == {"a": "unreachable"}, "a failed retry is followed by another"
    source.refusal = None
    await until(lambda: not adapters.stale)
    assert versions(adapters) == {"a": 1}
    source.refusal = Unavailable("unreachable again")
    await adapters.preload(["b"])
    source.refusal = None
    source.promote(body("b", 1))
    await until(lambda: not adapters.stale)
    await adapters.close()


async def test_retries_survive_an_unexpected_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PAUSE", 0.02)
    source = FakeSource()
    adapters = adapters_of(source, max_followed=0)
    await adapters.preload(["a"])
    answer, errors = source.adapter, [PermissionError("not readable")]

    async def fail_once(task: str, **options: Any) -> tuple[str, AdapterBody] | None:
        if errors:
            raise errors.pop()
        return await answer(task, **options)

    monkeypatch.setattr(source, "adapter", fail_once)
    source.promote(body("a", 1))
    await until(lambda: not adapters.stale)
    assert not errors
    await adapters.close()


async def test_a_stale_task_that_is_deleted_is_no_longer_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PAUSE", 0.02)
    source, adapters = await unreachable(monkeypatch)
    await adapters.get("a")
    assert adapters.stale == {"a": "unreachable"}
    source.versions.clear()
    source.refusal = None
    await until(lambda: not adapters.stale)
    assert adapters.current() == []
    await adapters.close()


async def test_a_source_without_a_long_poll_is_read_at_the_start_and_failures_are_stale() -> None:
    source = FakeSource()
    source.promote(body("a", 1))
    source.promote(body("b", 1, identity=OTHER_IDENTITY))
    adapters = adapters_of(source, max_followed=0)
    await adapters.preload(["a", "b", "c"])
    assert versions(adapters) == {"a": 1}
    assert "calibrated on other" in adapters.stale["b"]
    assert adapters.stale["c"] == "no task 'c'"
    source.promote(body("c", 1))
    assert await version(adapters, "c") == 1
    assert "c" not in adapters.stale
    await adapters.close()


@pytest.mark.parametrize("max_followed", [8, 0])
async def test_what_was_withdrawn_is_served_no_longer_than_a_second(max_followed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source, metrics = FakeSource(), metrics_of()
    source.promote(body("a", 1))
    adapters = adapters_of(source, metrics, max_followed=max_followed)
    assert [await version(adapters, "a"), await version(adapters, "a", 1)] == [1, 1]
    await asyncio.sleep(0.01)
    source.withdraw("a")
    async with asyncio.timeout(1):
        while True:
            try:
                await adapters.get("a")
            except NothingYet:
                break
            await asyncio.sleep(0.05)
    assert (adapters.current(), adapters.stale) == ([], {})
    assert sample(metrics, "adapter_version", task="a") is None
    requests = len(source.requests)
    assert await version(adapters, "a", 1) == 1, "the source still answers for the version"
    assert len(source.requests) == requests + 1, "a pinned version is asked for again when nothing is served"
    source.versions["a"].clear()
    monkeypatch.setattr(module, "PINNED_SECONDS", 0.0)
    adapters._entries["a", 1].fresh_until = 0.0
    with pytest.raises(UnknownVersion):
        await adapters.get("a", 1)
    assert adapters.nbytes == 0
    await adapters.close()


async def test_a_pinned_version_stays_in_use_while_the_source_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PINNED_SECONDS", 0.0)
    source = FakeSource()
    source.promote(body("a", 1))
    adapters = adapters_of(source)
    await adapters.get("a", 1)
    source.refusal = Unavailable("unreachable")
    assert await version(adapters, "a", 1) == 1
    assert adapters.stale == {}, "the task that is served is not stale"
    await adapters.close()


async def test_a_withdrawn_task_that_a_setting_names_is_served_again_when_it_is_promoted() -> None:
    source = FakeSource()
    source.promote(body("a", 1))
    adapters = adapters_of(source)
    adapters.follow(["a"])
    await until(lambda: versions(adapters) == {"a": 1})
    source.withdraw("a")
    await until(lambda: adapters.stale == {"a": "task 'a' has no adapter to serve now"}, seconds=1)
    assert adapters.current() == []
    source.withdrawn.clear()
    source.promote(body("a", 2))
    await until(lambda: versions(adapters) == {"a": 2})
    await adapters.close()


async def test_a_name_that_does_not_exist_is_asked_for_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    source = FakeSource()
    adapters = adapters_of(source)
    for pinned in (None, None, 1, 2):
        with pytest.raises(UnknownTask):
            await adapters.get("nobody", pinned, caller="one")
    assert source.requests == [("nobody", None, None)], "an unknown task has no versions either"
    source.promote(body("a", 1))
    source.withdraw("a")
    for _ in range(2):
        with pytest.raises(NothingYet):
            await adapters.get("a", caller="one")
    assert (await adapters.get("a", 1, caller="one")).meta.version == 1, "a task of which nothing is served has versions"
    assert len(source.requests) == 3
    monkeypatch.setattr(module, "MISSING_SECONDS", 0.0)
    adapters._missing.clear()
    with pytest.raises(UnknownTask):
        await adapters.get("other", caller="one")
    source.promote(body("other", 1))
    assert (await adapters.get("other", caller="one")).meta.version == 1
    monkeypatch.setattr(module, "MAX_MISSING", 3)
    for number in range(5):
        with pytest.raises(UnknownTask):
            await adapters.get(f"unknown-{number}", caller="one")
    assert len(adapters._missing) == 3
    await adapters.close()


async def test_one_caller_cannot_use_up_the_look_ups_of_the_others() -> None:
    source = FakeSource()
    source.promote(body("a", 1))
    adapters = adapters_of(source, max_followed=0, lookups=5)
    for number in range(5):
        with pytest.raises(UnknownTask):
            await adapters.get(f"unknown-{number}", caller="one")
    with pytest.raises(Overloaded, match="one has named 5 tasks") as refused:
        await adapters.get("a", caller="one")
    assert 1 <= (refused.value.retry_after or 0) <= 60
    assert (await adapters.get("a", caller="two")).meta.version == 1
    assert (await adapters.get("a", caller="one")).meta.version == 1, "what is cached needs no look-up"
    await adapters.close()
