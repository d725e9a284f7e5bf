"""Closing rounds and serving their aggregates, against the fakes and a clock that stands still."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry

from ifed.errors import NothingYet, Unavailable
from ifed.messages.bodies import AdapterBody, read_context
from ifed.messages.enums import RoundKind, RoundState, TaskState
from ifed.messages.tasks import TaskSpec
from ifed.tensors.values import TensorBody
from services.aggregator.application.dependencies import Dependencies
from services.aggregator.application.participation import read_context_body, read_update_body
from services.aggregator.application.services import Services
from services.aggregator.metrics import Metrics
from services.aggregator.runtime.long_poll import LongPoll
from services.aggregator.runtime.rate_limit import RateLimiter
from testing.factories import ADMIN_TOKEN, context_body, join_request, party, spec, update_body
from tests.fakes import FakeClock, FakeStore, SwitchableCache

CLAIM_SECONDS = 15.0


@dataclass
class World:
    """An aggregator whose every surrounding is a fake."""

    store: FakeStore = field(default_factory=FakeStore)
    cache: SwitchableCache = field(default_factory=SwitchableCache)
    clock: FakeClock = field(default_factory=FakeClock)

    def replica(self) -> Services:
        metrics = Metrics(CollectorRegistry())
        polls = LongPoll(self.cache, metrics.long_polls, recheck=1.0, longest=5.0)
        backstage = Dependencies(self.store, self.cache, metrics, polls, lambda: None, self.clock)
        return Services(backstage, RateLimiter(None, None, "ifed"), admin_token=ADMIN_TOKEN, claim_seconds=CLAIM_SECONDS)

    async def gathering(self, *clients: str, given: TaskSpec | None = None) -> Services:
        """A task whose context round has opened for `clients`."""
        service = self.replica()
        await service.administration.create(given or spec(clients_expected=len(clients)))
        for client in clients:
            self.store.rows.parties[client] = party(client)
            await service.participation.join("sentiment", client, join_request())
        await service.administration.start("sentiment")
        return service

    def state(self, number: int) -> RoundState:
        return self.store.rows.rounds["sentiment", number].state


async def send_context(service: Services, client: str, value: float = 1.0) -> None:
    await service.participation.submit("sentiment", 1, client, context_body(value), read_context_body)


async def test_a_full_round_closes_and_the_next_opens() -> None:
    world = World()
    service = await world.gathering("a", "b")
    await send_context(service, "a")
    await service.closing.run_due()
    assert world.state(1) is RoundState.OPEN
    await send_context(service, "b")
    await service.closing.run_due()
    assert (world.state(1), world.state(2)) == (RoundState.CLOSED, RoundState.OPEN)
    assert world.store.rows.rounds["sentiment", 2].kind is RoundKind.CALIBRATION


async def test_of_two_replicas_that_close_one_round_at_once_one_result_is_kept() -> None:
    world = World()
    one = await world.gathering("a")
    two = world.replica()
    await send_context(one, "a")
    claimed = world.store.rows.rounds["sentiment", 1]
    await asyncio.gather(*(service.closing._aggregate(claimed) for service in (one, two)))
    assert [number for _, number in world.store.rows.rounds] == [1, 2]
    assert world.cache.published.count("sentiment") >= 1


async def test_a_round_claimed_by_a_replica_that_died_is_closed_by_another() -> None:
    world = World()
    died = await world.gathering("a")
    await send_context(died, "a")
    assert await died.closing._claim() is not None
    other = world.replica()
    await other.closing.run_due()
    assert world.state(1) is RoundState.AGGREGATING
    world.clock.forward(CLAIM_SECONDS)
    await other.closing.run_due()
    assert world.state(1) is RoundState.CLOSED


async def test_a_database_lost_while_closing_leaves_the_round_for_later() -> None:
    world = World()
    service = await world.gathering("a")
    await send_context(service, "a")
    claimed = await service.closing._claim()
    assert claimed is not None

    class Away(FakeStore):
        def unit_of_work(self):  # type: ignore[no-untyped-def]  # never gives what it promises
            raise Unavailable("away")

    away = Away()
    away.rows = world.store.rows
    broken = World(away, world.cache, world.clock).replica()
    with pytest.raises(Unavailable):
        await broken.closing._aggregate(claimed)
    assert world.state(1) is RoundState.AGGREGATING
    await service.closing._aggregate(claimed)
    assert world.state(1) is RoundState.CLOSED


async def test_a_round_that_cannot_be_aggregated_fails_with_its_task() -> None:
    world = World()
    service = await world.gathering("a")
    await send_context(service, "a")
    world.store.rows.bodies["sentiment", 1, "a", 0].body = b"damaged on disk"
    await service.closing.run_due()
    task = world.store.rows.tasks["sentiment"]
    assert (world.state(1), task.state) == (RoundState.FAILED, TaskState.FAILED)
    assert task.reason is not None
    assert task.reason.startswith("round 1 (context) failed: it could not be aggregated")


async def test_a_task_deleted_while_a_round_is_summed_up_is_no_error() -> None:
    world = World()
    service = await world.gathering("a")
    await send_context(service, "a")
    claimed = await service.closing._claim()
    assert claimed is not None
    await service.administration.pause("sentiment")
    await service.administration.delete("sentiment")
    await service.closing._aggregate(claimed)
    assert world.store.rows.rounds == {}


async def test_a_deadline_fires_when_the_clock_says_so_and_not_before() -> None:
    world = World()
    service = await world.gathering("a", "b", given=spec(deadline_seconds=60, quorum=1))
    await send_context(service, "a")
    world.clock.forward(59)
    await service.closing.run_due()
    assert world.state(1) is RoundState.OPEN
    world.clock.forward(1)
    await service.closing.run_due()
    assert world.state(1) is RoundState.CLOSED


async def test_every_party_gets_the_numbers_that_are_stored() -> None:
    world = World()
    service = await world.gathering("a", "b")
    await send_context(service, "a", 0.1)
    await send_context(service, "b", 0.2)
    await service.closing.run_due()
    await world.cache.close()
    first, cached = await service.serving.context("sentiment"), await service.serving.context("sentiment")
    assert first == cached
    assert first.body == world.store.rows.contexts["sentiment", 1][1]
    assert read_context(TensorBody.from_bytes(first.body)).values.dtype == "float32"
    assert TensorBody.from_bytes(first.body).tensors["context"].dtype == "float16"


async def test_an_adapter_is_never_served_stale() -> None:
    world = World()
    service = await world.gathering("a")
    await send_context(service, "a")
    await service.closing.run_due()
    with pytest.raises(NothingYet):
        await service.serving.adapter("sentiment", None, known=frozenset(), wait=0)
    versions = []
    for number, right in ((2, 2), (3, 4)):
        body = update_body(version=number - 2, confusion=[[right, 4 - right], [0, 4]])
        await service.participation.submit("sentiment", number, "a", body, read_update_body)
        await service.closing.run_due()
        served = await service.serving.adapter("sentiment", None, known=frozenset(), wait=0)
        meta = AdapterBody.from_bytes(served.body).meta
        versions.append((meta.version, None if meta.evaluation is None else meta.evaluation.accuracy))
    assert versions == [(0, 0.75), (1, 1.0)]


async def test_without_a_cache_everything_is_served_from_the_truth() -> None:
    world = World()
    service = await world.gathering("a")
    await send_context(service, "a")
    await service.closing.run_due()
    with_cache = await service.serving.coefficients("sentiment", 0)
    world.cache.down = True
    assert await service.serving.coefficients("sentiment", 0) == with_cache
