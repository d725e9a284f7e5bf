"""What OpenAPI says of the aggregator holds: schemathesis sends it what the schema allows and what it forbids, to a real process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import positive_data_acceptance
from schemathesis.config import (
    CoveragePhaseConfig,
    GenerationConfig,
    OperationConfig,
    OperationsConfig,
    PhasesConfig,
    ProjectConfig,
    ProjectsConfig,
    SchemathesisConfig,
    StatefulPhaseConfig,
)
from schemathesis.filters import FilterSet

from ifed.clients import AggregatorClient
from ifed.messages.bodies import TENSORS
from testing.factories import ADMIN_TOKEN, spec
from testing.processes import Process
from tests.house.promises import app_of
from tests.integration.aggregator.deployment import TASK, SimulatedClient

# Rules of one field on another, which no schema can say; their refusals have tests of their own.
BEYOND_A_SCHEMA = {
    "POST /v1/tasks": "labels, template, rule and quorum must go together",
    "PATCH /v1/tasks/{task}": "the same",
    "POST /v1/tasks/{task}/start": "two sources of a warm start",
    "POST /v1/tasks/{task}/join": "a probe is base64 of as many numbers as the model has layers",
    "POST /v1/webhooks": "an address that leads nowhere or inside",
    "POST /v1/tasks/{task}/context": "a safetensors file",
    "PUT /v1/tasks/{task}/rounds/{number}/context": "a safetensors file",
    "PUT /v1/tasks/{task}/rounds/{number}/update": "a safetensors file",
    "PUT /v1/tasks/{task}/rounds/{number}/head": "a safetensors file",
}
# Not ours, or without an end.
LEFT_OUT = ("/metrics", "/v1/events")


@schemathesis.serializer(TENSORS)
def tensors(_context: Any, value: Any) -> bytes:
    """What is sent as a safetensors file."""
    return value if isinstance(value, bytes) else str(value).encode()


def bounded() -> SchemathesisConfig:
    """Few examples, the same at every run."""
    phases = PhasesConfig(stateful=StatefulPhaseConfig(enabled=False), coverage=CoveragePhaseConfig(unexpected_methods=set()))
    # A policy has forty fields, and every edge of each is a case: a thousand of them. Two routes are drawn from at random instead.
    many = FilterSet()
    many.include(path_regex=r"^/v1/tasks(/\{task\})?$", method=["POST", "PATCH"])
    drawn = OperationConfig(
        filter_set=many,
        phases=PhasesConfig(coverage=CoveragePhaseConfig(enabled=False)),
        generation=GenerationConfig(max_examples=25, deterministic=True),
    )
    project = ProjectConfig(
        generation=GenerationConfig(max_examples=3, deterministic=True),
        phases=phases,
        operations=OperationsConfig(operations=[drawn]),
    )
    return SchemathesisConfig(projects=ProjectsConfig(default=project))


schema = schemathesis.openapi.from_dict(app_of("aggregator").openapi(), config=bounded()).exclude(path=list(LEFT_OUT))


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """An aggregator with a task that has finished, `sentiment`, as the examples of the schema name it."""
    made = Process(
        tmp_path_factory.mktemp("schema"), LOG_LEVEL="WARNING", REQUESTS_PER_MINUTE="1000000", FAILED_ATTEMPTS_PER_MINUTE="1000000"
    )
    made.start()
    try:
        asyncio.run(run_a_task(made.url))
        yield made
    finally:
        made.close()


async def run_a_task(url: str) -> None:
    async with AggregatorClient(url, ADMIN_TOKEN) as admin:
        await admin.create_task(spec(clients_expected=1, rounds=1))
        await admin.start(TASK)
        token = (await admin.enrol("north")).token
        async with RemoteClient(url, token) as client:
            await client.run()


class RemoteClient(SimulatedClient):
    """A simulated client of an aggregator elsewhere."""

    def __init__(self, url: str, token: str) -> None:
        AggregatorClient.__init__(self, url, token)
        self.value, self.examples, self.confusion, self.label_probabilities = 1.0, 1, np.array([[3, 1], [1, 3]]), [0.25, 0.75]


@pytest.fixture(scope="module")
def client_token(process: Process) -> str:
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    return str(httpx.post(f"{process.url}/v1/clients", json={"name": "south"}, headers=headers).json()["token"])


@schema.parametrize()
@settings(database=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_one_that_the_schema_tells_of(case: schemathesis.Case, process: Process, client_token: str) -> None:
    operation = case.operation
    token = client_token if "client" in (operation.definition.raw.get("tags") or []) else ADMIN_TOKEN
    left_out = [positive_data_acceptance] if f"{operation.method.upper()} {operation.path}" in BEYOND_A_SCHEMA else []
    case.call_and_validate(base_url=process.url, headers={"Authorization": f"Bearer {token}"}, excluded_checks=left_out)


def test_nothing_unforeseen_was_in_the_log(process: Process) -> None:
    """Runs last in this file: no request above was an error that nobody foresaw."""
    assert "unexpected error" not in process.log()
    assert "Traceback" not in process.log()
