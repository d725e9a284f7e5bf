"""An aggregator in this process with clients that only know numpy: what the integration tests drive over its HTTP API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI

from ifed.clients import AggregatorClient
from ifed.messages.bodies import UpdateBody
from ifed.messages.enums import AssignmentKind, Role, RoundState, TaskState
from ifed.messages.rounds import Assignment, ContributionMeta, Receipt, RoundInfo, TaskInfo
from ifed.tensors.confidence import ConfidenceBins
from ifed.tensors.quantization import QuantizedUpdate
from ifed.tensors.values import Coefficients, Gradient
from services.aggregator.app import create_app
from services.aggregator.settings import Settings
from testing.factories import ADMIN_TOKEN, FINGERPRINT, context_body, join_request, spec

TASK = "sentiment"
PATIENCE = 10.0


def settings(database: str, **changes: Any) -> Settings:
    """Settings of a test's aggregator: quick ticks, its schema made at the start."""
    quick = {"tick_seconds": 0.05, "recheck_seconds": 0.5, "claim_seconds": 2.0, "migrate_on_start": True}
    quick["failed_attempts_per_minute"] = 1000  # tests try wrong tokens at every route
    return Settings.model_validate({"database_url": database, "admin_token": ADMIN_TOKEN} | quick | changes)


@asynccontextmanager
async def running(configuration: Settings) -> AsyncIterator[FastAPI]:
    """An application between its start and its end."""
    app = create_app(configuration)
    async with app.router.lifespan_context(app):
        yield app


class SimulatedClient(AggregatorClient):
    """A client agent without a model: its vector is `value` everywhere, its update the coefficients it got plus `value`, or the gradient `-value`."""

    confidence: ConfidenceBins | None = None

    def __init__(self, app: FastAPI, name: str, token: str, *, value: float, examples: int) -> None:
        super().__init__("http://aggregator", token, transport=httpx.ASGITransport(app))
        self.name, self.value, self.examples = name, value, examples
        self.confusion = np.array([[3, 1], [1, 3]])
        first = min(0.25 * abs(value), 1.0)
        self.label_probabilities = [first, 1 - first]

    async def join_task(self, task: str = TASK) -> None:
        await self.join(task, join_request(examples=self.examples))

    async def contribute(self, assignment: Assignment, task: str = TASK) -> Receipt:
        """Do what the assignment says."""
        if assignment.kind is AssignmentKind.ADDITION:
            return await self.add_context(task, context_body(self.value, examples=self.examples))
        assert assignment.round is not None
        if assignment.kind is AssignmentKind.CONTEXT:
            return await self.submit_context(task, assignment.round, context_body(self.value, examples=self.examples))
        return await self.submit_update(task, assignment.round, await self.update(assignment, task))

    async def update(self, assignment: Assignment, task: str = TASK) -> bytes:
        start = await self.coefficients(task, version=assignment.version)
        calibrates, gradient = assignment.kind is AssignmentKind.CALIBRATION, assignment.task.policy.mode == "gradient"
        dtype, update = assignment.task.policy.update_dtype, None
        if calibrates and gradient:
            update = Gradient(np.full_like(start.values, -self.value))
        elif calibrates:
            made = Coefficients(start.values + np.float32(self.value))
            update = made if dtype == "float32" else QuantizedUpdate.of(made.values - start.values, dtype)
        scores = np.array(self.label_probabilities, np.float32) if assignment.task.policy.label_bias else None
        meta = ContributionMeta(
            fingerprint=FINGERPRINT, examples=self.examples, version=assignment.version, loss=self.value, seconds=0.5
        )
        confidence = self.confidence if assignment.confidence else None
        return UpdateBody(update, self.confusion, meta, label_probabilities=scores, confidence=confidence).to_bytes()

    async def run(self, task: str = TASK) -> Assignment:
        """Take part until the task is done."""
        while True:
            assignment = await self.assignment(task, wait=PATIENCE)
            if assignment.kind in (AssignmentKind.DONE, AssignmentKind.WITHDRAWN):
                return assignment
            if assignment.kind is AssignmentKind.JOIN:
                await self.join_task(task)
            elif assignment.kind is not AssignmentKind.WAIT:
                await self.contribute(assignment, task)


class Deployment:
    """One running aggregator, its admin, and whom the admin enrolled."""

    def __init__(self, app: FastAPI, stack: AsyncExitStack) -> None:
        self.app, self._stack = app, stack
        self.admin = AggregatorClient("http://aggregator", ADMIN_TOKEN, transport=httpx.ASGITransport(app))
        stack.push_async_callback(self.admin.close)

    async def client(self, name: str, *, value: float = 1.0, examples: int = 1, role: Role = Role.CLIENT) -> SimulatedClient:
        """Enrol a party and give its client."""
        token = (await self.admin.enrol(name, role)).token
        return await self._stack.enter_async_context(SimulatedClient(self.app, name, token, value=value, examples=examples))

    async def clients(self, *names: str) -> list[SimulatedClient]:
        """Enrol clients and let them join; the first has the value 1 and one example, the second 2 and 2, …"""
        made = [await self.client(name, value=float(rank), examples=rank) for rank, name in enumerate(names, start=1)]
        for client in made:
            await client.join_task()
        return made

    async def raw(self, method: str, path: str, *, token: str | None = ADMIN_TOKEN, **options: Any) -> httpx.Response:
        """A request as it is, for what our own client would not send."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(base_url="http://aggregator", transport=transport) as http:
            return await http.request(method, path, headers=headers | options.pop("headers", {}), **options)

    async def started(self, **policy: Any) -> TaskInfo:
        """A running task with the policy's changes."""
        await self.admin.create_task(spec(TASK, **policy))
        return await self.admin.start(TASK)

    async def until_round(self, number: int, *states: RoundState) -> RoundInfo:
        """The round once it is in one of `states`."""

        def there(task: TaskInfo) -> bool:
            return task.round is not None and (task.round.number, task.round.state in states) >= (number, True)

        await self.until(there)
        return await self.admin.round(TASK, number)

    async def until(self, there: Callable[[TaskInfo], bool], admin: AggregatorClient | None = None) -> TaskInfo:
        """The task once `there` holds."""
        async with asyncio.timeout(PATIENCE):
            while not there(info := await (admin or self.admin).task(TASK)):  # over HTTP there is no event
                await asyncio.sleep(0.02)
        return info

    async def until_state(self, state: TaskState) -> TaskInfo:
        return await self.until(lambda task: task.state is state)


@asynccontextmanager
async def deployed(configuration: Settings) -> AsyncIterator[Deployment]:
    """A running aggregator and its admin."""
    async with running(configuration) as app, AsyncExitStack() as stack:
        yield Deployment(app, stack)
