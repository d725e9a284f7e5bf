"""Head rounds over HTTP: clients that drop out or withdraw in the middle of a solution, and answers that do not fit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from ifed.clients import AggregatorClient
from ifed.errors import LayoutMismatch, NonFinite, NothingYet, WrongState
from ifed.messages.bodies import ContextBody, HeadBody, HeldOutCounts, UpdateBody
from ifed.messages.enums import AssignmentKind, HeadQuestion, RoundKind, RoundState, TaskState
from ifed.messages.rounds import Assignment, ContributionMeta, RoundInfo
from ifed.messages.tasks import TaskSpec
from ifed.tensors.quantization import QuantizedRows
from ifed.tensors.regression import (
    RIDGES,
    TEMPERATURES,
    LabelHead,
    RegressionData,
    Standardization,
    contrasts,
    log_likelihoods,
)
from ifed.tensors.values import Float64
from testing.factories import FINGERPRINT, LABELS, coefficients, context_values, join_request, layout, spec
from tests.integration.aggregator.deployment import PATIENCE, TASK, Deployment, deployed, settings

CHANNELS = layout().hidden_size
STANDARDIZATION = Standardization(np.zeros(CHANNELS, np.float32), np.ones(CHANNELS, np.float32))


class HeadClient:
    """A client without a model whose final states are random."""

    def __init__(self, client: AggregatorClient, seed: int) -> None:
        self.client = client
        generator = np.random.default_rng(seed)
        self.states = generator.normal(size=(30, CHANNELS))
        self.labels = (self.states[:, 0] + 0.3 * generator.normal(size=30) > 0).astype(int)

    def meta(self, assignment: Assignment, examples: int = 30) -> ContributionMeta:
        return ContributionMeta(fingerprint=FINGERPRINT, examples=examples, version=assignment.version)

    async def next(self) -> Assignment:
        assignment = await self.client.assignment(TASK, wait=PATIENCE)
        while assignment.kind is AssignmentKind.WAIT:
            assignment = await self.client.assignment(TASK, wait=PATIENCE)
        return assignment

    async def answer(self, assignment: Assignment) -> HeadBody:
        assert assignment.round is not None
        query = await self.client.query(TASK, assignment.round)
        if assignment.question is HeadQuestion.LIKELIHOOD:
            assert query.candidates is not None
            sums = log_likelihoods(self.states[:8], self.labels[:8].tolist(), query.candidates, query.shares, TEMPERATURES)
            return HeadBody(self.meta(assignment, 8), log_likelihoods=sums)
        data = RegressionData(self.states, self.labels.tolist(), query.shares)
        if assignment.question is HeadQuestion.SUMS:
            return HeadBody(self.meta(assignment), QuantizedRows.of(data.moment, "float32"), gram=data.gram().astype(np.float32))
        rows = data.moment if query.directions is None else data.product(query.directions)
        return HeadBody(self.meta(assignment), QuantizedRows.of(rows, "float32"))

    async def contribute(self, assignment: Assignment) -> None:
        assert assignment.round is not None
        if assignment.kind is AssignmentKind.CONTEXT:
            body = ContextBody(context_values(), self.meta(assignment), STANDARDIZATION)
            await self.client.submit_context(TASK, assignment.round, body.to_bytes())
        elif assignment.kind is AssignmentKind.HEAD:
            await self.client.submit_head(TASK, assignment.round, (await self.answer(assignment)).to_bytes())
        else:
            update = coefficients() if assignment.kind is AssignmentKind.CALIBRATION else None
            counts = HeldOutCounts(np.diag([4, 4]), np.array([0.5, 0.5], np.float32), -4.0)
            await self.client.submit_update(TASK, assignment.round, UpdateBody.of(counts, self.meta(assignment), update).to_bytes())

    async def run(self, until: AssignmentKind = AssignmentKind.DONE) -> Assignment:
        """Contribute until the assignment is of the kind `until`, and return that."""
        while (assignment := await self.next()).kind not in (until, AssignmentKind.DONE):
            await self.contribute(assignment)
        return assignment


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(settings(f"sqlite+aiosqlite:///{tmp_path / 'ifed.sqlite'}")) as running:
        yield running


async def started(deployment: Deployment, names: str = "abc", **policy: Any) -> list[HeadClient]:
    """Start a task with a label head, with clients that have joined and sent their context vectors."""
    policy = {"clients_expected": len(names), "rounds": 1, "head_rounds": 20} | policy
    task = spec(TASK, **policy).model_dump() | {"head": "regression", "injection": "last_token"}
    await deployment.admin.create_task(TaskSpec.model_validate(task))
    await deployment.admin.start(TASK)
    clients = []
    for seed, name in enumerate(names):
        token = (await deployment.admin.enrol(name)).token
        client = AggregatorClient("http://aggregator", token, transport=httpx.ASGITransport(deployment.app))
        await client.join(TASK, join_request(examples=30))
        clients.append(HeadClient(client, seed))
    for client in clients:
        await client.contribute(await client.next())
    return clients


def pooled(clients: list[HeadClient], shares: Float64, ridge: float) -> Float64:
    """Return the head of these clients' pooled data as numpy solves it, (C, d)."""
    states = np.concatenate([client.states for client in clients])
    labels = np.concatenate([client.labels for client in clients])
    targets = np.eye(len(LABELS))[labels] - shares
    matrix = states.T @ states / len(states) + ridge * np.eye(CHANNELS)
    return np.linalg.solve(matrix, states.T @ targets / len(states)).T


async def check_solved_from(deployment: Deployment, clients: list[HeadClient], last: RoundInfo) -> None:
    """Check that the candidates of the last question are the solutions of these clients' data alone, and that the version carries one."""
    query = await clients[0].client.query(TASK, last.number)
    assert query.candidates is not None
    place = RIDGES.index(0.3)
    actual = contrasts(len(LABELS)).T @ query.candidates[place]
    expected = pooled(clients, query.shares, RIDGES[place])
    assert np.linalg.norm(actual - expected) < 1e-3 * np.linalg.norm(expected)
    assert last.produced is not None
    _, head = await clients[0].client.version(TASK, last.produced)
    assert head is not None
    assert head.weight.shape == (len(LABELS), CHANNELS)


async def head_rounds(deployment: Deployment) -> list[RoundInfo]:
    rounds = await deployment.admin.rounds(TASK)
    return [round_ for round_ in rounds if round_.kind is RoundKind.HEAD and round_.state is RoundState.CLOSED]


async def test_a_client_that_drops_out_in_the_middle_leaves_nothing_in_the_head(deployment: Deployment) -> None:
    first, second, third = await started(deployment, quorum=2, deadline_seconds=3600)
    for client in (first, second, third):
        await client.contribute(await client.next())  # the moment
    for client in (first, second):
        await client.contribute(await client.next())  # the first product; the third client is gone
    number = (await deployment.admin.task(TASK)).round
    assert number is not None
    await deployment.admin.close_round(TASK, number.number)
    rest = [first, second]
    while (assignment := await first.next()).kind is AssignmentKind.HEAD:
        await first.contribute(assignment)
        await second.contribute(await second.next())
    last = (await head_rounds(deployment))[-1]
    assert last.expected == ["a", "b"]
    await check_solved_from(deployment, rest, last)
    assert (await third.client.assignment(TASK)).kind is AssignmentKind.CALIBRATION, "the next rounds ask it again"


async def test_a_withdrawal_before_the_last_answer_makes_the_candidates_anew(deployment: Deployment) -> None:
    first, second, third = await started(deployment)
    while (assignment := await first.next()).question is not HeadQuestion.LIKELIHOOD:
        for client in (first, second, third):
            await client.contribute(await client.next())
    await third.client.withdraw(TASK)
    while (assignment := await first.next()).kind is AssignmentKind.HEAD:
        await first.contribute(assignment)
        await second.contribute(await second.next())
    rounds = await head_rounds(deployment)
    assert [round_.question for round_ in rounds].count(HeadQuestion.LIKELIHOOD) == 2
    await check_solved_from(deployment, [first, second], rounds[-1])


async def test_a_failed_head_round_is_opened_again_with_the_same_question(deployment: Deployment) -> None:
    clients = await started(deployment, retries=1)
    for client in clients:
        await client.contribute(await client.next())
    failed = await clients[0].next()
    assert failed.round is not None
    await deployment.admin.cancel_round(TASK, failed.round)
    await deployment.admin.resume(TASK)
    again = await clients[0].next()
    assert (again.kind, again.question) == (AssignmentKind.HEAD, failed.question)
    queries = [await clients[0].client.query(TASK, number or 0) for number in (failed.round, again.round)]
    np.testing.assert_array_equal(queries[0].directions, queries[1].directions)


async def test_answers_that_do_not_fit_are_refused_by_name_and_nothing_is_stored(deployment: Deployment) -> None:
    (client,) = await started(deployment, "a")
    assignment = await client.next()
    assert assignment.round is not None
    good, meta = await client.answer(assignment), client.meta(assignment)
    assert good.answer is not None
    rows = good.answer.values
    wrong = [
        (HeadBody(meta, QuantizedRows.of(rows, "int8")), LayoutMismatch),
        (HeadBody(meta, QuantizedRows.of(rows[:, :-1], "float32")), LayoutMismatch),
        (HeadBody(meta, good.answer, gram=np.zeros(3, np.float32)), LayoutMismatch),
        (HeadBody(meta, log_likelihoods=np.zeros((5, 12))), LayoutMismatch),
        (HeadBody(meta), LayoutMismatch),
    ]
    for body, refusal in wrong:
        with pytest.raises(refusal):
            await client.client.submit_head(TASK, assignment.round, body.to_bytes())
    with pytest.raises(NonFinite):
        QuantizedRows.of(np.full_like(rows, np.nan), "float32")
    counts = HeldOutCounts(np.diag([4, 4]))
    with pytest.raises(WrongState, match="takes an answer"):
        await client.client.submit_update(TASK, assignment.round, UpdateBody.of(counts, meta, coefficients()).to_bytes())
    receipts = [await client.client.submit_head(TASK, assignment.round, good.to_bytes()) for _ in range(2)]
    assert receipts[0] == receipts[1], "sending again is safe"


async def test_a_task_without_calibration_rounds_to_gain_ends_with_its_best_head(deployment: Deployment) -> None:
    clients = await started(deployment, "ab")
    while (assignment := await clients[0].next()).kind is not AssignmentKind.DONE:
        await clients[0].contribute(assignment)
        await clients[1].contribute(await clients[1].next())
    task = await deployment.admin.task(TASK)
    assert task.state is TaskState.FINISHED
    assert len(await head_rounds(deployment)) >= 6, "before calibration and after it"
    for round_ in await head_rounds(deployment):
        assert (await deployment.admin.replay(TASK, round_.number)).proven


async def finish(clients: list[HeadClient]) -> None:
    """Contribute to every round until the task is done."""
    while (assignment := await clients[0].next()).kind is not AssignmentKind.DONE:
        await clients[0].contribute(assignment)
        for client in clients[1:]:
            await client.contribute(await client.next())


async def served(deployment: Deployment, *, other_than: str | None = None) -> tuple[str, LabelHead]:
    """Return the digest and the label head of the served adapter, as soon as it is another one."""
    answer = await deployment.admin.adapter(TASK, known=other_than, wait=PATIENCE)
    assert answer is not None
    assert answer[1].head is not None
    return answer[0], answer[1].head


def distance(head: LabelHead, clients: list[HeadClient], choice: tuple[float, float], directions: Float64 | None = None) -> float:
    """Return how far a head is from these clients' solution for a λ and a temperature, relative to it.

    Args:
        directions: the solution is the best one in their space, (m, d); None for the whole space.
    """
    (ridge, temperature), shares = choice, np.array([0.5, 0.5])
    basis = np.eye(CHANNELS) if directions is None else directions
    states = np.concatenate([client.states for client in clients])
    targets = np.eye(len(LABELS))[np.concatenate([client.labels for client in clients])] - shares
    matrix = states.T @ states / len(states) + ridge * np.eye(CHANNELS)
    inner = np.linalg.solve(basis @ matrix @ basis.T, basis @ states.T @ targets / len(states))
    expected = temperature * (inner.T @ basis)
    return float(np.linalg.norm(head.weight - expected) / np.linalg.norm(expected))


async def asked_directions(client: HeadClient, rounds: list[RoundInfo]) -> Float64 | None:
    """Return all directions of the last solution; None of one by sums."""
    numbers = [round_.number for round_ in rounds]
    start = max(round_.number for round_ in rounds if round_.question in (HeadQuestion.MOMENT, HeadQuestion.SUMS))
    queries = [await client.client.query(TASK, number) for number in numbers if number > start]
    asked = [query.directions.astype(np.float64) for query in queries if query.directions is not None]
    return np.concatenate(asked) if asked else None


@pytest.mark.parametrize("solver", ["sums", "conjugate_gradient"])
async def test_who_withdraws_after_the_end_leaves_the_head_of_the_others_and_nobody_is_asked(
    deployment: Deployment, solver: str
) -> None:
    clients = await started(deployment, solver=solver, head_rounds=5)
    first, second, third = clients
    await finish(clients)
    digest, head = await served(deployment)
    directions = await asked_directions(first, await head_rounds(deployment))
    chosen = min(product(RIDGES, TEMPERATURES), key=lambda choice: distance(head, clients, choice, directions))
    assert distance(head, clients, chosen, directions) < 1e-4
    rounds = len(await deployment.admin.rounds(TASK))
    await third.client.withdraw(TASK)
    _, without = await served(deployment, other_than=digest)
    assert distance(without, [first, second], chosen, directions) < 1e-4
    assert distance(without, clients, chosen, directions) > 1e-2
    assert len(await deployment.admin.rounds(TASK)) == rounds
    assert (await first.client.assignment(TASK)).kind is AssignmentKind.DONE
    version = (await deployment.admin.task(TASK)).served
    pinned = await deployment.admin.adapter(TASK, version=version)
    assert pinned is not None
    assert pinned[1].head is not None
    np.testing.assert_array_equal(pinned[1].head.weight, head.weight)
    lines = [entry for entry in (await deployment.admin.ledger(TASK)) if entry.kind is RoundKind.HEAD]
    assert all(entry.withdrawn is (entry.client == "c") for entry in lines)
    assert (await deployment.admin.replay(TASK, 2)).proven


async def test_who_withdraws_between_its_last_answer_and_the_end_of_the_round_leaves_the_head_too(deployment: Deployment) -> None:
    clients = await started(deployment, solver="sums")
    first, second, third = clients
    while (assignment := await first.next()).question is not HeadQuestion.LIKELIHOOD or assignment.version == 0:
        for client in clients:
            await client.contribute(await client.next())
    for client in (first, third):
        await client.contribute(await client.next())
    await third.client.withdraw(TASK)
    await second.contribute(await second.next())
    await finish([first, second])
    _, head = await served(deployment)
    async with asyncio.timeout(PATIENCE):
        while min(distance(head, [first, second], choice) for choice in product(RIDGES, TEMPERATURES)) > 1e-5:
            await asyncio.sleep(0.02)
            _, head = await served(deployment)


async def test_the_head_of_a_single_client_that_withdraws_is_served_no_longer(deployment: Deployment) -> None:
    (client,) = await started(deployment, "a", solver="sums")
    await finish([client])
    digest, _ = await served(deployment)
    await client.client.withdraw(TASK)
    with pytest.raises(NothingYet):
        await deployment.admin.adapter(TASK, known=digest, wait=PATIENCE)


async def test_answers_that_were_withdrawn_are_deleted_and_the_replay_of_their_rounds_says_so(tmp_path: Path) -> None:
    database = f"sqlite+aiosqlite:///{tmp_path / 'ifed.sqlite'}"
    async with deployed(settings(database)) as deployment:
        clients = await started(deployment, solver="sums")
        await finish(clients)
        digest, _ = await served(deployment)
        await clients[2].client.withdraw(TASK)
        digest, head = await served(deployment, other_than=digest)
    async with deployed(settings(database, withdrawn_retention_days=0)) as deployment:
        async with asyncio.timeout(PATIENCE):
            while not (replay := await deployment.admin.replay(TASK, 2)).deleted:
                await asyncio.sleep(0.02)
        assert (replay.deleted, replay.proven) == (["c"], False)
        np.testing.assert_array_equal((await served(deployment))[1].weight, head.weight)
