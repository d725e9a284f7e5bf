"""Simulated clients, which need numpy alone, and a task that runs whole rounds with them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

import numpy as np

from benchmarks.aggregator.http_connections import ConnectionPool
from ifed.messages.bodies import ContextBody, UpdateBody
from ifed.messages.rounds import ContributionMeta
from ifed.tensors.values import Coefficients, ContextVector
from testing.factories import probe

FINGERPRINT = "a" * 64
CONFUSION = np.array([[40, 10], [10, 40]], dtype=np.int64)
COROUTINES = 256  # the number of connections limits the requests in flight


@dataclass(frozen=True)
class Payload:
    """The shape of a client's contributions, which follows from the model and the number of groups."""

    layers: int
    hidden: int
    groups: int

    def __str__(self) -> str:
        return f"{self.layers}x2x{self.hidden}"

    def context(self, rank: int) -> bytes:
        """Encode a random context vector in float16, seeded by the client's rank."""
        values = np.random.default_rng(rank).standard_normal((self.layers, 2, self.hidden), dtype=np.float32)
        return ContextBody(ContextVector(values), ContributionMeta(fingerprint=FINGERPRINT, examples=100)).to_bytes()

    def update(self, rank: int, version: int) -> bytes:
        """Encode random coefficients in float32, seeded by the client's rank, and confusion counts."""
        values = np.random.default_rng(rank).standard_normal((self.layers, 2, 2, self.groups), dtype=np.float32)
        return UpdateBody(Coefficients(values), CONFUSION, self._meta(version)).to_bytes()

    def evaluation(self, version: int) -> bytes:
        """Encode confusion counts alone."""
        return UpdateBody(None, CONFUSION, self._meta(version)).to_bytes()

    def _meta(self, version: int) -> ContributionMeta:
        return ContributionMeta(fingerprint=FINGERPRINT, examples=100, version=version, loss=0.5, seconds=1.0)


@dataclass(frozen=True)
class SimulatedClient:
    """One client, named by its rank."""

    rank: int
    token: str


async def for_each(clients: Iterable[SimulatedClient], step: Callable[[SimulatedClient], Awaitable[object]]) -> None:
    """Await the step for every client, `COROUTINES` of them concurrently."""
    remaining = iter(clients)

    async def work() -> None:
        for client in remaining:
            await step(client)

    async with asyncio.TaskGroup() as group:
        for _ in range(COROUTINES):
            group.create_task(work())


class SimulatedTask:
    """One task and its simulated clients."""

    def __init__(self, pool: ConnectionPool, admin_token: str, name: str, payload: Payload) -> None:
        self._pool, self._admin_token, self._name, self._payload = pool, admin_token, name, payload
        self._probe = probe(payload.layers).model_dump()  # the same model at every client
        self.clients: list[SimulatedClient] = []
        self.contributions = 0
        self.bytes_up = 0

    async def create(self, clients: int, *, rounds: int) -> None:
        """Create the task, enrol all clients and let them join."""
        policy = {"rounds": rounds, "clients_expected": clients, "deadline_seconds": 3600}
        spec = {"name": self._name, "labels": ["no", "yes"], "template": "{text} =", "model": "m", "layers": "all"}
        await self._admin("POST", "/v1/tasks", spec | {"groups": self._payload.groups, "policy": policy})
        await for_each([SimulatedClient(rank, "") for rank in range(clients)], self._enrol)
        self.clients.sort(key=lambda client: client.rank)
        await for_each(self.clients, self._join)

    async def _admin(self, method: str, path: str, message: object = None) -> dict[str, object]:
        body = b"" if message is None else json.dumps(message).encode()
        return dict(json.loads(await self._pool.request(method, path, self._admin_token, body)))

    async def _enrol(self, client: SimulatedClient) -> None:
        enrolled = await self._admin("POST", "/v1/clients", {"name": f"{self._name}-{client.rank:05}"})
        self.clients.append(SimulatedClient(client.rank, str(enrolled["token"])))

    async def _join(self, client: SimulatedClient) -> None:
        shape = {"num_layers": self._payload.layers, "hidden_size": self._payload.hidden}
        identity = {"name": "m", "fingerprint": FINGERPRINT, "family": "llama"} | shape
        message = {"identity": identity, "label_counts": {"no": 50, "yes": 50}, "holdout": 100, "probe": self._probe}
        await self._pool.request("POST", f"/v1/tasks/{self._name}/join", client.token, json.dumps(message).encode(), name="join")

    async def start(self) -> None:
        """Start the task."""
        await self._admin("POST", f"/v1/tasks/{self._name}/start")

    async def round(self, number: object) -> dict[str, object]:
        """Return one round as an admin sees it."""
        return await self._admin("GET", f"/v1/tasks/{self._name}/rounds/{number}")

    async def next_round(self) -> dict[str, object]:
        """Wait until the first client has work, or the task has ended; return its assignment."""
        while True:
            assignment = await self.assignment(self.clients[0])
            if assignment["kind"] not in ("wait", "join"):
                return assignment

    async def assignment(self, client: SimulatedClient, *, wait: float = 30.0) -> dict[str, object]:
        """Return a client's assignment, by a long poll of at most `wait` seconds."""
        path = f"/v1/tasks/{self._name}/assignment?wait={wait}"
        return dict(json.loads(await self._pool.request("GET", path, client.token, name="assignment")))

    async def take_part(self, client: SimulatedClient) -> None:
        """Ask for the assignment, download what the work starts from, and contribute."""
        assignment = await self.assignment(client)
        number, version = assignment["round"], assignment["version"]
        if assignment["kind"] == "context":
            return await self.contribute(client, f"{number}/context", self._payload.context(client.rank), name="context")
        await self._pool.request("GET", f"/v1/tasks/{self._name}/coefficients?version={version}", client.token, name="download")
        assert isinstance(version, int)
        calibrates = assignment["kind"] == "calibration"
        body = self._payload.update(client.rank, version) if calibrates else self._payload.evaluation(version)
        return await self.contribute(client, f"{number}/update", body, name="update")

    async def contribute(self, client: SimulatedClient, path: str, body: bytes, *, name: str) -> None:
        """Upload a contribution to `path` below the task's rounds."""
        await self._pool.request("PUT", f"/v1/tasks/{self._name}/rounds/{path}", client.token, body, name=name)
        self.contributions += 1
        self.bytes_up += len(body)

    async def run(self) -> list[float]:
        """Run every round to the end of the task; return the seconds of each, with its aggregation."""
        await self.start()
        seconds = []
        assignment = await self.next_round()
        while assignment["kind"] != "done":
            began = time.perf_counter()
            assignment = await self.run_round()
            seconds.append(time.perf_counter() - began)
        return seconds

    async def run_round(self) -> dict[str, object]:
        """Let every client take part; return the first client's next assignment, once the round has closed."""
        await for_each(self.clients, self.take_part)
        return await self.next_round()

    async def run_round_at_rate(self, rate: float) -> None:
        """Run one calibration round whose updates are sent at `rate` a second, whether or not earlier ones were answered."""
        assignment = await self.next_round()
        version = assignment["version"]
        assert isinstance(version, int)
        bodies = [self._payload.update(client.rank, version) for client in self.clients]
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for index, (client, body) in enumerate(zip(self.clients, bodies, strict=True)):
                await asyncio.sleep(max(0.0, began + index / rate - time.perf_counter()))
                group.create_task(self.contribute(client, f"{assignment['round']}/update", body, name="paced"))
