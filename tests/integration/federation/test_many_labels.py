"""A task of 77 intents, of which no client has all, from the first contribution to a classification."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from ifed.messages.enums import RoundKind, TaskState
from ifed.messages.tasks import TaskSpec
from ifed.messages.texts import LabelledText
from services.client_agent.demonstrations import Split
from services.client_agent.limits import Limits
from testing.intents import intent_texts, sentences_by_intent
from testing.random_models import build
from tests.integration.aggregator.deployment import Deployment, deployed, settings
from tests.integration.federation.test_label_head import TASK, accuracy, federate, served_scores

INTENTS = list(sentences_by_intent())
LIMITS = Limits(rounds=100, steps=100, batch_size=100, labels=1000, examples=1)
# The first client has no intent after the 51st, the second none before the 27th, and the third a few of both ends.
PARTS = {"a": set(range(51)), "b": set(range(26, 77)), "c": {*range(10), *range(70, 77)}}


def task_spec(**policy: object) -> TaskSpec:
    settings = {"clients_expected": 3, "rounds": 1, "local_steps": 2, "update_dtype": "int4", "head_rounds": 3}
    settings |= {"batch_size": 8, "learning_rate": 0.04}
    return TaskSpec.model_validate(
        {
            "name": TASK,
            "labels": INTENTS,
            "template": "Question to a bank: {text}\nSubject:",
            "model": "smollm2-135m",
            "groups": 16,
            "head": "regression",
            "injection": "last_token",
            "policy": settings | policy,
        }
    )


def splits(training: Sequence[LabelledText[int]], holdout: Sequence[LabelledText[int]]) -> dict[str, Split]:
    """Divide texts among the clients: each text of an intent goes to one of those that have it."""
    shares: dict[str, tuple[list[LabelledText[int]], list[LabelledText[int]]]] = {name: ([], []) for name in PARTS}
    for place, texts in enumerate((training, holdout)):
        for index, text in enumerate(texts):
            owners = [name for name, labels in PARTS.items() if text.label in labels]
            shares[owners[index % len(owners)]][place].append(text)
    return {name: Split(tuple(training), tuple(holdout)) for name, (training, holdout) in shares.items()}


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(settings(f"sqlite+aiosqlite:///{tmp_path / 'ifed.sqlite'}")) as running:
        yield running


def test_the_intents_are_77_with_sentences_of_their_own() -> None:
    sentences = [sentence for of_intent in sentences_by_intent().values() for sentence in of_intent]
    assert len(INTENTS) == 77
    assert len(set(sentences)) == len(sentences) == 77 * 4
    training, held_out = ({text.text for text in intent_texts(held_out=part, most=99)} for part in (False, True))
    assert not training & held_out


async def test_77_labels_of_which_no_client_has_all_are_solved_served_and_small_on_the_wire(
    deployment: Deployment, tmp_path: Path
) -> None:
    training, held_out = intent_texts(most=1), intent_texts(held_out=True, most=1)
    await federate(deployment, tmp_path, task_spec(), splits(training, held_out), limits=LIMITS)
    task = await deployment.admin.task(TASK)
    assert task.state is TaskState.FINISHED
    assert all(0 < sum(count > 0 for count in member.label_counts.values()) < 77 for member in task.members)
    by_kind = {round_.kind: round_ for round_ in await deployment.admin.rounds(TASK)}
    update = 2 * 2 * 16 + 2 * 2 * 2 * 2 + 4 * 77
    for kind, most in ((RoundKind.CALIBRATION, update + 1000), (RoundKind.EVALUATION, update + 800)):
        assert max(client.bytes_up or 0 for client in by_kind[kind].clients) < most, "confusion counts of 77 x 77 have 47 KB"
    assert task.served is not None
    details = await deployment.admin.evaluation(TASK, task.served)
    assert [label.label for label in details.labels] == INTENTS
    assert np.shape(details.confusion) == (77, 77)
    scores = await served_scores(deployment, build(), training)
    assert scores.shape == (len(training), 77)
    np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1, rtol=1e-5)
    assert accuracy(scores, training) > 5 / 77
