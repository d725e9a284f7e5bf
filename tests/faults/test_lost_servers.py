"""Postgres and Redis lost in the middle of a round, and two replicas that end one round at the same time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from ifed.errors import Unavailable
from ifed.messages.enums import RoundState
from ifed.messages.rounds import Receipt
from services.aggregator.application.services import Services
from services.aggregator.application.worker import RoundClosing
from services.aggregator.domain.round import Round
from testing.servers import PostgresServer, RedisServer
from tests.faults.conftest import Launch
from tests.faults.federation import Federation, body_of, federation
from tests.integration.aggregator.deployment import TASK, Deployment, deployed, settings

CLIENTS = 12


async def one_after_the_other(task: Federation, sent: asyncio.Event) -> list[Receipt]:
    """Everyone contributes, trying again while nobody answers; `sent` is set after the first third."""
    receipts = []
    for rank in range(CLIENTS):
        receipts.append(await task.contribute(rank))
        if rank == CLIENTS // 3:
            sent.set()
            await asyncio.sleep(0.3)
    return receipts


async def test_postgres_killed_and_started_again_in_a_round(launch: Launch, own_postgres: PostgresServer) -> None:
    aggregator = await asyncio.to_thread(launch, own_postgres.url)
    async with federation(aggregator.url, CLIENTS) as task:
        sent = asyncio.Event()
        work = asyncio.create_task(one_after_the_other(task, sent))
        await sent.wait()
        await asyncio.to_thread(own_postgres.kill)
        refused = await task.raw("PUT", f"/v1/tasks/{TASK}/rounds/1/context", rank=0, content=body_of(0))
        assert (refused.status_code, refused.json()["error"]) == (503, "Unavailable")
        assert int(refused.headers["Retry-After"]) > 0
        assert not work.done()
        await asyncio.to_thread(own_postgres.run)
        assert len({receipt.client for receipt in await work}) == CLIENTS
        await task.holds_exactly(range(CLIENTS))


async def test_what_was_refused_while_postgres_was_away_is_not_in_the_aggregate(
    launch: Launch, own_postgres: PostgresServer
) -> None:
    aggregator = await asyncio.to_thread(launch, own_postgres.url)
    async with federation(aggregator.url, CLIENTS, quorum=1) as task:
        for rank in range(4):
            await task.contribute(rank)
        await asyncio.to_thread(own_postgres.kill)
        for rank in (4, 5):
            with pytest.raises(Unavailable):
                await task.clients[rank].submit_context(TASK, 1, body_of(rank))
        await asyncio.to_thread(own_postgres.run)
        for rank in (6, 7):
            await task.contribute(rank)
        await task.admin.close_round(TASK, 1)
        await task.holds_exactly([0, 1, 2, 3, 6, 7])


async def test_redis_killed_in_a_round_loses_nothing(launch: Launch, postgres_database: str, own_redis: RedisServer) -> None:
    environment = {"database": postgres_database, "REDIS_URL": own_redis.url}
    first, second = [await asyncio.to_thread(launch, **environment) for _ in range(2)]
    async with federation(first.url, CLIENTS) as task:
        for rank in range(CLIENTS // 2):
            await task.contribute(rank)
        await asyncio.to_thread(own_redis.kill)
        elsewhere = {rank: task.through(second.url, rank) for rank in range(CLIENTS // 2, CLIENTS)}
        await asyncio.gather(*(task.contribute(rank, client=client) for rank, client in elsewhere.items()))
        await task.holds_exactly(range(CLIENTS))
        await task.holds_exactly(range(CLIENTS), url=second.url)


def service(replica: Deployment) -> Services:
    services = replica.app.state.services
    assert isinstance(services, Services)
    return services


async def close(services: Services, claimed: Round) -> None:
    await services.worker.run(RoundClosing(services.dependencies, claimed))


async def test_two_replicas_that_sum_one_round_up_at_once_close_it_once(postgres_database: str) -> None:
    configuration = settings(postgres_database, tick_seconds=3600.0)
    async with deployed(configuration) as first, deployed(configuration) as second:
        await first.started(clients_expected=2, quorum=1, rounds=1)
        a, _ = await first.clients("a", "b")
        await a.contribute(await a.assignment(TASK))
        now = datetime.now(UTC)
        async with service(first).dependencies.database.unit_of_work() as work:
            round_ = await work.rounds.get(TASK, 1, for_update=True)
            round_.close_now()
            await work.rounds.save(round_)
            claimed = await work.rounds.claim(now, now + timedelta(hours=1))  # nobody else takes it meanwhile
            await work.commit()
        assert claimed is not None
        await asyncio.gather(*(close(service(replica), claimed) for replica in (first, second, first, second)))
        rounds = await first.admin.rounds(TASK)
        assert [(round_.number, round_.state) for round_ in rounds] == [(1, RoundState.CLOSED), (2, RoundState.OPEN)]
        assert (await second.admin.task(TASK)).version == 0
        assert (await a.context(TASK)).values.max() == 1.0


async def test_a_round_closed_by_two_admins_on_two_replicas_closes_once(
    postgres_database: str, redis_url: str, redis_prefix: str
) -> None:
    configuration = settings(postgres_database, redis_url=redis_url, redis_prefix=redis_prefix)
    async with deployed(configuration) as first, deployed(configuration) as second:
        await first.started(clients_expected=2, quorum=1, rounds=1)
        a, _ = await first.clients("a", "b")
        await a.contribute(await a.assignment(TASK))
        answers = await asyncio.gather(
            *(replica.raw("POST", f"/v1/tasks/{TASK}/rounds/1/close") for replica in (first, second, first, second))
        )
        assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]
        await first.until_round(1, RoundState.CLOSED)
        assert (await a.context(TASK)).values.max() == 1.0
