"""Each option of a language model against the plain way of running it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ifed.modeling.calibration import Calibrator
from ifed.modeling.extraction import context_vector
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.scoring import score
from testing.random_models import (
    ALL,
    CODE_PATHS,
    LABELS,
    LONG_TEMPLATE,
    PLAIN,
    build,
    examples,
    random_coefficients,
    random_context,
    random_injection,
    scoring_items,
    template,
)


def plain(lm: LanguageModel) -> LanguageModel:
    return replace(lm, options=PLAIN)


@pytest.mark.parametrize(
    ("family", "chosen"),
    [
        *((family, chosen) for family in CODE_PATHS for chosen in ("row_attention", "share_prefix", "sparse_last_mlp")),
        ("gemma2", "share_prefix"),
        ("mistral", "row_attention"),
        ("phi3", "share_prefix"),
    ],
)
def test_each_option_changes_no_score_beyond_rounding(family: str, chosen: str) -> None:
    lm = build(family)
    scored = [
        *scoring_items(lm, random_injection(lm), LONG_TEMPLATE),
        *scoring_items(lm, None, LONG_TEMPLATE),
        *scoring_items(lm, random_injection(lm, seed=7), "Review: {text}\nSentiment:"),
    ]
    on = replace(lm, options=replace(replace(PLAIN, row_attention=True), **{chosen: True}))
    expected = np.stack(score(plain(lm), scored))
    for budget in (1, 200, 10_000):
        np.testing.assert_allclose(np.stack(score(on, scored, token_budget=budget)), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", CODE_PATHS)
def test_the_options_together_change_neither_vector_nor_gradient_beyond_rounding(family: str) -> None:
    lm = build(family, dtype=torch.float64)
    prompts = template(lm, LONG_TEMPLATE)
    labels, vectors, gradients = prompts.labels(LABELS), [], []
    for model in (lm, plain(lm)):
        vectors.append(context_vector(model, prompts, labels, examples(labels=3), layers=[0, 1]).values)
        client = Calibrator(model, prompts, labels, examples(labels=3), random_context(3), ALL)
        gradients.append(client.mean_gradient(random_coefficients(3, 4), batch_size=8, seed=0).values)
    np.testing.assert_allclose(vectors[0], vectors[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)
