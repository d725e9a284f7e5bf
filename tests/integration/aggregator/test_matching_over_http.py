"""The task cache over HTTP on both stacks: the most similar finished tasks, and their coefficients as a warm start."""

from __future__ import annotations

import numpy as np
import pytest

from ifed.errors import Malformed, NothingYet
from ifed.messages.bodies import ContextBody
from ifed.messages.enums import AssignmentKind, RoundState, TaskState
from ifed.messages.rounds import ContributionMeta, Start
from ifed.tensors.values import ContextVector
from services.aggregator.settings import Settings
from services.aggregator.storage.database import connect
from testing.factories import FINGERPRINT, layout, spec
from tests.integration.aggregator.deployment import Deployment, SimulatedClient

DIRECTIONS = {"movies": (1.0, 0.2), "tweets": (1.0, 1.0), "chemistry": (-1.0, 0.5)}


def leaning(first: float, second: float) -> ContextVector:
    values = np.zeros(layout().context_shape, np.float32)
    values[:, :, 0], values[:, :, 1] = first, second
    return ContextVector(values)


async def run(aggregator: Deployment, client: SimulatedClient, name: str, how: Start | None = None, **changes: object) -> None:
    """A task through all of its rounds, with the context vector of its direction."""
    await aggregator.admin.create_task(spec(name, clients_expected=1, rounds=1, **changes))
    await aggregator.admin.start(name, how)
    await client.join_task(name)
    await gather_context(client, name)
    await client.run(name)


async def gather_context(client: SimulatedClient, name: str) -> None:
    assignment = await client.assignment(name, wait=5)
    assert assignment.kind is AssignmentKind.CONTEXT
    assert assignment.round is not None
    vector = leaning(*DIRECTIONS.get(name, (1.0, 0.3)))
    await client.submit_context(
        name, assignment.round, ContextBody(vector, ContributionMeta(fingerprint=FINGERPRINT, examples=1)).to_bytes()
    )
    await client.assignment(name, wait=5)


async def finished(aggregator: Deployment) -> SimulatedClient:
    client = await aggregator.client("a")
    for rank, name in enumerate(DIRECTIONS, start=1):
        client.value = float(rank)
        await run(aggregator, client, name)
    return client


async def test_the_most_similar_finished_tasks_are_found(aggregator: Deployment) -> None:
    client = await finished(aggregator)
    await run(aggregator, client, "other-layout", groups=4)
    await run(aggregator, client, "new")
    matches = await aggregator.admin.match("new")
    assert [match.task for match in matches] == ["movies", "tweets", "chemistry"]
    assert matches[0].similarity > 0.9 > matches[2].similarity
    task = await aggregator.admin.task("movies")
    assert (matches[0].version, matches[0].labels) == (task.served, task.spec.labels)
    assert matches[0].evaluation == next(evaluation for evaluation in task.evaluations if evaluation.version == task.served)
    assert [match.task for match in await aggregator.admin.match("new", limit=1)] == ["movies"]


@pytest.mark.parametrize("how", [Start(warm_start=True), Start(warm_start_from="chemistry")])
async def test_a_warm_start_begins_with_the_coefficients_of_another_task(aggregator: Deployment, how: Start) -> None:
    client = await finished(aggregator)
    await run(aggregator, client, "new", how)
    source = how.warm_start_from or "movies"
    assert (await aggregator.admin.task("new")).warm_start == source
    served = (await aggregator.admin.task(source)).served
    assert await client.coefficients("new", version=0) == await client.coefficients(source, version=served)


async def test_where_nothing_is_like_it_a_task_starts_cold(embedded: Deployment) -> None:
    client = await embedded.client("a")
    await run(embedded, client, "first", Start(warm_start=True))
    task = await embedded.admin.task("first")
    assert (task.state, task.warm_start) == (TaskState.FINISHED, None)
    assert await embedded.admin.match("first") == []


@pytest.mark.parametrize(("source", "words"), [("nowhere", "no task named 'nowhere'"), ("other-layout", "other groups")])
async def test_a_source_that_cannot_be_taken_fails_the_round_by_name(embedded: Deployment, source: str, words: str) -> None:
    client = await embedded.client("a")
    await run(embedded, client, "other-layout", groups=4)
    await embedded.admin.create_task(spec("sentiment", clients_expected=1))
    await embedded.admin.start("sentiment", Start(warm_start_from=source))
    await client.join_task()
    await gather_context(client, "sentiment")
    failed = await embedded.until_round(1, RoundState.FAILED)
    assert failed.reason is not None
    assert words in failed.reason
    await embedded.admin.start("sentiment")
    await gather_context(client, "sentiment")
    assert (await embedded.until_round(2, RoundState.CLOSED)).produced == 0


async def test_two_sources_are_one_too_many(embedded: Deployment) -> None:
    await embedded.admin.create_task(spec())
    answer = await embedded.raw("POST", "/v1/tasks/sentiment/start", json={"warm_start": True, "warm_start_from": "movies"})
    assert (answer.status_code, answer.json()["error"]) == (422, Malformed.__name__)


async def test_a_task_without_a_context_vector_cannot_be_matched(embedded: Deployment) -> None:
    await embedded.started()
    with pytest.raises(NothingYet):
        await embedded.admin.match("sentiment")


async def test_postgres_compares_vectors_itself_where_it_can(aggregator: Deployment, stack: Settings) -> None:
    if not stack.database_url.startswith("postgresql"):
        pytest.skip("SQLite has no pgvector; numpy compares there")
    database = connect(stack.database_url)
    async with database.read_only() as work:
        statement = "SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'"
        there = (await work.connection.exec_driver_sql(statement)).scalar_one()
        assert await work.sketches.has_pgvector() is bool(there)
    await database.close()
