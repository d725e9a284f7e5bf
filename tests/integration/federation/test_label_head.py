"""Tasks with a label head, from the first contribution to a classification: real agents, aggregator and scorer on a random model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from ifed.clients import AggregatorClient
from ifed.messages.enums import HeadQuestion, RoundKind, RoundState, TaskState
from ifed.messages.rounds import TaskBrief
from ifed.messages.tasks import Policy, TaskSpec
from ifed.messages.texts import LabelledText
from ifed.modeling.language_model import LanguageModel
from ifed.tensors.values import Float32
from services.aggregator.settings import Settings
from services.client_agent.agent import Agent
from services.client_agent.demonstrations import Split
from services.client_agent.limits import Limits
from services.client_agent.model import LocalModel
from services.client_agent.participation import Participant
from services.client_agent.state import AgentState, ReleasedTexts
from services.client_agent.status import Status
from services.inference.model import Scorer
from testing.random_models import build, build_fresh
from tests.integration.aggregator.deployment import Deployment, deployed, settings

TASK = "topics"
NAMES = ["sport", "science, and all that is near it", "sport and science"]  # no label words: one is the beginning of another
LIMITS = Limits(rounds=100, steps=100, batch_size=100, labels=10, examples=1)
WORDS = ("the film was good", "nothing else mattered to us", "the plot was bad and the acting", "we liked it a lot")


def texts(label: int, count: int, seed: int) -> list[LabelledText[int]]:
    """Return texts of a label that a linear head of the final state can tell: each ends in the label's words."""
    generator = np.random.default_rng(seed)
    ends = ("sport good", "science bad", "objective mixed")
    return [
        LabelledText(f"{WORDS[generator.integers(len(WORDS))]} {WORDS[generator.integers(len(WORDS))]} {ends[label]}", label)
        for _ in range(count)
    ]


def split(labels: Sequence[int], seed: int) -> Split:
    training = [text for label in labels for text in texts(label, 12, seed)]
    return Split(tuple(training), tuple(text for label in labels for text in texts(label, 4, seed + 100)))


SPLITS = {"a": split((0, 1, 2), 1), "b": split((0,), 2), "c": split((1, 2), 3)}


def task_spec(**changes: Any) -> TaskSpec:
    policy = {"clients_expected": 3, "rounds": 2, "local_steps": 4, "learning_rate": 0.02, "update_dtype": "int4", "head_rounds": 3}
    spec: dict[str, Any] = {
        "name": TASK, "labels": NAMES, "template": "Review: {text}\nSentiment:", "model": "random-llama", "groups": 4,
        "head": "regression", "injection": "last_token",
    }  # fmt: skip
    return TaskSpec.model_validate(spec | changes | {"policy": policy | changes.pop("policy", {})})


class Organisation:
    """One client agent in this process."""

    def __init__(
        self, deployment: Deployment, token: str, folder: Path, split: Split, model: LocalModel, limits: Limits = LIMITS
    ) -> None:
        self.client = AggregatorClient("http://aggregator", token, transport=httpx.ASGITransport(deployment.app))
        self._folder, self._split, self._model = folder, split, model
        self.agent = Agent(self.client, self._prepare, Status(), task=TASK, wait=1.0, limits=limits)

    async def _prepare(self, task: TaskBrief, client: str) -> Participant:
        state = AgentState(self._folder, task=task.name, client=client)
        released = ReleasedTexts(self._folder, task=task.name, data_file=self._folder / "data.csv", fewest=1)
        return Participant(self.client, self._model, self._split, state, released, Status())


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(
        Settings.model_validate(settings(f"sqlite+aiosqlite:///{tmp_path / 'ifed.sqlite'}").model_dump())
    ) as running:
        yield running


async def federate(
    deployment: Deployment,
    folder: Path,
    spec: TaskSpec,
    splits: Mapping[str, Split] = SPLITS,
    *,
    new_model: Callable[[], LocalModel] = lambda: LocalModel(build_fresh()),
    limits: Limits = LIMITS,
) -> None:
    """Run a task to its end with one organisation for each of the splits."""
    await deployment.admin.create_task(spec)
    await deployment.admin.start(TASK)
    async with AsyncExitStack() as stack:
        organisations = []
        for name, split in splits.items():
            token = (await deployment.admin.enrol(name)).token
            organisation = Organisation(deployment, token, folder / name, split, new_model(), limits)
            stack.push_async_callback(organisation.client.close)
            organisations.append(organisation)
        await asyncio.gather(*(organisation.agent.run() for organisation in organisations))


async def served_scores(deployment: Deployment, model: LanguageModel, examples: Sequence[LabelledText[int]]) -> Float32:
    """Return the log-probabilities of the labels of texts, (n, C), as the served adapter gives them."""
    answer = await deployment.admin.adapter(TASK)
    assert answer is not None
    scorer = Scorer(model)
    loaded = scorer.load_adapter(answer[1])
    items = [scorer.prepare(loaded, example.text, truncate=True) for example in examples]
    return np.stack(scorer.score([prepared.item for prepared in items]))


def accuracy(scores: Float32, examples: Sequence[LabelledText[int]]) -> float:
    """Return the share of texts whose label has the highest score."""
    return float(np.mean(scores.argmax(axis=1) == [example.label for example in examples]))


async def served_accuracy(deployment: Deployment) -> float:
    """Return the accuracy of the served adapter on texts that no client has."""
    examples = [text for label in range(3) for text in texts(label, 8, 77)]
    return accuracy(await served_scores(deployment, build(), examples), examples)


async def test_a_task_solves_its_head_calibrates_through_it_solves_it_again_and_is_served(
    deployment: Deployment, tmp_path: Path
) -> None:
    await federate(deployment, tmp_path, task_spec())
    task = await deployment.admin.task(TASK)
    rounds = await deployment.admin.rounds(TASK)
    kinds = [round_.kind for round_ in rounds]
    assert task.state is TaskState.FINISHED
    assert kinds[0] is RoundKind.CONTEXT
    assert kinds[-1] is RoundKind.EVALUATION
    calibrations = [place for place, kind in enumerate(kinds) if kind is RoundKind.CALIBRATION]
    assert len(calibrations) == 2
    questions = [[round_.question for round_ in part] for part in (rounds[1 : calibrations[0]], rounds[calibrations[-1] + 1 : -1])]
    for asked in questions:
        assert asked[0] is HeadQuestion.MOMENT
        assert asked[-1] is HeadQuestion.LIKELIHOOD
        assert 1 <= asked.count(HeadQuestion.PRODUCT) <= 3
    assert all(evaluation.log_likelihood is not None for evaluation in task.evaluations)
    answer = await deployment.admin.adapter(TASK)
    assert answer is not None
    assert (answer[1].meta.reading, answer[1].meta.injection) == ("head", "last_token")
    assert await served_accuracy(deployment) > 0.9
    head_bytes = [client.bytes_up for round_ in rounds if round_.question is HeadQuestion.PRODUCT for client in round_.clients]
    assert max(size or 0 for size in head_bytes) < 32 * 2 + 400, "two rows of 32 numbers in eight bits, and a header"
    for round_ in rounds:
        assert (await deployment.admin.replay(TASK, round_.number)).proven, round_.number


async def test_sums_in_one_round_give_the_head(deployment: Deployment, tmp_path: Path) -> None:
    await federate(deployment, tmp_path, task_spec(policy={"solver": "sums", "update_dtype": "float32", "rounds": 1}))
    rounds = await deployment.admin.rounds(TASK)
    assert [round_.question for round_ in rounds if round_.kind is RoundKind.HEAD] == 2 * [
        HeadQuestion.SUMS,
        HeadQuestion.LIKELIHOOD,
    ]
    assert await served_accuracy(deployment) > 0.9


async def test_auto_serves_the_reading_of_the_highest_likelihood_and_shows_each(deployment: Deployment, tmp_path: Path) -> None:
    await federate(deployment, tmp_path, task_spec(head="auto", labels=["positive", "topic sport", "topic science"]))
    task = await deployment.admin.task(TASK)
    final = task.evaluations[-1]
    by_reading = {reading.reading: reading.log_likelihood for reading in final.readings}
    assert set(by_reading) == {"words", "head", "both"}
    assert final.reading == max(by_reading, key=lambda reading: by_reading[reading])
    assert final.log_likelihood == by_reading[final.reading]
    errors = {reading.reading: reading.expected_calibration_error for reading in final.readings}
    assert None not in errors.values()
    assert final.expected_calibration_error == errors[final.reading]
    details = await deployment.admin.evaluation(TASK, final.version)
    assert details.accuracy == np.trace(details.confusion) / np.sum(details.confusion), (
        "the confusions are of the reading that is served"
    )
    answer = await deployment.admin.adapter(TASK)
    assert answer is not None
    if task.served == final.version:
        assert answer[1].meta.reading == final.reading
    assert await served_accuracy(deployment) > 0.9


async def test_a_task_of_label_words_still_runs_at_all_tokens(deployment: Deployment, tmp_path: Path) -> None:
    spec = task_spec(head="words", injection="all_tokens", labels=["positive", "topic sport", "topic science"])
    await federate(deployment, tmp_path, spec)
    answer = await deployment.admin.adapter(TASK)
    assert answer is not None
    assert (answer[1].meta.reading, answer[1].head) == ("words", None)
    assert all(
        round_.kind is not RoundKind.HEAD and round_.state is RoundState.CLOSED for round_ in await deployment.admin.rounds(TASK)
    )


def test_sums_are_refused_for_a_median() -> None:
    with pytest.raises(ValueError, match="use solver 'conjugate_gradient'"):
        task_spec(policy={"solver": "sums", "aggregation": "median"})
    assert task_spec(policy={"aggregation": "median"}).policy == Policy.model_validate(
        task_spec().policy.model_dump() | {"aggregation": "median"}
    )
