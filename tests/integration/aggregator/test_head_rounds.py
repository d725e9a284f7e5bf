"""Head rounds over HTTP: clients that drop out or withdraw in the middle of a solution, and answers that do not fit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from ifed.clients import AggregatorClient
from ifed.errors import LayoutMismatch, NonFinite, WrongState
from ifed.messages.bodies import ContextBody, HeadBody, HeldOutCounts, UpdateBody
from ifed.messages.enums import AssignmentKind, HeadQuestion, RoundKind, RoundState, TaskState
from ifed.messages.rounds import Assignment, ContributionMeta, RoundInfo
from ifed.messages.tasks import TaskSpec
from ifed.tensors.quantization import QuantizedRows
from ifed.tensors.regression import RIDGES, TEMPERATURES, RegressionData, Standardization, contrasts, log_likelihoods
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
