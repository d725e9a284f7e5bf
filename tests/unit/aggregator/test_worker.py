"""Closing rounds, revising context vectors and serving both, on a SQLite file and a clock that stands still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import update

from ifed.errors import NothingYet, Unavailable, WrongState
from ifed.messages.bodies import AdapterBody, read_context
from ifed.messages.enums import RoundKind, RoundState, TaskState
from ifed.server.authentication import FailedAttempts
from ifed.tensors.values import TensorBody
from services.aggregator.aggregation.accumulators import ContextAccumulator
from services.aggregator.aggregation.rules import Reducer
from services.aggregator.application.dependencies import Dependencies
from services.aggregator.application.services import Services, build_services
from services.aggregator.application.worker import RoundClosing
from services.aggregator.domain.round import Round
from services.aggregator.domain.task import Task
from services.aggregator.metrics import Metrics
from services.aggregator.runtime.long_poll import LongPoll
from services.aggregator.runtime.rate_limit import RateLimiter
from services.aggregator.storage.database import Database, UnitOfWork
from services.aggregator.storage.tables import contributions
from testing.factories import ADMIN_TOKEN, context_body, join_request, party, policy, spec, update_body
from testing.fakes import FakeClock, SwitchableCache

TASK = "sentiment"
CLAIM_SECONDS = 15.0


class LostDatabase(Database):
    """A database that is lost before anything is written."""

    @asynccontextmanager
    async def unit_of_work(self) -> AsyncIterator[UnitOfWork]:
        raise Unavailable("lost")
        yield


@dataclass
class World:
    """Replicas of an aggregator on one database, one cache and one clock."""

    database: Database
    cache: SwitchableCache = field(default_factory=SwitchableCache)
    clock: FakeClock = field(default_factory=FakeClock)

    def replica(self) -> Services:
        metrics = Metrics(CollectorRegistry())
        long_poll = LongPoll(self.cache, metrics.long_polls, recheck=1.0, longest=5.0)
        dependencies = Dependencies(self.database, self.cache, metrics, long_poll, lambda: None, self.clock)
        return build_services(
            dependencies,
            RateLimiter(None, None, "ifed"),
            admin_token=ADMIN_TOKEN,
            failed_attempts=FailedAttempts(1000, metrics.failed_attempts),
            claim_seconds=CLAIM_SECONDS,
            max_additions=10,
        )

    async def enrol(self, client: str) -> None:
        async with self.database.unit_of_work() as work:
            await work.parties.add(party(client))
            await work.commit()

    async def gathering(self, *clients: str, **policy: object) -> Services:
        """A task whose context round has opened for `clients`."""
        services = self.replica()
        await services.tasks.create(spec(**({"clients_expected": len(clients)} | policy)))
        for client in clients:
            await self.enrol(client)
            await services.participation.join(TASK, client, join_request())
        await services.tasks.start(TASK)
        return services

    async def gathered(self, *clients: str, **policy: object) -> Services:
        """A task whose context round has closed."""
        services = await self.gathering(*clients, **policy)
        for client in clients:
            await send_context(services, client)
        await services.worker.run_due()
        assert await self.state(1) is RoundState.CLOSED
        return services

    async def late_joiner(self, services: Services, client: str, value: float) -> None:
        """A client that joins after the context round and adds its context vector."""
        await self.enrol(client)
        await services.participation.join(TASK, client, join_request())
        await services.participation.add(TASK, client, context_body(value))
        await services.worker.run_due()

    async def rounds(self) -> list[Round]:
        async with self.database.read_only() as work:
            return await work.rounds.page(TASK, 0, 10)

    async def state(self, number: int) -> RoundState:
        return (await self.rounds())[number - 1].state

    async def task(self) -> Task:
        async with self.database.read_only() as work:
            return await work.tasks.get(TASK)

    async def contexts(self) -> list[tuple[int, int, float]]:
        """Version, changes and value of every context vector."""
        async with self.database.read_only() as work:
            aggregates = await work.aggregates.contexts(TASK, 0, 10)
            bodies = [await work.aggregates.context_body(TASK, aggregate.version) for aggregate in aggregates]
        values = [float(read_context(TensorBody.from_bytes(body)).values.max()) for body in bodies]
        return [(aggregate.version, aggregate.changes, value) for aggregate, value in zip(aggregates, values, strict=True)]


@pytest.fixture
def world(migrated_sqlite: Database) -> World:
    return World(migrated_sqlite)


async def send_context(services: Services, client: str, value: float = 1.0) -> None:
    await services.participation.submit_context(TASK, 1, client, context_body(value))


async def test_a_full_round_closes_and_the_next_opens(world: World) -> None:
    services = await world.gathering("a", "b")
    await send_context(services, "a")
    await services.worker.run_due()
    assert await world.state(1) is RoundState.OPEN
    await send_context(services, "b")
    await services.worker.run_due()
    assert [(round_.state, round_.kind) for round_ in await world.rounds()] == [
        (RoundState.CLOSED, RoundKind.CONTEXT),
        (RoundState.OPEN, RoundKind.CALIBRATION),
    ]


async def test_of_two_replicas_that_close_one_round_one_result_is_stored(world: World) -> None:
    first = await world.gathering("a")
    second = world.replica()
    await send_context(first, "a")
    (claimed,) = await world.rounds()
    with world.cache.subscribe(TASK) as subscription:
        await asyncio.gather(*(replica.worker.run(RoundClosing(replica.dependencies, claimed)) for replica in (first, second)))
        assert await subscription.wait(0.1)
    assert [round_.number for round_ in await world.rounds()] == [1, 2]


async def test_a_round_claimed_by_a_dead_replica_is_closed_by_another_after_the_claim(world: World) -> None:
    dead = await world.gathering("a")
    await send_context(dead, "a")
    assert await dead.worker.claim_round() is not None
    other = world.replica()
    await other.worker.run_due()
    assert await world.state(1) is RoundState.AGGREGATING
    world.clock.forward(CLAIM_SECONDS)
    await other.worker.run_due()
    assert await world.state(1) is RoundState.CLOSED


async def test_a_database_lost_while_closing_leaves_the_round_for_later(world: World) -> None:
    services = await world.gathering("a")
    await send_context(services, "a")
    (claimed,) = await world.rounds()
    broken = World(LostDatabase(world.database.engine), world.cache, world.clock).replica()
    with pytest.raises(Unavailable):
        await broken.worker.run(RoundClosing(broken.dependencies, claimed))
    assert await world.state(1) is RoundState.AGGREGATING
    await services.worker.run_due()
    assert await world.state(1) is RoundState.CLOSED


async def test_a_round_that_cannot_be_aggregated_fails_with_its_task(world: World) -> None:
    services = await world.gathering("a")
    await send_context(services, "a")
    async with world.database.engine.begin() as connection:
        await connection.execute(update(contributions).values(body=b"damaged on disk"))
    await services.worker.run_due()
    task = await world.task()
    assert (await world.state(1), task.state) == (RoundState.FAILED, TaskState.FAILED)
    assert str(task.reason).startswith("round 1 (context) failed: it could not be aggregated")


async def test_a_task_deleted_during_the_aggregation_is_no_error(world: World) -> None:
    services = await world.gathering("a")
    await send_context(services, "a")
    job = await services.worker.claim_round()
    assert job is not None
    await services.tasks.pause(TASK)
    await services.tasks.delete(TASK)
    await services.worker.run(job)
    assert await world.rounds() == []


async def test_a_deadline_applies_at_its_time_and_not_before(world: World) -> None:
    services = await world.gathering("a", "b", clients_expected=2, deadline_seconds=60, quorum=1)
    await send_context(services, "a")
    world.clock.forward(59)
    await services.worker.run_due()
    assert await world.state(1) is RoundState.OPEN
    world.clock.forward(1)
    await services.worker.run_due()
    assert await world.state(1) is RoundState.CLOSED


async def test_cache_and_database_serve_the_same_bytes_in_float16(world: World) -> None:
    services = await world.gathering("a", "b")
    await send_context(services, "a", 0.1)
    await send_context(services, "b", 0.2)
    await services.worker.run_due()
    loaded, cached = await services.adapters.context(TASK), await services.adapters.context(TASK)
    async with world.database.read_only() as work:
        stored = await work.aggregates.context_body(TASK, 1)
    assert loaded == cached
    assert loaded.body == stored
    assert TensorBody.from_bytes(stored).tensors["context"].dtype == "float16"


async def test_an_adapter_is_never_served_stale(world: World) -> None:
    services = await world.gathered("a")
    with pytest.raises(NothingYet):
        await services.adapters.adapter(TASK, None, known=frozenset(), wait=0)
    versions = []
    for number, right in ((2, 2), (3, 4)):
        body = update_body(version=number - 2, confusion=[[right, 4 - right], [0, 4]])
        await services.participation.submit_update(TASK, number, "a", body)
        await services.worker.run_due()
        adapter = await services.adapters.adapter(TASK, None, known=frozenset(), wait=0)
        meta = AdapterBody.from_bytes(adapter.body).meta
        versions.append((meta.version, None if meta.evaluation is None else meta.evaluation.accuracy))
    assert versions == [(0, 0.75), (1, 1.0)]


async def test_without_a_cache_aggregates_are_served_from_the_database(world: World) -> None:
    services = await world.gathered("a")
    cached = await services.adapters.coefficients(TASK, 0)
    world.cache.down = True
    assert await services.adapters.coefficients(TASK, 0) == cached


async def test_of_two_replicas_that_revise_one_context_vector_one_version_is_stored(world: World) -> None:
    first = await world.gathered("a", "b")
    second = world.replica()
    await first.participation.add(TASK, "a", context_body(4.0))
    job = await first.worker.claim_context()
    assert job is not None
    assert await second.worker.claim_context() is None
    await asyncio.gather(first.worker.run(job), second.worker.run(job))
    assert await world.contexts() == [(1, 0, 1.0), (2, 1, 2.0)]


async def test_changes_that_arrive_during_a_revision_are_all_in_the_next(world: World) -> None:
    services = await world.gathered("a", "b")
    await services.participation.add(TASK, "a", context_body(4.0))
    job = await services.worker.claim_context()
    assert job is not None
    await services.participation.add(TASK, "b", context_body(7.0))
    await services.participation.withdraw(TASK, "a")
    await services.worker.run(job)
    assert (await world.contexts())[1:] == [(2, 1, 2.0)]
    await services.worker.run_due()
    assert (await world.contexts())[2:] == [(3, 3, 4.0)]
    await services.worker.run_due()
    assert len(await world.contexts()) == 3


async def test_a_revision_claimed_by_a_dead_replica_is_made_by_another_after_the_claim(world: World) -> None:
    dead = await world.gathered("a")
    await dead.participation.add(TASK, "a", context_body(3.0))
    assert await dead.worker.claim_context() is not None
    other = world.replica()
    await other.worker.run_due()
    assert len(await world.contexts()) == 1
    world.clock.forward(CLAIM_SECONDS)
    await other.worker.run_due()
    assert (await world.contexts())[1:] == [(2, 1, 2.0)]


async def test_a_rule_with_too_few_clients_serves_nothing_until_more_join(world: World) -> None:
    services = await world.gathered("a", "b", "c", aggregation="trimmed_mean", byzantine_fraction=0.3, serve="latest")
    assert (await world.task()).served == 0
    await services.participation.withdraw(TASK, "c")
    await services.worker.run_due()
    task = await world.task()
    assert (task.served, task.state) == (None, TaskState.PAUSED)
    assert str(task.reason).startswith("its context vector cannot be made without those who withdrew")
    await world.late_joiner(services, "d", 1.0)
    assert ((await world.task()).served, (await world.contexts())[-1][:2]) == (0, (2, 2))


async def test_what_was_withdrawn_is_served_by_no_round_and_no_rollback(world: World) -> None:
    services = await world.gathered("a", serve="latest", rounds=1)
    await services.participation.submit_update(TASK, 2, "a", update_body())
    await services.participation.withdraw(TASK, "a")
    await services.worker.run_due()
    assert (await world.state(2), (await world.task()).served) == (RoundState.CLOSED, None)
    assert (await services.tasks.rollback(TASK, 0)).served is None
    resumed = await services.tasks.resume(TASK)
    assert (resumed.state, len(await world.rounds())) == (TaskState.PAUSED, 2)
    assert str(resumed.reason).startswith("its context vector cannot be made without those who withdrew")
    await world.late_joiner(services, "b", 3.0)
    assert ((await world.task()).served, (await world.contexts())[-1]) == (0, (2, 2, 3.0))
    resumed = await services.tasks.resume(TASK)
    assert (resumed.state, resumed.reason, len(await world.rounds())) == (TaskState.RUNNING, None, 3)


async def test_a_failed_task_keeps_its_reason_when_its_context_vector_cannot_be_made(world: World) -> None:
    services = await world.gathered("a", "b")
    for client in ("a", "b"):
        await services.participation.withdraw(TASK, client)
        await services.worker.run_due()
    task = await world.task()
    assert task.state is TaskState.FAILED
    failed, unavailable = str(task.reason).split("; ")
    assert failed == "round 2 (calibration) failed: every client it waited for was revoked or withdrew"
    assert unavailable.startswith("its context vector cannot be made without those who withdrew: ")


async def test_an_earlier_reason_is_back_once_the_context_vector_can_be_made(world: World) -> None:
    services = await world.gathered("a", serve="latest", rounds=1)
    await services.participation.submit_update(TASK, 2, "a", update_body())
    await services.worker.run_due()
    await services.tasks.rollback(TASK, 0)
    await services.participation.withdraw(TASK, "a")
    await services.worker.run_due()
    assert str((await world.task()).reason).startswith("rolled back to version 0; its context vector cannot be made")
    await world.late_joiner(services, "b", 3.0)
    task = await world.task()
    assert (task.state, task.reason, task.served) == (TaskState.PAUSED, "rolled back to version 0", 0)


async def test_a_failed_task_takes_no_additions(world: World) -> None:
    services = await world.gathered("a")
    async with world.database.unit_of_work() as work:
        task = await work.tasks.get(TASK, for_update=True)
        task.fail("a test")
        await work.tasks.save(task)
        await work.commit()
    with pytest.raises(WrongState):
        await services.participation.add(TASK, "a", context_body(2.0))


def test_parts_of_one_client_count_as_one_that_sent_all_at_once() -> None:
    rules = policy(weight_cap=4)
    accumulator = ContextAccumulator(TASK, 1, rules)
    for client, weight, value in (("a", 2, 1.0), ("a", 6, 5.0), ("b", 1, 0.5)):
        accumulator.add(client, weight, context_body(value, examples=weight))
    mean = read_context(TensorBody.from_bytes(accumulator.summed().body or b"")).values
    by_hand = Reducer(rules)
    by_hand.add(np.full(mean.shape, (2 * 1.0 + 6 * 5.0) / 8), 8)
    by_hand.add(np.full(mean.shape, 0.5), 1)
    assert (mean == by_hand.value().astype(np.float16)).all()
    assert mean.max() == np.float16((4 * 4.0 + 1 * 0.5) / 5)
