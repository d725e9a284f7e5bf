"""An aggregator that asks for more than the agent's own settings allow is refused before anything is loaded or computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ifed.errors import BeyondLimits, UnreadableAnswer
from ifed.messages.enums import AssignmentKind
from ifed.messages.rounds import Assignment
from ifed.messages.tasks import Policy
from ifed.tensors.values import Coefficients, ContextVector
from services.client_agent.agent import CannotTakePart
from services.client_agent.limits import Limits, check_model_name
from services.client_agent.settings import Settings
from tests.unit.client_agent.fakes import LIMITS, WORK, FakeFederation, assignment, brief, whole_task


def demanding(**changes: object) -> Assignment:
    """Return an assignment to calibrate whose task has these changes."""
    return assignment(AssignmentKind.CALIBRATION, 2, task=brief().model_copy(update=changes))


def working(**changes: object) -> Assignment:
    return assignment(AssignmentKind.CALIBRATION, 2, work=WORK.model_copy(update=changes))


@pytest.mark.parametrize(
    ("hostile", "words"),
    [
        (working(steps=10**9), "steps 1000000000; MAX_STEPS allows 1 to 8"),
        (working(steps=0), "MAX_STEPS"),
        (working(batch_size=10**9), "MAX_BATCH_SIZE allows 1 to 32"),
        (working(learning_rate=1e30), "learning_rate of 1e\\+30"),
        (working(weight_decay=-1.0), "weight_decay"),
        (demanding(policy=Policy(rounds=25, max_demonstrations=3)), "policy.rounds 25; MAX_ROUNDS allows 1 to 24"),
        (demanding(policy=Policy(local_steps=9, max_demonstrations=3)), "policy.local_steps 9; MAX_STEPS"),
        (demanding(policy=Policy(batch_size=33, max_demonstrations=3)), "policy.batch_size 33; MAX_BATCH_SIZE"),
        (assignment(AssignmentKind.EVALUATION, 25), "round 25; MAX_ROUNDS"),
        (assignment(AssignmentKind.EVALUATION, 10**4000), "MAX_ROUNDS"),
        (demanding(labels=["a", "b", "c", "d"]), "labels 4; MAX_LABELS"),
        (demanding(labels=["a", "a"]), "labels must differ"),
        (demanding(labels=["a", "b" * 10_000]), "labels.1"),
        (demanding(template="no slot"), "exactly once"),
        (demanding(template="{text}" + "x" * 100_000), "template"),
        (demanding(layers=[0] * 1001), "1001 layers"),
        (demanding(groups=10**9), "groups"),
        (demanding(name="another"), "task 'another' instead of 'sentiment'"),
    ],
)
async def test_what_goes_beyond_the_agents_limits_ends_it_by_name(tmp_path: Path, hostile: Assignment, words: str) -> None:
    federation = FakeFederation(tmp_path, [hostile])
    with pytest.raises(CannotTakePart, match=f"BeyondLimits: .*{words}"):
        await federation.agent.run()
    assert federation.prepared == 0


async def test_the_default_limits_take_the_default_policy() -> None:
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    limits = Limits(
        rounds=defaults["max_rounds"],
        steps=defaults["max_steps"],
        batch_size=defaults["max_batch_size"],
        labels=defaults["max_labels"],
        examples=defaults["min_examples"],
    )
    limits.check(demanding(policy=Policy()), "sentiment")


@pytest.mark.parametrize("what", ["context", "version"])
async def test_tensors_of_another_shape_are_not_used(tmp_path: Path, what: str) -> None:
    federation = FakeFederation(tmp_path, [assignment(AssignmentKind.JOIN), assignment(AssignmentKind.EVALUATION, 2)])
    large = {"context": ContextVector(np.ones((2, 2, 8))), "version": (Coefficients.identity(2, 4), None)}[what]

    async def hostile(_task: str, *_version: object, **_options: object) -> object:
        return large

    setattr(federation.aggregator, what, hostile)
    participant = await federation.prepare(brief(), "me")
    with pytest.raises(UnreadableAnswer, match="on this model the task takes"):
        await participant.contribute(assignment(AssignmentKind.EVALUATION, 2))
    assert federation.aggregator.submissions == []


@pytest.mark.parametrize("name", ["smollm2-135m", "org/model-1.5_b"])
def test_a_catalogue_name_and_a_hub_id_of_a_task_are_taken(name: str) -> None:
    assert check_model_name(name) == name


@pytest.mark.parametrize("name", ["/etc", "./model", "../model", "a/../b", "~/model", "https://host/model", "a/b/c", "a\\b", ""])
def test_a_path_or_url_of_a_task_is_no_model(name: str) -> None:
    with pytest.raises(BeyondLimits, match="set MODEL"):
        check_model_name(name)


def test_without_a_model_the_agent_starts_only_if_the_tasks_model_is_accepted() -> None:
    environment = {"aggregator_url": "http://127.0.0.1:1", "client_token": "a", "task": "a", "data_file": "a.csv"}
    with pytest.raises(ValueError, match=r"MODEL is not set; set it .* or ACCEPT_TASK_MODEL=true"):
        Settings.model_validate(environment)
    assert Settings.model_validate(environment | {"accept_task_model": True}).model is None


async def test_a_context_vector_of_fewer_texts_than_the_floor_is_refused(tmp_path: Path) -> None:
    federation = FakeFederation(tmp_path, whole_task(), limits=Limits(24, 8, 32, 3, examples=4))
    with pytest.raises(CannotTakePart, match=r"BeyondLimits: .*at most 3 texts, fewer than MIN_EXAMPLES=4"):
        await federation.agent.run()
    assert LIMITS.examples == 1
