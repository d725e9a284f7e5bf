"""Long polling: no notification is lost, nothing waits longer than it must."""

from __future__ import annotations

import asyncio
import time

from prometheus_client import CollectorRegistry

from services.aggregator.metrics import Metrics
from services.aggregator.runtime.long_poll import Caller, LongPoll
from testing.fakes import SwitchableCache

LONG, SHORT = 5.0, 0.05


class Row:
    """What a poll reads."""

    def __init__(self) -> None:
        self.value, self.reads = 0, 0

    async def read(self) -> int:
        self.reads += 1
        return self.value


def long_poll(cache: SwitchableCache, *, recheck: float = LONG, longest: float = LONG) -> LongPoll:
    return LongPoll(cache, Metrics(CollectorRegistry()).long_polls, recheck=recheck, longest=longest)


async def test_a_settled_value_is_returned_at_once() -> None:
    row = Row()
    assert await long_poll(SwitchableCache()).until("t", row.read, lambda seen: seen == 0, wait=LONG) == 0
    assert row.reads == 1


async def test_a_change_published_during_the_read_is_not_missed() -> None:
    cache, row = SwitchableCache(), Row()

    async def read_and_change_right_after() -> int:
        seen = await row.read()
        if not seen:
            row.value = 1
            await cache.publish("t")
        return seen

    began = time.monotonic()
    assert await long_poll(cache).until("t", read_and_change_right_after, bool, wait=LONG) == 1
    assert time.monotonic() - began < 1


async def test_a_poll_without_notification_returns_the_last_value() -> None:
    assert await long_poll(SwitchableCache()).until("t", Row().read, bool, wait=SHORT) == 0


async def test_a_poll_waits_no_longer_than_the_service_allows() -> None:
    began = time.monotonic()
    await long_poll(SwitchableCache(), longest=SHORT).until("t", Row().read, bool, wait=3600)
    assert time.monotonic() - began < 1


async def test_without_notifications_a_poll_reads_again_by_itself() -> None:
    cache, row = SwitchableCache(), Row()
    cache.down = True
    waiting = asyncio.create_task(long_poll(cache, recheck=SHORT).until("t", row.read, bool, wait=LONG))
    await asyncio.sleep(SHORT / 2)
    row.value = 1
    await cache.publish("t")
    assert await waiting == 1


async def test_closing_answers_every_waiting_request() -> None:
    polling = long_poll(SwitchableCache())
    waiting = [asyncio.create_task(polling.until(topic, Row().read, bool, wait=LONG)) for topic in ("a", "a", "b")]
    await asyncio.sleep(SHORT)
    began = time.monotonic()
    await polling.close()
    assert await asyncio.gather(*waiting) == [0, 0, 0]
    assert time.monotonic() - began < 1
    assert await polling.until("a", Row().read, bool, wait=LONG) == 0, "later requests do not wait"


async def test_the_oldest_request_of_a_party_is_answered_when_it_holds_too_many() -> None:
    polling = LongPoll(
        SwitchableCache(), Metrics(CollectorRegistry()).long_polls, recheck=LONG, longest=LONG, most=5, most_of_party=3
    )

    def poll(party: str) -> asyncio.Task[int]:
        return asyncio.create_task(polling.until("t", Row().read, bool, wait=LONG, caller=Caller(party)))

    greedy, others = [poll("a") for _ in range(4)], [poll("b"), poll("c")]
    await asyncio.sleep(SHORT)
    assert [task.done() for task in greedy + others] == [True, False, False, False, False, False]
    others.append(poll("d"))
    await asyncio.sleep(SHORT)
    assert [task.done() for task in greedy + others] == [True, True, False, False, False, False, False], "the oldest of all"
    await polling.close()
    await asyncio.gather(*greedy, *others)
    assert not polling._held
    assert not polling._by_party


async def test_a_request_whose_caller_has_hung_up_is_not_held_to_its_end() -> None:
    async def has_hung_up() -> bool:
        return True

    began = time.monotonic()
    await long_poll(SwitchableCache()).until("t", Row().read, bool, wait=LONG, caller=Caller("a", has_hung_up))
    assert time.monotonic() - began < 1


async def test_waiting_requests_read_a_few_at_a_time() -> None:
    cache, reading, most = SwitchableCache(), 0, 0
    polling = LongPoll(cache, Metrics(CollectorRegistry()).long_polls, recheck=LONG, longest=LONG, readers=3)

    async def read() -> bool:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        await asyncio.sleep(0)
        reading -= 1
        return polling.closing

    waiting = [asyncio.create_task(polling.until("t", read, bool, wait=LONG)) for _ in range(50)]
    await asyncio.sleep(SHORT)
    await polling.close()
    await asyncio.gather(*waiting)
    assert most == 3
