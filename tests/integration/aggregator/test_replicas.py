"""Two aggregators on one Postgres and one Redis; then Redis gone, then Postgres gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import httpx
import pytest

from ifed.clients import AggregatorClient
from ifed.errors import Unavailable
from ifed.messages.enums import AssignmentKind, RoundState, TaskState
from testing.factories import context_body
from testing.servers import PostgresServer
from tests.integration.aggregator.deployment import TASK, Deployment, SimulatedClient, deployed, settings


@pytest.fixture
async def replicas(current_postgres: str, redis_url: str, redis_prefix: str) -> AsyncIterator[tuple[Deployment, Deployment]]:
    # A slow recheck: what wakes a long poll in these tests is the other replica's announcement.
    configuration = settings(current_postgres, redis_url=redis_url, redis_prefix=redis_prefix, recheck_seconds=30.0)
    async with deployed(configuration) as first, deployed(configuration) as second:
        yield first, second


def through(client: SimulatedClient, replica: Deployment) -> AggregatorClient:
    """The same party, talking to another replica."""
    token = client._http.headers["Authorization"].removeprefix("Bearer ")
    return AggregatorClient("http://aggregator", token, transport=httpx.ASGITransport(replica.app))


async def test_a_long_poll_on_one_replica_wakes_by_a_contribution_on_the_other(replicas: tuple[Deployment, Deployment]) -> None:
    first, second = replicas
    await first.started()
    a, b = await first.clients("a", "b")
    assignment = await a.assignment(TASK, wait=5)
    await a.contribute(assignment)
    async with through(a, second) as elsewhere:
        began = time.monotonic()
        waiting = asyncio.create_task(elsewhere.assignment(TASK, wait=20))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await b.contribute(assignment)
        assert (await waiting).kind is AssignmentKind.CALIBRATION
        assert time.monotonic() - began < 10


async def test_both_replicas_serve_one_task_to_its_end(replicas: tuple[Deployment, Deployment]) -> None:
    first, second = replicas
    await first.started(rounds=3)
    a = await first.client("a")
    b = await first.client("b", value=3.0, examples=3)
    async with SimulatedClient(
        second.app, "b", b._http.headers["Authorization"].removeprefix("Bearer "), value=3.0, examples=3
    ) as elsewhere:
        await asyncio.gather(a.run(), elsewhere.run())
    rounds = await second.admin.rounds(TASK)
    assert [round_.state for round_ in rounds] == [RoundState.CLOSED] * 5
    assert [round_.produced for round_ in rounds] == [0, 1, 2, 3, None]
    mean = (1 * 1 + 3 * 3) / 4
    assert (await a.coefficients(TASK, version=3)).values.max() == 1 + 3 * mean


async def test_a_deadline_fires_once_whoever_notices(replicas: tuple[Deployment, Deployment]) -> None:
    first, second = replicas
    await first.started(deadline_seconds=2.0, quorum=1, rounds=1)
    (a, _silent) = await first.clients("a", "b")
    await a.contribute(await a.assignment(TASK, wait=5))
    await first.until_round(1, RoundState.CLOSED)
    await first.until_state(TaskState.FAILED)
    await asyncio.sleep(0.3)
    rounds = await first.admin.rounds(TASK)
    assert [(round_.number, round_.state) for round_ in rounds] == [(1, RoundState.CLOSED), (2, RoundState.FAILED)]
    closed = [await counted(replica, "ifed_rounds_total", 'kind="context",state="closed"') for replica in (first, second)]
    assert sorted(closed) == [0.0, 1.0]


async def counted(replica: Deployment, name: str, labels: str) -> float:
    lines = (await replica.raw("GET", "/metrics", token=None)).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name) and labels in line)


async def test_one_contribution_sent_to_both_replicas_at_once_counts_once(replicas: tuple[Deployment, Deployment]) -> None:
    first, second = replicas
    await first.started()
    a, _ = await first.clients("a", "b")
    assignment = await a.assignment(TASK, wait=5)
    async with through(a, second) as elsewhere:
        assert assignment.round is not None
        sent = [client.submit_context(TASK, assignment.round, context_body()) for client in (a, elsewhere) for _ in range(3)]
        receipts = await asyncio.gather(*sent)
    assert len({receipt.received_at for receipt in receipts}) == 1


async def test_without_redis_replicas_are_slower_and_not_wrong(current_postgres: str) -> None:
    configuration = settings(current_postgres, redis_url="redis://127.0.0.1:1/0", recheck_seconds=0.3)
    async with deployed(configuration) as first, deployed(configuration) as second:
        ready = (await first.raw("GET", "/readyz", token=None)).json()
        assert ready["ready"] is True
        assert ready["checks"]["cache"].startswith("degraded: redis cannot be reached")
        await first.started(rounds=1)
        a = await first.client("a")
        b = await first.client("b")
        token = b._http.headers["Authorization"].removeprefix("Bearer ")
        async with SimulatedClient(second.app, "b", token, value=3.0, examples=3) as elsewhere:
            ends = await asyncio.gather(a.run(), elsewhere.run())
        assert [end.state for end in ends] == [TaskState.FINISHED] * 2


async def test_without_postgres_callers_are_told_to_come_again_and_then_it_goes_on() -> None:
    server = await asyncio.to_thread(PostgresServer)
    try:
        await asyncio.to_thread(server.run)
        async with deployed(settings(server.url)) as aggregator:
            await aggregator.started()
            a, b = await aggregator.clients("a", "b")
            await asyncio.to_thread(server.kill)
            with pytest.raises(Unavailable) as refusal:
                await a.assignment(TASK)
            assert refusal.value.retry_after == 2
            assert (await aggregator.raw("GET", "/readyz", token=None)).status_code == 503
            assert (await aggregator.raw("GET", "/livez", token=None)).status_code == 200
            await asyncio.to_thread(server.run)
            for client in (a, b):
                await client.contribute(await client.assignment(TASK, wait=5))
            await aggregator.until_round(1, RoundState.CLOSED)
    finally:
        await asyncio.to_thread(server.close)
