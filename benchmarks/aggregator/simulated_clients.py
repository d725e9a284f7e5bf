"""A federation of simulated clients that only know numpy, run through whole rounds. Measures; prints nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

import numpy as np

from benchmarks.aggregator.http_connections import Wire
from ifed.messages.bodies import ContextBody, UpdateBody
from ifed.messages.rounds import ContributionMeta
from ifed.tensors.values import Coefficients, ContextVector
from testing.factories import probe

FINGERPRINT = "a" * 64
CONFUSION = np.array([[40, 10], [10, 40]], dtype=np.int64)
AT_ONCE = 256  # coroutines; the connections bound what is on the wire


@dataclass(frozen=True)
class Payload:
    """The shapes of one model: what a client sends."""

    layers: int
    hidden: int
    groups: int

    def __str__(self) -> str:
        return f"{self.layers}x2x{self.hidden}"

    def context(self, rank: int) -> bytes:
        """A context vector, float16, another one for every client."""
        values = np.random.default_rng(rank).standard_normal((self.layers, 2, self.hidden), dtype=np.float32)
        return ContextBody(ContextVector(values), ContributionMeta(fingerprint=FINGERPRINT, examples=100)).to_bytes()

    def update(self, rank: int, version: int) -> bytes:
        """Coefficients, float32, and confusion counts."""
        values = np.random.default_rng(rank).standard_normal((self.layers, 2, 2, self.groups), dtype=np.float32)
        return UpdateBody(Coefficients(values), CONFUSION, self._meta(version)).to_bytes()

    def evaluation(self, version: int) -> bytes:
        return UpdateBody(None, CONFUSION, self._meta(version)).to_bytes()

    def _meta(self, version: int) -> ContributionMeta:
        return ContributionMeta(fingerprint=FINGERPRINT, examples=100, version=version, loss=0.5, seconds=1.0)


@dataclass(frozen=True)
class Member:
    """One simulated client."""

    rank: int
    token: str


async def each(members: Iterable[Member], step: Callable[[Member], Awaitable[object]]) -> None:
    """The step for every member, many at once."""
    left = iter(members)

    async def work() -> None:
        for member in left:
            await step(member)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())


class Federation:
    """One task and its clients."""

    def __init__(self, wire: Wire, admin: str, task: str, payload: Payload) -> None:
        self._wire, self._admin, self._task, self._payload = wire, admin, task, payload
        self._probe = probe(payload.layers).model_dump()  # one model at every client
        self.members: list[Member] = []
        self.contributions = 0
        self.bytes_up = 0

    async def gather(self, clients: int, *, rounds: int) -> None:
        """Define the task, enrol everyone and let everyone join."""
        policy = {"rounds": rounds, "clients_expected": clients, "deadline_seconds": 3600}
        spec = {"name": self._task, "labels": ["no", "yes"], "template": "{text} =", "model": "m", "layers": "all"}
        await self._ask("POST", "/v1/tasks", spec | {"groups": self._payload.groups, "policy": policy})
        await each([Member(rank, "") for rank in range(clients)], self._enrol)
        self.members.sort(key=lambda member: member.rank)
        await each(self.members, self._join)

    async def _ask(self, method: str, path: str, message: object = None) -> dict[str, object]:
        body = b"" if message is None else json.dumps(message).encode()
        return dict(json.loads(await self._wire.request(method, path, self._admin, body)))

    async def _enrol(self, member: Member) -> None:
        made = await self._ask("POST", "/v1/clients", {"name": f"{self._task}-{member.rank:05}"})
        self.members.append(Member(member.rank, str(made["token"])))

    async def _join(self, member: Member) -> None:
        shape = {"num_layers": self._payload.layers, "hidden_size": self._payload.hidden}
        identity = {"name": "m", "fingerprint": FINGERPRINT, "family": "llama"} | shape
        message = {"identity": identity, "label_counts": {"no": 50, "yes": 50}, "holdout": 100, "probe": self._probe}
        await self._wire.request("POST", f"/v1/tasks/{self._task}/join", member.token, json.dumps(message).encode(), name="join")

    async def start(self) -> None:
        await self._ask("POST", f"/v1/tasks/{self._task}/start")

    async def round(self, number: object) -> dict[str, object]:
        """One round as an admin sees it."""
        return await self._ask("GET", f"/v1/tasks/{self._task}/rounds/{number}")

    async def next_round(self) -> dict[str, object]:
        """What the first client is asked to do, once it is asked anything."""
        while True:
            asked = await self.assignment(self.members[0])
            if asked["kind"] not in ("wait", "join"):
                return asked

    async def assignment(self, member: Member, *, wait: float = 30.0) -> dict[str, object]:
        path = f"/v1/tasks/{self._task}/assignment?wait={wait}"
        return dict(json.loads(await self._wire.request("GET", path, member.token, name="assignment")))

    async def take_part(self, member: Member) -> None:
        """Ask, fetch what the work starts from, contribute."""
        asked = await self.assignment(member)
        number, version = asked["round"], asked["version"]
        if asked["kind"] == "context":
            return await self.contribute(member, f"{number}/context", self._payload.context(member.rank), name="context")
        await self._wire.request("GET", f"/v1/tasks/{self._task}/coefficients?version={version}", member.token, name="download")
        assert isinstance(version, int)
        calibrating = asked["kind"] == "calibration"
        body = self._payload.update(member.rank, version) if calibrating else self._payload.evaluation(version)
        return await self.contribute(member, f"{number}/update", body, name="update")

    async def contribute(self, member: Member, where: str, body: bytes, *, name: str) -> None:
        await self._wire.request("PUT", f"/v1/tasks/{self._task}/rounds/{where}", member.token, body, name=name)
        self.contributions += 1
        self.bytes_up += len(body)

    async def run(self) -> list[float]:
        """Every round to the end of the task; the seconds of each, its closing included."""
        await self.start()
        took = []
        asked = await self.next_round()
        while asked["kind"] != "done":
            began = time.perf_counter()
            asked = await self.whole_round()
            took.append(time.perf_counter() - began)
        return took

    async def whole_round(self) -> dict[str, object]:
        """Everyone takes part; what the first client is asked to do once the round has closed."""
        await each(self.members, self.take_part)
        return await self.next_round()

    async def paced(self, rate: float) -> None:
        """One calibration round in which updates are sent at `rate` a second, whether or not those before were answered."""
        asked = await self.next_round()
        version = asked["version"]
        assert isinstance(version, int)
        bodies = [self._payload.update(member.rank, version) for member in self.members]
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for index, (member, body) in enumerate(zip(self.members, bodies, strict=True)):
                await asyncio.sleep(max(0.0, began + index / rate - time.perf_counter()))
                group.create_task(self.contribute(member, f"{asked['round']}/update", body, name="paced"))
