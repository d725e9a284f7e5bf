"""An aggregator killed at the worst moments, on Postgres and Redis: what it answered 2xx is in the aggregate exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import signal

import pytest
from standardwebhooks import Webhook

from ifed.clients import AggregatorClient
from ifed.errors import Unavailable
from ifed.messages.events import DeliveryState, NewWebhook
from testing.factories import ADMIN_TOKEN, spec
from testing.processes import AGGREGATOR, Process
from tests.faults.conftest import Launch
from tests.faults.federation import body_of, federation
from tests.integration.aggregator.deployment import TASK
from tests.integration.aggregator.listening import receiver

CLIENTS = 3


@pytest.fixture
def database(postgres_database: str, redis_url: str, redis_prefix: str) -> dict[str, str]:
    return {"database": postgres_database, "REDIS_URL": redis_url, "REDIS_PREFIX": redis_prefix}


async def again(process: Process) -> None:
    """Once it has killed itself, start the ordinary aggregator where the faulty one was."""
    assert await asyncio.to_thread(process.ended) == -signal.SIGKILL
    process.command = AGGREGATOR
    await asyncio.to_thread(process.start)


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_killed_around_the_commit_of_a_contribution_it_loses_nothing_and_counts_nothing_twice(
    launch: Launch, database: dict[str, str], moment: str
) -> None:
    dying = await asyncio.to_thread(launch, command=("-m", "tests.faults.launcher", moment, "contribution"), **database)
    async with federation(dying.url, CLIENTS) as task:
        with pytest.raises(Unavailable):
            await task.clients[0].submit_context(TASK, 1, body_of(0))
        await again(dying)
        kept = [client.client for client in (await task.admin.round(TASK, 1)).clients if client.contributed_at]
        assert kept == (["client-00"] if moment == "after" else [])
        await asyncio.gather(*(task.contribute(rank) for rank in range(CLIENTS)))
        await task.holds_exactly(range(CLIENTS))


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_killed_around_the_commit_of_an_aggregate_the_round_closes_once(
    launch: Launch, database: dict[str, str], moment: str
) -> None:
    dying = await asyncio.to_thread(launch, command=("-m", "tests.faults.launcher", moment, "aggregate"), **database)
    async with federation(dying.url, CLIENTS) as task:
        await asyncio.gather(*(task.contribute(rank) for rank in range(CLIENTS)), return_exceptions=True)
        await again(dying)
        await asyncio.gather(*(task.contribute(rank) for rank in range(CLIENTS)))
        await task.holds_exactly(range(CLIENTS))
        assert [round_.number for round_ in await task.admin.rounds(TASK)] == [1, 2]
        assert await happened(task.admin, 5) == ["task.created", "task.started", "round.opened", "round.closed", "round.opened"]


async def happened(admin: AggregatorClient, count: int) -> list[str]:
    """The first events, from the start."""
    taken = []
    async with asyncio.timeout(20), contextlib.aclosing(admin.events(after=0)) as events:
        async for event in events:
            taken.append(event.kind.value)
            if len(taken) == count:
                break
    return taken


async def test_an_event_that_was_on_its_way_to_a_webhook_is_delivered_after_a_kill(
    launch: Launch, database: dict[str, str]
) -> None:
    environment = {"WEBHOOK_PRIVATE_ADDRESSES": "true", "WEBHOOK_RETRY_SECONDS": "0.5", "WEBHOOK_TIMEOUT_SECONDS": "1"}
    aggregator = await asyncio.to_thread(launch, **database, **environment)
    async with receiver(silent=True) as pager, AggregatorClient(aggregator.url, ADMIN_TOKEN) as admin:
        secret = (await admin.register_webhook(NewWebhook(name="pager", url=pager.url))).secret
        await admin.create_task(spec())
        await pager.has(1)
        await asyncio.to_thread(aggregator.stop, signal.SIGKILL)
        pager.silent = False
        await asyncio.to_thread(aggregator.start)
        (headers, body), *_ = (await pager.has(2))[1:]
        assert (headers["webhook-id"], Webhook(secret).verify(body, headers)["type"]) == ("evt_1", "task.created")
        async with asyncio.timeout(10):
            while (await admin.deliveries("pager"))[0].state is not DeliveryState.DELIVERED:
                await asyncio.sleep(0.05)


async def test_another_replica_goes_on_where_one_was_killed(launch: Launch, database: dict[str, str]) -> None:
    dying = await asyncio.to_thread(launch, command=("-m", "tests.faults.launcher", "before", "aggregate"), **database)
    other = await asyncio.to_thread(launch, **database, TICK_SECONDS="2")
    async with federation(dying.url, CLIENTS) as task:
        receipts = await asyncio.gather(*(task.contribute(rank) for rank in range(CLIENTS)), return_exceptions=True)
        assert len(receipts) == CLIENTS
        await task.holds_exactly(range(CLIENTS), url=other.url)
