"""What the benchmark races against computes what ours computes: the same vectors, losses and labels, one example at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.modeling.published import Published
from benchmarks.modeling.timing import median_seconds, overhead
from ifed.modeling.calibration import Calibrator, LocalPlan
from ifed.modeling.extraction import context_vector
from ifed.modeling.injection import injection_of
from ifed.modeling.scoring import ScoringItem, score
from ifed.tensors.values import Coefficients, ContextVector
from testing.random_models import ALL, CODE_PATHS, TEMPLATE, TEXTS, build, examples, template

NAMES = ["positive", "negative"]
families = pytest.mark.parametrize("family", CODE_PATHS)


@families
def test_both_extract_the_same_vector_and_give_the_same_labels(family: str) -> None:
    lm = build(family)
    prompts = template(lm, TEMPLATE)
    labels = prompts.labels(NAMES)
    published = Published(lm, prompts, NAMES)
    vector = published.extract(examples())
    ours = context_vector(lm, prompts, labels, examples(), layers=ALL)
    np.testing.assert_allclose(ours.values, vector.numpy(), rtol=1e-3, atol=1e-4)
    injected = injection_of(ours, Coefficients.identity(3, 1, context_weight=0.1), ALL, device="cpu", dtype=lm.dtype)
    scores = score(lm, [ScoringItem(prompts.prompt(text), labels, injected) for text in TEXTS])
    assert published.classify(TEXTS, vector) == [int(row.argmax()) for row in scores]


@families
def test_both_calibrate_on_the_same_loss(family: str) -> None:
    lm = build(family)
    prompts = template(lm, TEMPLATE)
    vector = torch.randn(3, 2, lm.hidden_size, generator=torch.Generator().manual_seed(0))
    loss = Published(lm, prompts, NAMES).calibrate(examples(), vector, batch_size=len(examples()))
    work = Calibrator(lm, prompts, prompts.labels(NAMES), examples(), ContextVector(vector.numpy()), ALL)
    plan = LocalPlan(steps=1, batch_size=len(examples()), learning_rate=0.01, learning_rate_end=0.01, logit_adjustment=0.0, seed=0)
    assert work.run(Coefficients.identity(3, 1, context_weight=0.1), plan).loss == pytest.approx(loss, rel=1e-3)


def test_works_take_turns_and_an_overhead_of_nothing_is_about_nothing() -> None:
    turns: list[str] = []
    median_seconds({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, repetitions=3)
    assert turns == ["a", "a", "b", "b"] * 3, "of two runs the second counts"
    turns.clear()
    low, middle, high = overhead(lambda: turns.append("a"), lambda: turns.append("b"), pairs=4)
    assert turns == ["a", "b", "b", "a", "a", "b", "b", "a", "a", "b"]
    assert low <= middle <= high
