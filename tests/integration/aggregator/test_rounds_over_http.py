"""Whole tasks over HTTP on both stacks: FedAvg by hand, deadlines, quorum, pause, cancel, revocation, late joiners."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from sqlalchemy import update

from ifed.errors import Malformed, NotJoined, RoundClosed, UnknownTask, WrongState
from ifed.messages.enums import AssignmentKind, RoundKind, RoundState, TaskState
from ifed.messages.rounds import TaskChanges
from ifed.tensors.confidence import ConfidenceBin, ConfidenceBins
from ifed.tensors.values import ACTIVATION, CONTEXT, TensorBody
from services.aggregator.storage import tables
from services.aggregator.storage.tables import contributions
from testing.factories import context_body, identity, layout, spec, update_body
from tests.integration.aggregator.deployment import PATIENCE, TASK, Deployment


async def test_a_task_runs_from_its_first_client_to_its_last_evaluation(aggregator: Deployment) -> None:
    await aggregator.started(rounds=2)
    clients = [await aggregator.client(name, value=float(rank), examples=rank) for rank, name in ((1, "a"), (3, "b"))]
    ends = await asyncio.gather(*(client.run() for client in clients))
    assert [end.state for end in ends] == [TaskState.FINISHED, TaskState.FINISHED]
    rounds = await aggregator.admin.rounds(TASK)
    assert [(round_.number, round_.kind, round_.state) for round_ in rounds] == [
        (1, RoundKind.CONTEXT, RoundState.CLOSED),
        (2, RoundKind.CALIBRATION, RoundState.CLOSED),
        (3, RoundKind.CALIBRATION, RoundState.CLOSED),
        (4, RoundKind.EVALUATION, RoundState.CLOSED),
    ]
    assert [(round_.version, round_.produced) for round_ in rounds] == [(None, 0), (0, 1), (1, 2), (2, None)]


async def test_a_huge_loss_is_refused_and_one_that_is_stored_already_breaks_no_answer(embedded: Deployment) -> None:
    await embedded.started(clients_expected=2, rounds=1)
    first, second = await embedded.clients("a", "b")
    for client in (first, second):
        await client.contribute(await client.assignment(TASK, wait=5))
    await embedded.until_round(2, RoundState.OPEN)
    with pytest.raises(Malformed, match="loss"):
        await first.submit_update(TASK, 2, with_loss(update_body(), 1e308))
    for client in (first, second):
        await client.submit_update(TASK, 2, update_body())
    await embedded.until_round(3, RoundState.OPEN)
    async with embedded.app.state.services.dependencies.database.unit_of_work() as work:
        await work.connection.execute(update(contributions).values(loss=1.7e308))
        await work.commit()
    (task,) = await embedded.admin.tasks()
    assert task.round is not None
    assert [round_.loss for round_ in await embedded.admin.rounds(TASK)] == [1e9, 1e9, None]
    await embedded.admin.pause(TASK)
    await embedded.admin.cancel_round(TASK, 3)


def with_loss(body: bytes, loss: float) -> bytes:
    """Return a body with a loss that our own messages do not allow."""
    parsed = TensorBody.from_bytes(body)
    return TensorBody(parsed.tensors, {**parsed.metadata, "loss": loss}).to_bytes()


async def test_a_task_that_cannot_be_read_does_not_fail_the_list_of_the_others(embedded: Deployment) -> None:
    for name in ("a", "b", "c", "d"):
        await embedded.admin.create_task(spec(name))
    async with embedded.app.state.services.dependencies.database.unit_of_work() as work:
        await work.connection.execute(update(tables.tasks).where(tables.tasks.c.name.in_(["b", "d"])).values(spec={}))
        await work.commit()
    assert [task.spec.name for task in await embedded.admin.tasks()] == ["a", "c"]
    page = (await embedded.raw("GET", "/v1/tasks?limit=1")).json()
    assert (page["items"][0]["spec"]["name"], page["next"]) == ("a", "a")


async def test_the_aggregates_are_those_worked_out_by_hand(aggregator: Deployment) -> None:
    await aggregator.started(rounds=2)
    clients = [await aggregator.client(name, value=value, examples=n) for name, value, n in (("a", 0.0, 1), ("b", 4.0, 3))]
    await asyncio.gather(*(client.run() for client in clients))
    mean = (0 * 1 + 4 * 3) / 4
    assert mean == 3
    context = await clients[0].context(TASK)
    assert context.values.shape == layout().context_shape
    assert (context.values == mean).all()
    for version in (0, 1, 2):
        made = (await clients[0].coefficients(TASK, version=version)).values
        assert (made[:, :, CONTEXT] == version * mean).all()
        assert (made[:, :, ACTIVATION] == 1 + version * mean).all()


async def test_a_task_tells_all_there_is_to_show(aggregator: Deployment) -> None:
    await aggregator.started(rounds=1)
    first, second = await aggregator.clients("a", "b")
    second.confusion = np.array([[1, 1], [0, 0]])
    await asyncio.gather(first.run(), second.run())
    task = await aggregator.admin.task(TASK)
    assert (task.state, task.version, task.served, task.reason) == (TaskState.FINISHED, 1, 1, None)
    assert (task.identity, task.layout) == (identity(), layout())
    assert [(member.client, sum(member.label_counts.values()), member.holdout) for member in task.members] == [
        ("a", 1, 8),
        ("b", 2, 8),
    ]
    # 6 of 8 and 1 of 2 held-out examples: counts are added, accuracies are not averaged.
    assert [(evaluation.version, evaluation.accuracy, evaluation.examples) for evaluation in task.evaluations] == [
        (0, 0.7, 10),
        (1, 0.7, 10),
    ]
    calibration = await aggregator.admin.round(TASK, 2)
    assert calibration.loss == pytest.approx((1 * 1 + 2 * 2) / 3)
    assert calibration.evaluation == task.evaluations[0]
    assert [(part.client, part.examples, part.loss, part.accuracy, part.seconds) for part in calibration.clients] == [
        ("a", 1, 1.0, 0.75, 0.5),
        ("b", 2, 2.0, 0.5, 0.5),
    ]
    assert all(part.bytes_up and part.contributed_at for part in calibration.clients)
    assert (calibration.expected, calibration.missing) == (["a", "b"], [])


async def test_every_answer_about_a_version_has_its_labels_and_its_calibration_error(aggregator: Deployment) -> None:
    await aggregator.started(rounds=1)
    first, second = await aggregator.clients("a", "b")
    # Of each client, 2 texts at 0.55 are wrong and 6 at 0.95 are right.
    first.confidence = second.confidence = bins((5, ConfidenceBin(2, 0, 1.1)), (9, ConfidenceBin(6, 6, 5.7)))
    await asyncio.gather(first.run(), second.run())
    task, calibration = await aggregator.admin.task(TASK), await aggregator.admin.round(TASK, 2)
    details = await aggregator.admin.evaluation(TASK, 0)
    error = (12 * (1 - 0.95) + 4 * 0.55) / 16
    for evaluation in (*task.evaluations, calibration.evaluation, details):
        assert evaluation is not None
        assert evaluation.expected_calibration_error == pytest.approx(error, abs=1e-6)
        assert evaluation.thresholds is not None
        assert [(row.abstain_below, row.answered, row.accuracy) for row in evaluation.thresholds[:2]] == [
            (0.5, 1.0, 0.75),
            (0.6, 0.75, 1.0),
        ]
        assert evaluation.labels is not None
        assert [(label.label, label.texts, label.precision, label.recall) for label in evaluation.labels] == [
            ("negative", 8, 0.75, 0.75),
            ("positive", 8, 0.75, 0.75),
        ]
    assert details.confidence is not None
    assert [(part.least, part.texts, part.correct) for part in details.confidence if part.texts] == [(0.5, 4, 0), (0.9, 12, 12)]
    adapter = await aggregator.admin.adapter(TASK)
    assert adapter is not None
    assert adapter[1].meta.evaluation is not None
    assert adapter[1].meta.evaluation.expected_calibration_error == pytest.approx(error, abs=1e-6)
    (listed,) = await aggregator.admin.tasks()
    assert [evaluation.labels for evaluation in listed.evaluations] == [None, None], "a list would repeat a thousand labels"
    assert all([(await aggregator.admin.replay(TASK, number)).proven for number in (2, 3)])


async def test_a_client_without_bins_leaves_the_calibration_error_unknown(embedded: Deployment) -> None:
    await embedded.started(rounds=1)
    first, second = await embedded.clients("a", "b")
    first.confidence = bins((9, ConfidenceBin(8, 6, 7.6)))
    await asyncio.gather(first.run(), second.run())
    evaluation = (await embedded.admin.task(TASK)).evaluations[0]
    assert (evaluation.examples, evaluation.accuracy) == (16, 0.75)
    assert (evaluation.expected_calibration_error, evaluation.thresholds) == (None, None)
    assert (await embedded.admin.evaluation(TASK, 0)).confidence is None


def bins(*parts: tuple[int, ConfidenceBin]) -> ConfidenceBins:
    placed = dict(parts)
    return ConfidenceBins(tuple(placed.get(place, ConfidenceBin()) for place in range(10)))


async def test_at_the_deadline_a_quorum_goes_on_without_the_missing(aggregator: Deployment) -> None:
    await aggregator.started(deadline_seconds=0.4, quorum=1)
    (client, _silent) = await aggregator.clients("a", "b")
    await client.contribute(await client.assignment(TASK, wait=5))
    context = await aggregator.until_round(1, RoundState.CLOSED)
    assert (context.state, context.missing) == (RoundState.CLOSED, ["b"])
    assert (await client.context(TASK)).values.max() == 1.0


async def test_a_deadline_without_a_quorum_fails_the_task_and_start_tries_again(aggregator: Deployment) -> None:
    await aggregator.started(deadline_seconds=0.4)
    first, second = await aggregator.clients("a", "b")
    await first.contribute(await first.assignment(TASK, wait=5))
    failed = await aggregator.until_state(TaskState.FAILED)
    assert failed.reason == "round 1 (context) failed: 1 of 2 needed contributions came; missing: b"
    done = await second.assignment(TASK)
    assert (done.kind, done.state, done.reason) == (AssignmentKind.DONE, TaskState.FAILED, failed.reason)
    restarted = await aggregator.admin.start(TASK)
    assert restarted.round is not None
    assert (restarted.round.number, restarted.round.kind, restarted.round.state) == (2, RoundKind.CONTEXT, RoundState.OPEN)
    assert restarted.reason is None


async def test_a_late_joiner_takes_part_from_the_next_round_on(aggregator: Deployment) -> None:
    await aggregator.started(clients_expected=1, rounds=1)
    (client,) = await aggregator.clients("a")
    late = await aggregator.client("z")
    await late.join_task()
    assert (await late.assignment(TASK)).kind is AssignmentKind.WAIT
    with pytest.raises(RoundClosed, match="opened without z"):
        await late.submit_context(TASK, 1, context_body())
    await client.contribute(await client.assignment(TASK, wait=5))
    assert (await late.assignment(TASK, wait=5)).kind is AssignmentKind.CALIBRATION
    assert (await aggregator.admin.round(TASK, 2)).expected == ["a", "z"]


async def test_a_paused_task_takes_what_is_on_its_way_and_opens_nothing(aggregator: Deployment) -> None:
    await aggregator.started()
    first, second = await aggregator.clients("a", "b")
    assignment = await first.assignment(TASK, wait=5)
    await aggregator.admin.pause(TASK)
    assert (await second.assignment(TASK)).kind is AssignmentKind.WAIT
    for client in (first, second):
        await client.contribute(assignment)
    await aggregator.until_round(1, RoundState.CLOSED)
    await asyncio.sleep(0.2)
    assert len(await aggregator.admin.rounds(TASK)) == 1
    await aggregator.admin.resume(TASK)
    assert (await second.assignment(TASK, wait=5)).kind is AssignmentKind.CALIBRATION


async def test_a_cancelled_round_pauses_the_task_and_resume_gathers_anew(aggregator: Deployment) -> None:
    await aggregator.started()
    client, _two = await aggregator.clients("a", "b")
    await client.contribute(await client.assignment(TASK, wait=5))
    cancelled = await aggregator.admin.cancel_round(TASK, 1)
    assert cancelled.state is RoundState.CANCELLED
    paused = await aggregator.admin.task(TASK)
    assert (paused.state, paused.reason) == (TaskState.PAUSED, "round 1 of task 'sentiment' was cancelled; resume opens a new one")
    resumed = await aggregator.admin.resume(TASK)
    assert resumed.round is not None
    assert (resumed.round.number, resumed.round.missing) == (2, ["a", "b"])


async def test_an_admin_may_close_a_round_without_its_quorum(aggregator: Deployment) -> None:
    await aggregator.started()
    client, _silent = await aggregator.clients("a", "b")
    with pytest.raises(WrongState, match="no contributions"):
        await aggregator.admin.close_round(TASK, 1)
    await client.contribute(await client.assignment(TASK, wait=5))
    await aggregator.admin.close_round(TASK, 1)
    assert (await aggregator.until_round(1, RoundState.CLOSED)).missing == ["b"]


async def test_an_extended_round_stays_open_past_its_first_deadline(aggregator: Deployment) -> None:
    await aggregator.started(deadline_seconds=1.0)
    await aggregator.clients("a", "b")
    before = await aggregator.admin.round(TASK, 1)
    after = await aggregator.admin.extend_round(TASK, 1, 3600)
    assert (after.deadline - before.deadline).total_seconds() == 3600
    await asyncio.sleep(1.2)
    assert (await aggregator.admin.round(TASK, 1)).state is RoundState.OPEN


async def test_a_revoked_client_is_not_waited_for(aggregator: Deployment) -> None:
    await aggregator.started()
    client, _gone = await aggregator.clients("a", "b")
    await client.contribute(await client.assignment(TASK, wait=5))
    await aggregator.admin.revoke("b")
    closed = await aggregator.until_round(1, RoundState.CLOSED)
    assert (closed.expected, closed.missing) == (["a"], [])
    assert [member.client for member in (await aggregator.admin.task(TASK)).members] == ["a"]


async def test_a_task_stops_early_when_its_accuracy_stalls(aggregator: Deployment) -> None:
    await aggregator.started(rounds=50, clients_expected=1, patience=1)
    (client,) = await aggregator.clients("a")
    end = await client.run()
    assert end.reason == "stopped early after 2 of 50 rounds: the accuracy had not risen for 1 in a row"
    assert [round_.kind for round_ in await aggregator.admin.rounds(TASK)] == [
        RoundKind.CONTEXT,
        RoundKind.CALIBRATION,
        RoundKind.CALIBRATION,
        RoundKind.EVALUATION,
    ]


async def test_the_learning_rate_follows_the_round(embedded: Deployment) -> None:
    await embedded.started(rounds=2, clients_expected=1, learning_rate=0.1)
    (client,) = await embedded.clients("a")
    await client.contribute(await client.assignment(TASK, wait=5))
    rates, seeds = [], []
    for _ in range(2):
        assignment = await client.assignment(TASK, wait=5)
        assert assignment.work is not None
        rates += [assignment.work.learning_rate, assignment.work.learning_rate_end]
        seeds.append(assignment.work.seed)
        await client.contribute(assignment)
    assert rates == pytest.approx([0.1, 0.05, 0.05, 0.0])
    assert seeds[0] != seeds[1]
    evaluation = await client.assignment(TASK, wait=5)
    assert (evaluation.kind, evaluation.version, evaluation.work) == (AssignmentKind.EVALUATION, 2, None)


async def test_a_changed_draft_asks_its_members_to_join_again(embedded: Deployment) -> None:
    await embedded.admin.create_task((await embedded.started()).spec.model_copy(update={"name": "draft"}))
    client = await embedded.client("a")
    await client.join_task("draft")
    assert (await embedded.admin.change_task("draft", TaskChanges(groups=4))).members != []
    changed = await embedded.admin.change_task("draft", TaskChanges(model="other"))
    assert (changed.members, changed.identity) == ([], None)
    assert (await client.assignment("draft")).kind is AssignmentKind.JOIN
    with pytest.raises(WrongState, match="be changed only while it is draft"):
        await embedded.admin.change_task(TASK, TaskChanges(groups=4))


async def test_a_threshold_is_changed_in_any_state_and_serving_follows_at_once(aggregator: Deployment) -> None:
    await aggregator.started(rounds=1)
    clients = await aggregator.clients("a", "b")
    await asyncio.gather(*(client.run() for client in clients))
    before = await aggregator.admin.adapter(TASK)
    assert before is not None
    waiting = asyncio.create_task(aggregator.admin.adapter(TASK, known=before[0], wait=PATIENCE))
    await asyncio.sleep(0.1)
    changed = await aggregator.admin.change_task(TASK, TaskChanges(abstain_below=0.8))
    assert (changed.state, changed.spec.abstain_below, len(changed.members)) == (TaskState.FINISHED, 0.8, 2)
    after = await waiting
    assert after is not None
    assert (before[1].meta.abstain_below, after[1].meta.abstain_below) == (None, 0.8)
    assert before[1].meta.version == after[1].meta.version
    await aggregator.admin.change_task(TASK, TaskChanges(abstain_below=0))
    again = await aggregator.admin.adapter(TASK)
    assert again is not None
    assert again[0] == before[0], "the same bytes as without a threshold"
    with pytest.raises(WrongState):
        await aggregator.admin.change_task(TASK, TaskChanges(abstain_below=0.9, groups=4))
    with pytest.raises(Malformed):
        await aggregator.admin.change_task(TASK, TaskChanges.model_construct(abstain_below=1.1))


async def test_a_task_is_deleted_only_when_it_does_not_run(embedded: Deployment) -> None:
    await embedded.started()
    with pytest.raises(WrongState):
        await embedded.admin.delete_task(TASK)
    await embedded.admin.pause(TASK)
    await embedded.admin.delete_task(TASK)
    assert await embedded.admin.tasks() == []


async def test_a_stranger_to_the_task_cannot_contribute(embedded: Deployment) -> None:
    await embedded.started()
    await embedded.clients("a", "b")
    stranger = await embedded.client("stranger")
    with pytest.raises(NotJoined):
        await stranger.submit_context(TASK, 1, context_body())


async def test_lists_come_in_pages(embedded: Deployment) -> None:
    names = [f"c{number:03}" for number in range(5)]
    for name in names:
        await embedded.client(name)
    first = (await embedded.raw("GET", "/v1/clients", params={"limit": 2})).json()
    assert ([item["name"] for item in first["items"]], first["next"]) == (names[:2], names[1])
    last = (await embedded.raw("GET", "/v1/clients", params={"limit": 2, "after": names[3]})).json()
    assert ([item["name"] for item in last["items"]], last["next"]) == (names[4:], None)
    assert [client.name for client in await embedded.admin.enrolled()] == names


async def test_a_client_that_asks_for_an_unknown_task_gets_the_names_of_those_it_may_join(embedded: Deployment) -> None:
    client = await embedded.client("a")
    with pytest.raises(UnknownTask, match="there is no task named 'sentimnt'; no task can be joined now"):
        await client.assignment("sentimnt")
    await embedded.admin.create_task(spec(TASK))
    with pytest.raises(UnknownTask, match=f"there is no task named 'sentimnt'; tasks that can be joined: '{TASK}'"):
        await client.assignment("sentimnt")
