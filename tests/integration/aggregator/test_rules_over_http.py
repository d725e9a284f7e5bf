"""Aggregation rules, server optimisers, gradient mode and label biases through whole rounds over HTTP, on both stacks."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from ifed.errors import LayoutMismatch, Malformed
from ifed.messages.bodies import UpdateBody
from ifed.messages.enums import RoundState
from ifed.messages.rounds import Assignment, ContributionMeta
from ifed.tensors.quantization import QuantizedUpdate
from ifed.tensors.values import CONTEXT, Coefficients, Gradient
from testing.factories import FINGERPRINT, coefficients
from tests.integration.aggregator.deployment import TASK, Deployment, SimulatedClient


async def context_weight(client: SimulatedClient, version: int) -> float:
    return float((await client.coefficients(TASK, version=version)).values[:, :, CONTEXT].max())


async def test_in_gradient_mode_the_aggregator_takes_the_step(aggregator: Deployment) -> None:
    await aggregator.started(rounds=2, mode="gradient", learning_rate=0.5, learning_rate_schedule="constant")
    clients = await aggregator.clients("a", "b")
    await asyncio.gather(*(client.run() for client in clients))
    step = 0.5 * (1 * 1 + 2 * 2) / 3
    assert [await context_weight(clients[0], version) for version in (0, 1, 2)] == pytest.approx([0, step, 2 * step])


async def test_momentum_outlives_the_round_it_came_from(aggregator: Deployment) -> None:
    await aggregator.started(rounds=2, clients_expected=1, server_optimizer="fedavgm", server_momentum=0.5)
    (client,) = await aggregator.clients("a")
    await client.run()
    assert [await context_weight(client, version) for version in (1, 2)] == [1.0, 1.0 + 1.5]


async def test_one_liar_among_five_moves_a_median_nowhere(aggregator: Deployment) -> None:
    await aggregator.started(rounds=1, clients_expected=5, aggregation="median")
    clients = await aggregator.clients("a", "b", "c", "d", "liar")
    clients[-1].value = 1e6
    await asyncio.gather(*(client.run() for client in clients))
    assert await context_weight(clients[0], 1) == 3.0


async def test_a_rule_that_too_few_came_for_fails_the_round_by_name(aggregator: Deployment) -> None:
    await aggregator.started(rounds=1, clients_expected=5, aggregation="multi_krum")
    client, *_ = await aggregator.clients("a", "b", "c", "d", "e")
    await client.contribute(await client.assignment(TASK, wait=5))
    await aggregator.admin.close_round(TASK, 1)
    failed = await aggregator.until_round(1, RoundState.FAILED)
    assert failed.reason == "it could not be aggregated: multi-Krum against 1 needs 5 contributions, 1 came"


async def test_a_policy_that_could_not_aggregate_is_refused_when_the_task_is_made(embedded: Deployment) -> None:
    fields = (await embedded.started()).spec.model_dump(mode="json") | {"name": "other", "identity": None}
    fields["policy"] |= {"aggregation": "multi_krum", "clients_expected": 2}
    answer = await embedded.raw("POST", "/v1/tasks", json=fields)
    assert (answer.status_code, answer.json()["error"]) == (422, Malformed.__name__)
    assert "'multi_krum' against byzantine_fraction 0.1 needs 5" in answer.json()["detail"]


@pytest.mark.parametrize("mode", ["coefficients", "gradient"])
async def test_a_round_takes_what_its_mode_asks_for_and_nothing_else(embedded: Deployment, mode: str) -> None:
    await embedded.started(clients_expected=1, mode=mode)
    (client,) = await embedded.clients("a")
    await client.contribute(await client.assignment(TASK, wait=5))
    assignment = await client.assignment(TASK, wait=5)
    assert assignment.work is not None
    assert assignment.work.mode == mode
    for wrong in wrong_updates(assignment, mode):
        with pytest.raises(LayoutMismatch, match="this is a calibration round; it takes"):
            await client.submit_update(TASK, 2, wrong)
    await client.contribute(assignment)


def wrong_updates(assignment: Assignment, mode: str) -> list[bytes]:
    meta = ContributionMeta(fingerprint=FINGERPRINT, examples=1, version=assignment.version)
    table, values = np.eye(2, dtype=np.int64), coefficients().values
    alone, slope = Coefficients(values), Gradient(values)
    return [UpdateBody(update, table, meta).to_bytes() for update in (None, alone if mode == "gradient" else slope)]


@pytest.mark.parametrize(("dtype", "error"), [("float16", 1e-3), ("int8", 1e-5), ("int4", 1e-3)])
async def test_changes_are_added_to_the_version_a_round_starts_from(aggregator: Deployment, dtype: str, error: float) -> None:
    await aggregator.started(rounds=2, update_dtype=dtype)
    clients = await aggregator.clients("a", "b")
    await asyncio.gather(*(client.run() for client in clients))
    step = (1 * 1 + 2 * 2) / 3
    assert [await context_weight(clients[0], version) for version in (0, 1, 2)] == pytest.approx([0, step, 2 * step], rel=error)
    replayed = [await aggregator.admin.replay(TASK, number) for number in (2, 3)]
    assert all(replay.proven for replay in replayed)


@pytest.mark.parametrize(("dtype", "takes"), [("float32", "coefficients"), ("float16", "a change in float16"), ("int4", "in int4")])
async def test_a_round_takes_updates_of_its_tasks_dtype_alone(embedded: Deployment, dtype: str, takes: str) -> None:
    await embedded.started(clients_expected=1, update_dtype=dtype)
    (client,) = await embedded.clients("a")
    await client.contribute(await client.assignment(TASK, wait=5))
    assignment = await client.assignment(TASK, wait=5)
    meta = ContributionMeta(fingerprint=FINGERPRINT, examples=1, version=assignment.version)
    table, values = np.eye(2, dtype=np.int64), coefficients().values
    bodies = {name: UpdateBody(QuantizedUpdate.of(values, name), table, meta) for name in ("float16", "int8", "int4")}
    bodies["float32"] = UpdateBody(Coefficients(values), table, meta)
    for wrong in (body for name, body in bodies.items() if name != dtype):
        with pytest.raises(LayoutMismatch, match=f"it takes {takes}|it takes .*{takes}"):
            await client.submit_update(TASK, 2, wrong.to_bytes())
    flat = QuantizedUpdate.of(np.ones((1, 2, 2, 5), np.float32), "int4" if dtype == "int4" else "float16")
    if dtype != "float32":
        with pytest.raises(LayoutMismatch, match="the update has shape"):
            await client.submit_update(TASK, 2, UpdateBody(flat, table, meta).to_bytes())
    await client.contribute(assignment)


async def test_an_adapter_carries_the_label_bias_of_its_version(aggregator: Deployment) -> None:
    await aggregator.started(rounds=1)
    first, second = await aggregator.clients("a", "b")
    second.confusion = np.array([[1, 1], [0, 0]])
    await asyncio.gather(first.run(), second.run())
    fetched = await first.adapter(TASK)
    assert fetched is not None
    # 8 and 2 held-out examples told 0.25 and 0.5 for the first label, which 6 of the 10 carry.
    assert fetched[1].meta.label_bias == pytest.approx(np.log([0.3 / (7 / 12), 0.7 / (5 / 12)]))


async def test_without_the_option_an_adapter_carries_no_bias(embedded: Deployment) -> None:
    await embedded.started(rounds=1, clients_expected=1, label_bias=False)
    (client,) = await embedded.clients("a")
    await client.run()
    fetched = await client.adapter(TASK)
    assert fetched is not None
    assert fetched[1].meta.label_bias is None
