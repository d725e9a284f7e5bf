"""A participant sends the contribution that its assignment asks for, and finished work as the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ifed.errors import AlreadyContributed, IFedError, RoundClosed, StaleUpdate
from ifed.messages.bodies import ContextBody, UpdateBody
from ifed.messages.enums import AssignmentKind, TaskState
from ifed.messages.rounds import Assignment, JoinRequest
from ifed.tensors.quantization import QuantizedUpdate
from ifed.tensors.values import Coefficients, Gradient
from testing.factories import probe
from tests.unit.client_agent.fakes import IDENTITY, SPLIT, WORK, FakeFederation, assignment, brief, whole_task


async def test_a_join_carries_the_model_its_probe_and_counts_but_no_text(tmp_path: Path) -> None:
    federation = FakeFederation(tmp_path, whole_task())
    await federation.agent.run()
    assert federation.aggregator.joins == [
        JoinRequest(identity=IDENTITY, label_counts={"no": 3, "yes": 3}, holdout=1, probe=probe())
    ]


async def test_each_round_gets_the_contribution_of_its_kind(tmp_path: Path) -> None:
    federation = FakeFederation(tmp_path, whole_task())
    await federation.agent.run()
    (_, context), (_, calibration), (_, evaluation) = federation.aggregator.submissions
    assert ContextBody.from_bytes(context).meta.examples == 3
    update = UpdateBody.from_bytes(calibration)
    assert isinstance(update.update, Coefficients)
    assert (update.meta.examples, update.meta.loss, update.meta.version) == (6, 0.5, 0)
    scores = UpdateBody.from_bytes(evaluation)
    assert (scores.update, scores.meta.examples) == (None, 1)
    assert federation.model.adopted == 1, "the context vector is adopted once for both rounds"


async def test_in_gradient_mode_the_gradient_is_sent_in_place_of_coefficients(tmp_path: Path) -> None:
    gradient_round = assignment(AssignmentKind.CALIBRATION, 2, work=WORK.model_copy(update={"mode": "gradient"}))
    federation = FakeFederation(tmp_path, [*whole_task()[:2], gradient_round, whole_task()[-1]])
    await federation.agent.run()
    update = UpdateBody.from_bytes(federation.aggregator.submissions[1][1])
    assert isinstance(update.update, Gradient)
    assert (update.update.values == 2.0).all()
    assert update.meta.loss == 0.25


@pytest.mark.parametrize("asked_for", [True, False])
async def test_label_probabilities_are_sent_when_the_policy_asks_for_them(tmp_path: Path, asked_for: bool) -> None:
    federation = FakeFederation(tmp_path, whole_task(label_bias=asked_for))
    await federation.agent.run()
    for _, body in federation.aggregator.submissions[1:]:
        probabilities = UpdateBody.from_bytes(body).label_probabilities
        assert (None if probabilities is None else probabilities.tolist()) == ([0.25, 0.75] if asked_for else None)


@pytest.mark.parametrize("asked_for", [True, False])
async def test_the_confidence_of_held_out_texts_is_sent_when_the_assignment_asks_for_it(tmp_path: Path, asked_for: bool) -> None:
    script = [step.model_copy(update={"confidence": asked_for}) for step in whole_task()]
    federation = FakeFederation(tmp_path, script)
    await federation.agent.run()
    for _, body in federation.aggregator.submissions[1:]:
        confidence = UpdateBody.from_bytes(body).confidence
        assert (None if confidence is None else (confidence.texts, confidence.correct)) == ((1, 1) if asked_for else None)


async def test_clients_draw_different_batches_of_the_same_round(tmp_path: Path) -> None:
    seeds = []
    for client in ("north", "south"):
        federation = FakeFederation(tmp_path, whole_task(), client=client)
        await federation.agent.run()
        seeds += federation.model.seeds
    assert seeds[0] != seeds[1]


@pytest.mark.parametrize("refusal", [RoundClosed("late"), AlreadyContributed("twice"), StaleUpdate("old")])
async def test_a_round_that_went_on_without_the_client_is_no_error(tmp_path: Path, refusal: IFedError) -> None:
    federation = FakeFederation(tmp_path, whole_task())
    federation.aggregator.submission_errors = [refusal]
    assert await federation.agent.run() is TaskState.FINISHED
    assert federation.status.contributions == 2


async def test_work_finished_before_a_restart_is_sent_as_the_same_bytes(tmp_path: Path) -> None:
    killed = await killed_while_sending_context(tmp_path)
    restarted = FakeFederation(tmp_path, [whole_task()[1], whole_task()[-1]])
    await restarted.agent.run()
    assert restarted.aggregator.submissions[0] == killed.aggregator.submissions[0]
    assert restarted.model.condensed == []
    assert len(restarted.aggregator.joins) == 1


async def test_finished_work_is_not_sent_for_another_assignment(tmp_path: Path) -> None:
    await killed_while_sending_context(tmp_path)
    changed = assignment(AssignmentKind.CONTEXT, 1, task=brief().model_copy(update={"template": "{text}?"}))
    restarted = FakeFederation(tmp_path, [changed, whole_task()[-1]])
    await restarted.agent.run()
    assert restarted.model.condensed == [3]


@dataclass(frozen=True)
class Demonstration:
    """An example as release 0.1 had it, whose repr went into the names of files."""

    text: str
    label: int


async def test_an_agent_upgraded_in_the_middle_of_a_round_finds_its_finished_work(tmp_path: Path) -> None:
    federation = FakeFederation(tmp_path, [whole_task()[1], whole_task()[-1]])
    assignment = whole_task()[1].model_copy(update={"client": "me"})
    old = [tuple(Demonstration(example.text, example.label) for example in part) for part in (SPLIT.training, SPLIT.holdout)]
    examples = hashlib.sha256(repr((old[0], old[1])).encode()).hexdigest()
    request = assignment.model_dump_json(exclude={"deadline", "state", "reason"})
    key = hashlib.sha256(f"{request}\n{IDENTITY.fingerprint}\n{examples}".encode()).hexdigest()
    federation.state.begin(1, b"finished before the upgrade", key=key)
    await federation.agent.run()
    assert federation.aggregator.submissions == [(1, b"finished before the upgrade")]


async def test_the_quantisation_error_is_sent_with_the_next_update_also_after_a_restart(tmp_path: Path) -> None:
    before = await first_changes(tmp_path, [*whole_task(update_dtype="int8")[:2], *calibrations(2)])
    after = await first_changes(tmp_path, calibrations(3, 4))
    assert [*before, *after] == pytest.approx([0.0, 0.01, 0.0])


async def test_a_refused_update_leaves_the_earlier_quantisation_error(tmp_path: Path) -> None:
    first = await first_changes(tmp_path, [*whole_task(update_dtype="int8")[:2], *calibrations(2)])
    refused = await first_changes(tmp_path, calibrations(3), error=RoundClosed("late"))
    again = await first_changes(tmp_path, calibrations(4, 5))
    assert [*first, *refused, *again] == pytest.approx([0.0, 0.01, 0.01, 0.0])


async def killed_while_sending_context(folder: Path) -> FakeFederation:
    """Run an agent whose process ends before the answer to its context vector arrives."""
    federation = FakeFederation(folder, whole_task()[:2])
    federation.aggregator.submission_errors = [ConnectionAbortedError()]
    with pytest.raises(ConnectionAbortedError):
        await federation.agent.run()
    return federation


def calibrations(*rounds: int) -> list[Assignment]:
    """Return calibration rounds with int8 updates; the first one, round 2, starts from version 0."""
    task = brief(update_dtype="int8")
    return [assignment(AssignmentKind.CALIBRATION, round_, task=task, version=round_ - 2) for round_ in rounds]


async def first_changes(folder: Path, script: Sequence[Assignment], *, error: IFedError | None = None) -> list[float]:
    """Return the first entry of each update's change, of an agent whose local steps int8 cannot represent exactly."""
    federation = FakeFederation(folder, [*script, whole_task()[-1]])
    federation.aggregator.submission_errors = [] if error is None else [error]
    federation.model.local_steps = np.zeros((2, 2, 2, 2), np.float32)
    federation.model.local_steps[..., 0] = 0.0035  # of a quantisation step of 0.01, so that each round loses a third of a step
    federation.model.local_steps[..., 1] = 1.27
    await federation.agent.run()
    bodies = [UpdateBody.from_bytes(body) for round_, body in federation.aggregator.submissions if round_ > 1]
    updates = [body.update for body in bodies if body.update is not None]
    assert all(isinstance(update, QuantizedUpdate) for update in updates)
    return [float(update.restored()[0, 0, 0, 0]) for update in updates if isinstance(update, QuantizedUpdate)]
