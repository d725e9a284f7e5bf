"""Gradients of Λ against finite differences, and predictions that dtype, padding, order and company do not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ifed.modeling.batching import Batch, Row
from ifed.modeling.calibration import Calibrator
from ifed.modeling.hooks import final_hidden, inject
from ifed.modeling.injection import injection_of
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.scoring import ScoringItem, score
from ifed.tensors.values import Coefficients
from tests.unit.modeling.builders import (
    ALL,
    FAMILY_NAMES,
    ROUNDING,
    TEXTS,
    build,
    examples,
    random_coefficients,
    random_context,
    template,
)

families = pytest.mark.parametrize("family", FAMILY_NAMES)


def calibrator(lm: LanguageModel, layers: tuple[int, ...]) -> Calibrator:
    prompts = template(lm)
    return Calibrator(lm, prompts, prompts.labels(["positive", "topic sport"]), examples(4), random_context(len(layers)), layers)


@pytest.mark.parametrize("layers", [ALL, (1, 2)])
@pytest.mark.parametrize("adjustment", [0.0, 1.0])
@families
def test_the_gradient_of_every_coefficient_is_its_finite_difference(
    family: str, adjustment: float, layers: tuple[int, ...]
) -> None:
    work = calibrator(build(family, dtype=torch.float64), layers)
    start = random_coefficients(len(layers), 2)

    def at(values: np.ndarray) -> tuple[np.ndarray, float]:
        found = work.mean_gradient(Coefficients(values), batch_size=4, seed=0, logit_adjustment=adjustment)
        return found.values, found.loss

    gradient, _ = at(start.values)
    step = np.float32(2**-7)
    for place in np.ndindex(start.values.shape):
        higher, lower = start.values.copy(), start.values.copy()
        higher[place] += step
        lower[place] -= step
        distance = float(higher[place]) - float(lower[place])
        numeric = (at(higher)[1] - at(lower)[1]) / distance
        assert numeric == pytest.approx(gradient[place], rel=2e-2, abs=2e-3), place


@families
def test_bfloat16_scores_what_float32_scores_to_rounding(family: str) -> None:
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        lm = build(family, dtype=dtype)
        given = injection_of(random_context(3), Coefficients.identity(3, 4, context_weight=0.05), ALL, device="cpu", dtype=dtype)
        labels = template(lm).labels(["positive", "negative"])
        found.append(np.stack(score(lm, [ScoringItem(template(lm).prompt(text), labels, given) for text in TEXTS])))
    assert np.abs(np.exp(found[0]) - np.exp(found[1])).max() < 0.1
    sure = np.abs(found[0][:, 0] - found[0][:, 1]) > 0.4
    assert (found[0].argmax(1) == found[1].argmax(1))[sure].all()


@families
def test_order_company_and_budget_change_no_score_beyond_rounding(family: str) -> None:
    lm = build(family)
    given = injection_of(random_context(3), random_coefficients(3, 4), ALL, device="cpu", dtype=lm.dtype)
    labels = template(lm).labels(["positive", "topic sport"])
    items = [ScoringItem(template(lm).prompt(text), labels, given) for text in TEXTS]
    alone = np.stack([score(lm, [item])[0] for item in items])
    for budget in (16, 64, 1024):
        np.testing.assert_allclose(np.stack(score(lm, items, token_budget=budget)), alone, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(np.stack(score(lm, items[::-1]))[::-1], alone, rtol=1e-3, atol=1e-3)


@families
def test_the_side_that_is_padded_changes_no_state_beyond_rounding(family: str) -> None:
    lm = build(family)
    given = injection_of(random_context(3), random_coefficients(3, 4), ALL, device="cpu", dtype=lm.dtype)
    ids = [template(lm).prompt(text).ids for text in TEXTS]
    width, found = max(map(len, ids)), []
    for side in ("left", "right"):
        rows, masks = [], []
        for one in ids:
            padding = [0] * (width - len(one))
            rows.append([*padding, *one] if side == "left" else [*one, *padding])
            masks.append([*padding, *[1] * len(one)] if side == "left" else [*[1] * len(one), *padding])
        mask = torch.tensor(masks)
        with torch.no_grad(), inject(lm, given):
            states = lm.model.base_model(
                input_ids=torch.tensor(rows), attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0), use_cache=False
            ).last_hidden_state
        found.append(torch.cat([row[real.bool()] for row, real in zip(states, mask, strict=True)]))
    torch.testing.assert_close(found[0], found[1], **ROUNDING)
    packed = Batch.of([Row.for_last_token(one) for one in ids], layout="packed")
    with torch.no_grad(), inject(lm, given):
        torch.testing.assert_close(final_hidden(lm, packed)[0], found[0], **ROUNDING)
