"""Sampling, retries, rollback, the ledger and its replay over HTTP, on both stacks."""

from __future__ import annotations

import asyncio

import pytest
from fastapi import FastAPI

from ifed.errors import RoundClosed, UnknownVersion, WrongState
from ifed.messages.enums import AssignmentKind, RoundKind, RoundState, TaskState
from services.aggregator.domain.schedule import sample, seed_of
from testing.factories import context_body, update_body
from tests.integration.aggregator.deployment import TASK, Deployment


async def test_a_calibration_round_asks_a_sample_that_anyone_can_draw_again(aggregator: Deployment) -> None:
    names = ["a", "b", "c", "d"]
    await aggregator.started(rounds=2, clients_expected=4, sample=2)
    clients = await aggregator.clients(*names)
    await asyncio.gather(*(client.run() for client in clients))
    rounds = await aggregator.admin.rounds(TASK)
    assert [round_.expected for round_ in rounds] == [
        names,
        sample(names, 2, seed_of(TASK, 2)),
        sample(names, 2, seed_of(TASK, 3)),
        names,
    ]


async def test_a_client_that_was_not_drawn_waits_and_cannot_contribute(embedded: Deployment) -> None:
    await embedded.started(clients_expected=2, sample=1)
    clients = await embedded.clients("a", "b")
    assignment = await clients[0].assignment(TASK, wait=5)
    for client in clients:
        await client.contribute(assignment)
    drawn = (await embedded.until_round(2, RoundState.OPEN)).expected
    (other,) = [client for client in clients if client.name not in drawn]
    assert (await other.assignment(TASK)).kind is AssignmentKind.WAIT
    with pytest.raises(RoundClosed, match="was not drawn"):
        await other.submit_update(TASK, 2, update_body())


async def test_a_failed_round_is_opened_again_as_often_as_the_policy_says(aggregator: Deployment) -> None:
    await aggregator.started(clients_expected=2, deadline_seconds=0.3, retries=1)
    await aggregator.clients("a", "b")
    await aggregator.until_state(TaskState.FAILED)
    rounds = await aggregator.admin.rounds(TASK)
    assert [(round_.number, round_.kind, round_.state, round_.attempt) for round_ in rounds] == [
        (1, RoundKind.CONTEXT, RoundState.FAILED, 1),
        (2, RoundKind.CONTEXT, RoundState.FAILED, 2),
    ]
    assert rounds[0].reason == "0 of 2 needed contributions came; missing: a, b"
    again = (await aggregator.admin.start(TASK)).round
    assert again is not None
    assert (again.number, again.attempt) == (3, 1)


async def test_a_finished_task_serves_the_version_it_was_rolled_back_to(aggregator: Deployment) -> None:
    await aggregator.started(rounds=3, clients_expected=1)
    (client,) = await aggregator.clients("a")
    await client.run()
    before = await client.adapter(TASK)
    assert before is not None
    waiting = asyncio.create_task(client.adapter(TASK, known=before[0], wait=10))
    task = await aggregator.admin.rollback(TASK, 1)
    assert (task.state, task.version, task.served, task.reason) == (TaskState.FINISHED, 1, 1, "rolled back to version 1")
    assert [evaluation.version for evaluation in task.evaluations] == [0, 1]
    served = await waiting
    assert served is not None
    assert (served[1].meta.version, served[1].coefficients) == (1, await client.coefficients(TASK, version=1))
    kept = await client.adapter(TASK, version=3)
    assert kept is not None
    assert kept[1].meta.version == 3


async def test_a_running_task_goes_on_from_the_version_it_was_rolled_back_to(aggregator: Deployment) -> None:
    await aggregator.started(rounds=3, clients_expected=1, serve="latest")
    (client,) = await aggregator.clients("a")
    for _ in range(3):  # context, and the calibration rounds that make versions 1 and 2
        await client.contribute(await client.assignment(TASK, wait=5))
    await aggregator.until_round(4, RoundState.OPEN)
    task = await aggregator.admin.rollback(TASK, 1)
    assert (task.state, task.version, task.served) == (TaskState.PAUSED, 1, 1)
    assert (await aggregator.admin.round(TASK, 4)).state is RoundState.CANCELLED
    assert task.round is not None
    with pytest.raises(RoundClosed):
        await client.submit_update(TASK, 4, update_body(version=2))
    await aggregator.admin.resume(TASK)
    await client.run()
    rounds = await aggregator.admin.rounds(TASK)
    assert [(round_.kind, round_.state, round_.version, round_.produced) for round_ in rounds[3:]] == [
        (RoundKind.CALIBRATION, RoundState.CANCELLED, 2, None),
        (RoundKind.CALIBRATION, RoundState.CLOSED, 1, 3),
        (RoundKind.CALIBRATION, RoundState.CLOSED, 3, 4),
        (RoundKind.EVALUATION, RoundState.CLOSED, 4, None),
    ]
    assert [evaluation.version for evaluation in (await aggregator.admin.task(TASK)).evaluations] == [0, 1, 1, 3, 4]


async def test_there_is_no_way_back_to_a_version_that_never_was(embedded: Deployment) -> None:
    await embedded.started(clients_expected=1)
    with pytest.raises(UnknownVersion):
        await embedded.admin.rollback(TASK, 0)


async def test_the_ledger_names_every_contribution_by_its_digest(aggregator: Deployment) -> None:
    await aggregator.started(rounds=1)
    first, second = await aggregator.clients("a", "b")
    assignment = await first.assignment(TASK, wait=5)
    receipts = [await client.contribute(assignment) for client in (first, second)]
    await asyncio.gather(first.run(), second.run())
    entries = await aggregator.admin.ledger(TASK)
    assert [(entry.round, entry.client) for entry in entries] == [(number, name) for number in (1, 2, 3) for name in ("a", "b")]
    assert [(entry.digest, entry.received_at) for entry in entries[:2]] == [
        (receipt.digest, receipt.received_at) for receipt in receipts
    ]
    assert [entry.bytes for entry in entries[:1]] == [len(context_body(1.0, examples=1, seconds=1.5))]
    page = (await aggregator.raw("GET", f"/v1/tasks/{TASK}/ledger", params={"limit": 3})).json()
    assert (len(page["items"]), page["next"]) == (3, "2/a/0")
    rest = (await aggregator.raw("GET", f"/v1/tasks/{TASK}/ledger", params={"after": page["next"]})).json()
    assert ([(item["round"], item["client"]) for item in rest["items"]], rest["next"]) == ([(2, "b"), (3, "a"), (3, "b")], None)


@pytest.mark.parametrize(
    "policy",
    [
        {},
        {"aggregation": "geometric_median", "norm_bound": 0.7},
        {"mode": "gradient", "server_optimizer": "fedyogi", "label_bias": True},
    ],
    ids=["mean", "robust", "gradient"],
)
async def test_every_closed_round_is_proven_byte_for_byte(aggregator: Deployment, policy: dict[str, object]) -> None:
    await aggregator.started(rounds=2, **policy)
    clients = await aggregator.clients("a", "b")
    await asyncio.gather(*(client.run() for client in clients))
    rounds = await aggregator.admin.rounds(TASK)
    replays = [await aggregator.admin.replay(TASK, round_.number) for round_ in rounds]
    assert [(replay.proven, replay.contributions, replay.altered) for replay in replays] == [(True, 2, [])] * 4
    assert [replay.version for replay in replays] == [1, 1, 2, None]
    assert all(replay.stored == replay.replayed for replay in replays)


async def test_a_replay_names_the_contribution_that_was_altered(embedded: Deployment) -> None:
    await embedded.started(rounds=1)
    clients = await embedded.clients("a", "b")
    await asyncio.gather(*(client.run() for client in clients))
    await alter_in(embedded.app, "b")
    replay = await embedded.admin.replay(TASK, 1)
    assert (replay.proven, replay.altered) == (False, ["b"])
    assert replay.stored != replay.replayed


async def alter_in(app: FastAPI, client: str) -> None:
    """Change a client's context vector in SQLite behind the aggregator's back."""
    database, body = app.state.services.dependencies.database, context_body(9.0)
    async with database.engine.begin() as connection:
        await connection.exec_driver_sql("UPDATE contributions SET body = ? WHERE number = 1 AND client = ?", (body, client))


async def test_a_round_that_has_not_closed_cannot_be_replayed(embedded: Deployment) -> None:
    await embedded.started()
    await embedded.clients("a", "b")
    with pytest.raises(WrongState, match="only what a closed round made"):
        await embedded.admin.replay(TASK, 1)
