"""A task with clients of whom the aggregate tells who is in it, and how often. Drives any aggregator by its URL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import numpy as np

from ifed.clients import AggregatorClient
from ifed.errors import Unavailable
from ifed.messages.enums import RoundState
from ifed.messages.rounds import Receipt, RoundInfo
from ifed.tensors.values import TensorBody
from testing.factories import ADMIN_TOKEN, FINGERPRINT, join_request, layout, spec
from tests.integration.aggregator.deployment import TASK

BASE = 4
PATIENCE = 30.0


def examples_of(rank: int) -> int:
    """The weight of a client: the digits of the total in base 4 say how often each one was counted."""
    return int(BASE**rank)


def values_of(rank: int) -> np.ndarray:
    """What a client sends: 1 at a place of its own, so that its place in the mean is its share of the weight, and 0 without it."""
    values = np.zeros(layout().context_shape, dtype=np.float32)
    values.flat[rank] = 1.0
    return values


def body_of(rank: int) -> bytes:
    """The bytes a client sends."""
    return TensorBody({"context": values_of(rank)}, {"fingerprint": FINGERPRINT, "examples": examples_of(rank)}).to_bytes()


def counted(total: int, clients: int) -> dict[int, int]:
    """Who is in a total of weights, and how often: `counted(4 + 2 * 16, 3) == {1: 1, 2: 2}`."""
    digits = {rank: total // examples_of(rank) % BASE for rank in range(clients)}
    return {rank: times for rank, times in digits.items() if times}


class Federation:
    """The admin and the clients of one task; clients try again while the aggregator is away, as the agent does."""

    def __init__(self, url: str, tokens: Sequence[str], stack: AsyncExitStack) -> None:
        self.url, self.tokens, self._stack = url, tokens, stack
        self.admin = AggregatorClient(url, ADMIN_TOKEN)
        self.clients = [AggregatorClient(url, token) for token in tokens]
        for client in (self.admin, *self.clients):
            stack.push_async_callback(client.close)

    def through(self, url: str, rank: int) -> AggregatorClient:
        """A client by its rank, talking to another replica."""
        client = AggregatorClient(url, self.tokens[rank])
        self._stack.push_async_callback(client.close)
        return client

    async def contribute(self, rank: int, *, client: AggregatorClient | None = None) -> Receipt:
        """Send until there is an answer."""
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    return await (client or self.clients[rank]).submit_context(TASK, 1, body_of(rank))
                except Unavailable:
                    await asyncio.sleep(0.1)

    async def closed(self, *, url: str | None = None) -> RoundInfo:
        """The first round, once it is closed."""
        async with asyncio.timeout(PATIENCE), AggregatorClient(url or self.url, ADMIN_TOKEN) as admin:
            while (round_ := await patiently(admin)).state is not RoundState.CLOSED:
                await asyncio.sleep(0.05)
        return round_

    async def holds_exactly(self, ranks: Collection[int], *, url: str | None = None) -> None:
        """The aggregate of the first round has each of `ranks` in it once, and nobody else."""
        round_ = await self.closed(url=url)
        assert {client.client for client in round_.clients if client.contributed_at} == {name_of(rank) for rank in ranks}
        async with httpx.AsyncClient(base_url=url or self.url, timeout=PATIENCE) as http:
            answer = await http.get(f"/v1/tasks/{TASK}/context", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
        body = TensorBody.from_bytes(answer.content)
        assert counted(body.metadata["examples"], len(self.clients)) == dict.fromkeys(ranks, 1)
        # The policy caps what one client may weigh, so the mean is of the capped weights and the examples are of those told.
        async with AggregatorClient(url or self.url, ADMIN_TOKEN) as admin:
            cap = (await admin.task(TASK)).spec.policy.weight_cap
        weights = {rank: min(examples_of(rank), cap) for rank in ranks}
        mean = sum(weight * values_of(rank).astype(np.float64) for rank, weight in weights.items()) / sum(weights.values())
        assert np.array_equal(body.tensors["context"], mean.astype(np.float32).astype(np.float16))

    async def raw(self, method: str, path: str, *, rank: int, **options: Any) -> httpx.Response:
        """A request as it is, for what our own client would not send."""
        headers = {"Authorization": f"Bearer {self.tokens[rank]}"} | options.pop("headers", {})
        async with httpx.AsyncClient(base_url=self.url, timeout=PATIENCE) as http:
            return await http.request(method, path, headers=headers, **options)


async def patiently(admin: AggregatorClient) -> RoundInfo:
    while True:
        try:
            return await admin.round(TASK, 1)
        except Unavailable:
            await asyncio.sleep(0.1)


def name_of(rank: int) -> str:
    return f"client-{rank:02}"


@asynccontextmanager
async def federation(url: str, clients: int, **policy: Any) -> AsyncIterator[Federation]:
    """A started task on the aggregator at `url`, whose clients have joined."""
    async with AsyncExitStack() as stack:
        async with AggregatorClient(url, ADMIN_TOKEN) as admin:
            await admin.create_task(spec(TASK, **({"clients_expected": clients, "rounds": 1} | policy)))
            tokens = [(await admin.enrol(name_of(rank))).token for rank in range(clients)]
            made = Federation(url, tokens, stack)
            for rank, client in enumerate(made.clients):
                await client.join(TASK, join_request(examples=examples_of(rank)))
            await admin.start(TASK)
        yield made
